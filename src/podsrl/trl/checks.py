"""What PODSTrainer does with its arguments before TRL sees them."""

from typing import Any

from podsrl.trl.config import PODSConfig

UNSUPPORTED = {
    "tools": "tool calls",
    "environment_factory": "environments",
    "rollout_func": "custom rollout functions",
}


def default_output_dir(model: Any) -> str:
    """The folder of a trainer that was given no arguments: the model's name and -PODS."""
    name = model if isinstance(model, str) else model.config._name_or_path
    return f"{name.rstrip('/').split('/')[-1]}-PODS"


def refuse_unsupported(arguments: dict[str, Any]) -> None:
    """Raise for what GRPOTrainer can do and PODSTrainer cannot, and for another trainer's args."""
    for name, what in UNSUPPORTED.items():
        if arguments.get(name):
            raise NotImplementedError(
                f"PODSTrainer does not support {what} yet ({name} is set): leave it out, or train "
                "with GRPOTrainer."
            )
    args = arguments.get("args")
    if args is not None and not isinstance(args, PODSConfig):
        raise TypeError(
            f"args is a {type(args).__name__}; PODSTrainer needs a PODSConfig, which takes the "
            "same fields and adds num_rollouts, selection_rule and advantage_from."
        )
