"""`python -m podsrl.verl`: whether verl knows the modes of PODS; verl hides why it does not."""

from importlib.metadata import version

from podsrl.verl.trainer import PodsTrainer


def main() -> None:
    """Print versions and modes; what is missing ends as its ImportError."""
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    for name in ("verl", "TransferQueue", "tensordict", "ray", "transformers", "torch"):
        print(f"{name:14} {version(name)}")
    modes = [mode for mode, trainer in TRAINER_REGISTRY.items() if issubclass(trainer, PodsTrainer)]
    print(f"{'trainer modes':14} {', '.join(modes)}")


if __name__ == "__main__":
    main()
