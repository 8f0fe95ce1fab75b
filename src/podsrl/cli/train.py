"""podsrl train: a recipe and flags -> a run folder."""

import shlex
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podsrl.cli.flags import check_early, read_recipe
from podsrl.cli.parser import errors_in_one_line, spelled_as_known
from podsrl.runs.stop import Stop

if TYPE_CHECKING:
    from rich.console import Console

    from podsrl.runs.training import Run, TrainingFailed

# What is looked at before the parser is there, which takes seconds to load.
FLAGS = ("--config", "--output_dir", "--resume", "--resume_with_changes", "--dry_run")
USAGE = """podsrl train: train a language model with PODS

usage: podsrl train [RECIPE.yaml] [--flag value ...]

A recipe is a YAML file of flags; flags on the command line win over it. Besides the flags below,
every field of TRL's GRPOConfig and ModelConfig is one: --learning_rate, --beta, --use_vllm,
--use_peft, --lora_r ... (podsrl train --help all lists them, and says more of each).

what is learned
  --task NAME             arithmetic (default), gsm8k, math, amc23, guess (with turns),
                          reasoning_gym:<name>, jsonl:<path>, or dataset (own data's default)
  --task_arguments JSON   options of the task, such as '{"num_test": 512}'
  --data PATH             the task's data from local files instead of the hub
  --dataset_name NAME     your own data: an id of the hub, a folder or a file; --dataset_config,
                          --dataset_train_split, --dataset_test_split
  --datasets D ...        a mixture: files, folders, ids, or JSON with path, split, fraction ...
  --test_datasets D ...   held-out data, written the same way; or --test_split_size SHARE
  --system_prompt TEXT    system message of every prompt, instead of the task's; '' for none
  --prompt_template TEXT  what is asked, columns of the data in braces: '{question} Be brief.'
  --answer_format HOW     where the answer stands: tags (most tasks' default) or number, the last
  --answer_column NAME    column of your data with the right answer (default: answer)
  --reward_funcs R ...    rewards instead of the task's: its own by name (correctness), yours as
                          my_reward.py:closeness or my.module:closeness, a head that podsrl probe
                          wrote as probe:HEAD.safetensors; --reward_weights W ...
  --majority_gate SHARE, --majority_stop SHARE   of --reward_funcs majority, which needs no answers:
                          how many must agree, and how many in all end the run (docs/tasks.md)
  --grader G              what is right: math, yours by a name of plugins or my_grader.py:close
  --plugins FILE ...      your files or modules that add rules, estimators, objectives, tasks or
                          graders
  --train_limit K         use only this many training questions
  --prompt_probe HEAD, --prompt_probe_range LOW HIGH   leave out questions of which a head of podsrl
                          probe predicts a chance of success outside (default 0.02 0.98)
  --model NAME            smollm2-135m (packaged, default), a local folder, or a hub id

what is sampled and kept
  --num_rollouts N        n: rollouts sampled per prompt (default 2 x num_generations)
  --num_generations M     m: rollouts kept per prompt for the update
  --num_generations_start K, --num_generations_steps S   m grows from K within S steps
  --behaviours JSON       several temperatures or adapters sample a group (docs/methods.md)
  --rollout_mixture JSON, --rollout_mixture_share S   other models and the policy write the share S
                          of a group's rollouts together (docs/methods.md, collab)
  --selection_rule RULE   max_variance (default), max_reward, random, percentile,
                          max_abs_advantage, shortest, reward_per_token
  --budget HOW            per_prompt (default: m of each) or pooled: the step's kept rollouts go
                          where they add most variance, --budget_floor to --budget_cap a prompt
  --refill_constant_groups R   sample other prompts, in up to R rounds, where rewards are equal
  --early_stop true       stop sampling a group when no unfinished rollout could be kept for its
                          variance; rewards lie in --reward_bounds (default: the task's)
  --sampling_rounds R     sample R rollouts (8, say) of a prompt at a time, until their rewards
                          differ enough (docs/rounds.md)
  --sampling_rounds_enough, --sampling_rounds_give_up   when a prompt is settled, or given up
  --fast_sampling, --packed_update   true or false: read each prompt once for all its rollouts,
                          when sampling and when updating (default: where it is supported)
  --skip_dead_rows        true or false: leave kept rollouts that teach nothing out of the update

what is minimised
  --advantage NAME        grpo (default), dr_grpo, rloo, krpo
  --advantage_from WHAT   kept (default) or all: the rewards that advantages compare with
  --advantage_weights W   none (default) or stratified: weigh the kept so that they stand for all
  --krpo_process_variance, --krpo_observation_variance, --krpo_order, --krpo_innovation
  --objective NAME        grpo (default: TRL's loss), sapg, agro, vargrad, subtb, rebel, qrpo,
                          astar_po, and on pairs dpo, tdpo1, tdpo2, bmc, rbrm, sdpo, veripo
  --beta B                strength of the pull to the reference policy
  --rebel_eta, --value_beta, --num_reference_rollouts, --qrpo_ties, --sapg_mu_max, --subtb_lambda,
  --pair_mode, --tdpo_alpha, --bmc_delta, --bmc_bridges, --rbrm_alpha, --rbrm_head,
  --rbrm_refresh_steps, --sdpo_segment, --sdpo_branches, --sdpo_first_turn, --sdpo_num_turns,
  --veripo_policy_steps, --veripo_pair_steps, --veripo_policy_beta, --veripo_drop_solved,
  --veripo_checks, --veripo_max_tokens     of single objectives: docs/methods.md

when it ends, and what is measured and written
  --max_steps STEPS       optimizer steps
  --stop_after_idle_steps K    stop with the reason after K steps in a row without a gradient
                          (default 20; 0: never)
  --training_seconds S    stop after S seconds of training (not evaluating, saving, loading)
  --evaluate_every_seconds S   evaluate whenever S more seconds were trained, into curve.jsonl
  --evaluate_every_steps K     the same before the first step, after every K, and after the last
  --evaluate_limit K      held-out questions of the evaluation before and after (default 256)
  --evaluate_samples K    sampled answers per held-out question, besides the greedy (default 0)
  --output_dir FOLDER     the run folder; a number is added if it holds a run already
  --log_rollouts HOW      every rollout into rollouts.jsonl.gz: auto (default: up to 64 MiB),
                          true (without limit), false
  --save_model false      leave the trained model out of the run folder
  --resume                go on from the newest whole checkpoint in --output_dir
  --resume_with_changes   let it go on with settings that change training
  --long_prompts HOW      questions too long for the model: refuse (default) or drop
  --reward_timeout_seconds S   end the run when a reward function takes longer
  --dry_run               check settings, data, rewards and the model's name; load and write nothing

Batch sizes count kept rollouts: a step trains on per_device_train_batch_size x
gradient_accumulation_steps of them per device, from that number / num_generations prompts.

Ctrl-C finishes the step, saves a checkpoint and says how to go on. So do SIGTERM, SIGUSR1 and the
SIGHUP of a closed terminal, and a reward function or a disk that fails.

examples
  podsrl train recipes/arithmetic-smollm2.yaml
  podsrl train recipes/arithmetic-smollm2.yaml --selection_rule random --output_dir runs/random
  accelerate launch -m podsrl.cli.train recipes/paper-d-gsm8k-qwen2.5-3b-8xh100.yaml"""


@errors_in_one_line("train")
def main(argv: list[str] | None = None) -> int:
    """Train as the recipe and the flags say.

    0 done, 1 failed in training, 2 bad input, 130 stopped by Ctrl-C or another signal.
    """
    argv = spelled_as_known(sys.argv[1:] if argv is None else argv, FLAGS)
    if argv in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    words = _expand(argv)
    is_dry, words = "--dry_run" in words, [word for word in words if word != "--dry_run"]
    recipe, words = _recipe(words)
    check_early(words, recipe)
    if is_dry:
        return _check(words, recipe)
    stop = Stop()
    stop.listen()
    try:
        with stop.at_once():  # torch and what is built on it take seconds to load
            run = _prepare(words, recipe)
    except KeyboardInterrupt:
        print("stopped before the first step: nothing was begun")
        return 130
    else:
        return _train(run, argv, stop)
    finally:
        stop.release()


def _check(words: list[str], recipe: dict[str, Any] | None) -> int:
    """Say what a run would be, everything checked that takes no model."""
    from rich.console import Console

    quieten()
    from podsrl.runs.prepare import Run, check_run
    from podsrl.runs.settings import SettingsParser

    settings = SettingsParser().parse(words, recipe)
    task, rows = check_run(*settings)
    run = Run(*settings, task, rows, None, Console())
    run.console.print(_headline(run), highlight=False, soft_wrap=True)
    run.console.print(
        f"nothing is wrong as far as can be seen without the model: {len(rows)} questions to "
        f"learn from, rewards {', '.join(task.reward_funcs)}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _train(run: "Run", argv: list[str], stop: Stop) -> int:
    from podsrl.runs.training import TrainingFailed, run_training

    console = run.console
    stop.quiet = console.quiet
    if run.finished:
        console.print(f"{run.folder} is finished, nothing is left to do", soft_wrap=True)
        return 0
    console.print(_headline(run), highlight=False, soft_wrap=True)
    try:
        result = run_training(run, stop)
    except KeyboardInterrupt:
        result = None
    except TrainingFailed as failed:
        _tell_failure(failed, _how_to_go_on(argv, run.folder))
        return 1
    if result is None:
        console.print(f"stopped. {_how_to_go_on(argv, run.folder)}", soft_wrap=True)
        return 130
    _tell_result(result, run.folder, console)
    return 0


def _tell_failure(failed: "TrainingFailed", remedy: str) -> None:
    """The traceback, which a reward function's author needs, and how the run stands."""
    if not failed.says_all:
        traceback.print_exception(failed.__cause__)
    print(f"podsrl train: {failed}. {remedy}", file=sys.stderr)


def _tell_result(result: dict[str, Any], folder: Path, console: "Console") -> None:
    from podsrl.runs.training import describe

    if "gain_points" in result:
        before, after = (result[when]["accuracy_greedy"] for when in ("before", "after"))
        console.print(
            f"held-out accuracy {describe(before)} -> {describe(after)}, "
            f"{result['gain_points']:+.1f} points in {result['seconds']['training'] / 60:.1f} "
            "minutes of training",
            soft_wrap=True,
        )
    if result:
        console.print(f"everything is in {folder}", soft_wrap=True)


def _how_to_go_on(argv: list[str], folder: Path) -> str:
    """The command that goes on from the newest whole checkpoint, where there is one."""
    from podsrl.runs.checkpoints import newest_whole

    if newest_whole(folder)[0] is None:
        return f"No step is saved; to begin again: {_command(argv)}"
    return f"To go on: {_resume_command(argv, folder)}"


def _recipe(words: list[str]) -> tuple[dict[str, Any] | None, list[str]]:
    """The settings that --config names, and the other words."""
    if "--config" not in words:
        return None, words
    place = words.index("--config")
    return read_recipe(Path(*words[place + 1 : place + 2])), words[:place] + words[place + 2 :]


def _prepare(words: list[str], recipe: dict[str, Any] | None) -> "Run":
    from rich.console import Console

    quieten()
    from podsrl.runs.settings import SettingsParser
    from podsrl.runs.training import prepare_run

    return prepare_run(*SettingsParser().parse(words, recipe), Console())


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
        return list(argv)
    return ["--config", *argv]


def _headline(run: "Run") -> str:
    from accelerate import PartialState

    from podsrl.runs.step import step_in_words

    step = step_in_words(run.config, PartialState().num_processes)
    return f"{run.arguments.model} on {run.task.name}: {step}; {run.folder}"


def _resume_command(argv: list[str], folder: Path) -> str:
    kept = [word for word in argv if word not in ("--resume", "--resume_with_changes")]
    if "--output_dir" in kept:
        kept[kept.index("--output_dir") + 1] = str(folder)
    else:
        kept = [word for word in kept if not word.startswith("--output_dir=")]
        kept += ["--output_dir", str(folder)]
    return _command([*kept, "--resume"])


def _command(argv: list[str]) -> str:
    return shlex.join(["podsrl", "train", *argv])


if __name__ == "__main__":
    raise SystemExit(main())
