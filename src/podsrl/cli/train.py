"""podsrl train: a recipe and flags -> a run folder."""

import sys
from pathlib import Path

USAGE = """podsrl train: train a language model with PODS

usage: podsrl train [RECIPE.yaml] [--flag value ...]

A recipe is a YAML file of flags; flags on the command line win over it. Besides the flags below,
every field of TRL's GRPOConfig and ModelConfig is one: --learning_rate, --beta, --use_vllm,
--use_peft, --lora_r ... (podsrl train --help all lists them).

  --task NAME             arithmetic (default), gsm8k, math, reasoning_gym:<name>, jsonl:<path>
  --data PATH             the task's data from local files instead of the hub
  --model NAME            smollm2-135m (packaged, default), a local folder, or a hub id
  --num_rollouts N        n: rollouts sampled per prompt (default 4 x num_generations)
  --num_generations M     m: rollouts kept per prompt for the update
  --selection_rule RULE   max_variance (default), max_reward, random, percentile,
                          max_abs_advantage, shortest, reward_per_token
  --advantage NAME        grpo (default), dr_grpo, rloo, krpo
  --advantage_from WHAT   kept (default) or all: the rewards that advantages compare with
  --output_dir FOLDER     the run folder; a number is added if it holds a run already
  --max_steps STEPS       optimizer steps
  --training_seconds S    stop after S seconds of training (not evaluating, saving, loading)
  --evaluate_every_seconds S   evaluate whenever S more seconds were trained, into curve.jsonl
  --evaluate_limit K      held-out questions of the evaluation before and after (default 256)
  --resume                go on from the last checkpoint in --output_dir

Batch sizes count kept rollouts: a step trains on per_device_train_batch_size x
gradient_accumulation_steps of them per device, from that number / num_generations prompts.

Ctrl-C finishes the step, saves a checkpoint and says how to go on.

examples
  podsrl train recipes/arithmetic-smollm2.yaml
  podsrl train recipes/arithmetic-smollm2.yaml --selection_rule random --output_dir runs/random
  accelerate launch -m podsrl.cli.train recipes/gsm8k-qwen2.5-3b-8xh100.yaml"""


def main(argv: list[str] | None = None) -> int:
    """Train as the recipe and the flags say; 0 done, 2 bad input, 130 stopped by Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    if argv in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    from rich.console import Console

    console = Console()
    quieten()
    try:
        run = _prepare(argv, console)
    except (ValueError, OSError) as error:
        print(f"podsrl train: {error}", file=sys.stderr)
        return 2
    from accelerate import PartialState

    from podsrl.runs.training import describe, run_training

    console.quiet = not PartialState().is_main_process
    console.print(_headline(run), highlight=False, soft_wrap=True)
    try:
        result = run_training(run)
    except KeyboardInterrupt:
        console.print("stopped at once; checkpoints written before are kept")
        return 130
    if result is None:
        console.print(f"stopped. To go on: {_resume_command(argv, run.folder)}", soft_wrap=True)
        return 130
    if "gain_points" in result:
        before, after = (result[when]["accuracy_greedy"] for when in ("before", "after"))
        console.print(
            f"held-out accuracy {describe(before)} -> {describe(after)}, "
            f"{result['gain_points']:+.1f} points in {result['seconds']['training'] / 60:.1f} "
            "minutes of training",
            soft_wrap=True,
        )
    if result:
        console.print(f"everything is in {run.folder}", soft_wrap=True)
    return 0


def _prepare(argv: list[str], console):  # type: ignore[no-untyped-def]
    from podsrl.runs.parsing import SettingsParser
    from podsrl.runs.training import prepare_run

    arguments, config, model_config = SettingsParser().parse_args_and_config(_expand(argv))
    return prepare_run(arguments, config, model_config, console)


def quieten() -> None:
    """Keep the hosts' bars and notices out of the way of our own; errors still show."""
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    warnings.filterwarnings("ignore", category=UserWarning, message=".*pin_memory.*")


def _expand(argv: list[str]) -> list[str]:
    """A leading recipe becomes --config; `--help all` becomes argparse's own help."""
    if argv[:2] == ["--help", "all"]:
        return ["--help"]
    if not argv or argv[0].startswith("-"):
        return argv
    if not Path(argv[0]).is_file():
        raise ValueError(f"recipe {argv[0]} does not exist: give a YAML file, or flags only")
    return ["--config", *argv]


def _headline(run) -> str:  # type: ignore[no-untyped-def]
    config = run.config
    prompts = config.generation_batch_size // config.num_generations
    return (
        f"{run.arguments.model} on {run.task.name}: {prompts} prompts x {config.num_rollouts} "
        f"rollouts, {config.num_generations} kept by {config.selection_rule}; {run.folder}"
    )


def _resume_command(argv: list[str], folder: Path) -> str:
    kept = [word for word in argv if word != "--resume"]
    if "--output_dir" in kept:
        kept[kept.index("--output_dir") + 1] = str(folder)
    else:
        kept += ["--output_dir", str(folder)]
    return " ".join(["podsrl train", *kept, "--resume"])


if __name__ == "__main__":
    raise SystemExit(main())
