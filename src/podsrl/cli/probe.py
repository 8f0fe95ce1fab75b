"""podsrl probe: fit a head that predicts success from a model's hidden states."""

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podsrl.cli.parser import VerbParser, errors_in_one_line
from podsrl.models import DTYPES, load_to_read, load_tokenizer, resolve_model
from podsrl.probe import HEADS, PLACES

if TYPE_CHECKING:
    from podsrl.runs.probing import Steps

DESCRIPTION = """\
Fit a head on a model's hidden states that predicts whether a rollout is right, from the rollouts
that a run has logged: at the prompt's last token, before anything is sampled, at a completion's
last, or all along it.

--head bradley_terry fits it on pairs of rollouts of one question, a right one over a wrong one, and
gated one for each layer with a gate that weighs them: for telling answers apart, and nothing else.

A third of the prompts is held out, with all their rollouts.  On them the head's AUROC (the chance
that it ranks a right rollout above a wrong one; .5 is chance) stands beside features that need no
model: lengths, counts, the numbers in the question.  A head whose 95 % interval holds .5 is not
written, and is refused wherever one is named."""
EXAMPLES = """\
examples:
  podsrl probe runs/my-run                             which prompts are hard, before sampling
  podsrl probe runs/my-run --at last                   which answers are right
  podsrl probe runs/my-run --at last --head gated      the better of two answers, by all layers
  podsrl probe runs/my-run --at prefix                 how promising an answer is half way
  podsrl probe runs/my-run --model smollm2-135m --steps :20    of the model as it began
  podsrl train recipe.yaml --reward_funcs correctness probe:runs/my-run/probe-last.safetensors

The states are those of the run's model as it ended (RUN/model), or of --model; the rollouts those
of all its steps, or of --steps.  A run with learning_rate 0 logs rollouts of one and the same
model.  Writes probe-PLACE.safetensors, the head, and probe-PLACE.json, all figures, into the run
folder, probe-PLACE-HEAD for another --head.  Exit status: 0 for a head, 1 for none, 2 for a
mistake.  docs/probe.md has the rest."""
FRACTIONS_OF_DEPTH = (0.25, 0.5, 0.75, 1.0)


@errors_in_one_line("probe")
def main(argv: list[str] | None) -> int:
    """Fit, print and write; 1 where the head is no better than chance, 2 for bad input."""
    options = _parser().parse_args(argv)
    from rich.console import Console

    from podsrl.cli.train import quieten
    from podsrl.extras import need
    from podsrl.probe.head import save_head
    from podsrl.runs.folder import write_json

    quieten()
    need("sklearn", "podsrl probe")
    started = time.monotonic()
    content, head = _fitted(options, Console())
    output = Path(options.output) if options.output else _default_output(options)
    path = output.with_suffix(".safetensors")
    written = not head.about.is_chance
    if written:
        save_head(path, head)
    else:
        path.unlink(missing_ok=True)  # an earlier one would pass for this fit's
    content |= {"head": str(path) if written else None, "seconds": time.monotonic() - started}
    write_json(output.with_suffix(".json"), content)
    _print(content, Console(highlight=False))
    return 0 if written else 1


def _parser() -> argparse.ArgumentParser:
    parser = VerbParser("probe", description=DESCRIPTION, epilog=EXAMPLES)
    add = parser.add_argument
    add("run", metavar="RUN_FOLDER", help="folder of a run that logged its rollouts")
    add("--at", choices=PLACES, default="prompt", help="where states are taken: %(default)s, ...")
    add("--head", choices=HEADS, default=HEADS[0], help="how it is fitted (default: %(default)s)")
    add("--model", help="whose states (default: RUN_FOLDER/model, else what the run began with)")
    add("--layers", metavar="8,14", help="tried, from 1 (default: four, over the depth)")
    add("--reward", metavar="NAME", help="right is a 1 of this reward (default: the run's first)")
    add("--steps", metavar="A:B", default=":", help="rollouts of the steps A to B (default: all)")
    add("--prompts", type=int, default=2000, help="the newest so many (default: %(default)s)")
    add("--rollouts", type=int, default=8, help="of a prompt, unless at prompt (%(default)s)")
    add("--held-out", type=float, default=1 / 3, metavar="SHARE", help="of prompts (default: 1/3)")
    add("--seed", type=int, default=0, help="of the split (default: %(default)s)")
    add("--batch-size", type=int, default=32, help="texts at a time (default: %(default)s)")
    add("--dtype", choices=DTYPES, help="default: bfloat16 on CUDA, else float32")
    add("--output", metavar="FILE", help="default: probe-PLACE in the run folder, two files")
    return parser


def _default_output(options: argparse.Namespace) -> Path:
    kind = "" if options.head == HEADS[0] else f"-{options.head}"
    return Path(options.run) / f"probe-{options.at}{kind}"


def _fitted(options: argparse.Namespace, console: Any) -> tuple[dict[str, Any], Any]:
    """What the result file holds, and the head."""
    from podsrl.progress import counted, progress_bar
    from podsrl.runs.probing import fit_probe, places_of, prompts_in_tokens, read_logged
    from podsrl.runs.rollout_log import FILE_NAME

    run = Path(options.run)
    log = run / FILE_NAME
    _check(options, log)
    logged = read_logged(
        log, reward=options.reward, steps=_steps(options.steps), most=options.prompts
    )
    name = options.model or _model_of(run)
    tokenizer = load_tokenizer(name)
    asked = prompts_in_tokens(run, tokenizer, [each.question for each in logged.prompts])
    model = load_to_read(name, options.dtype)
    layers = _layers(options.layers, model)
    places = list(places_of(logged, asked, tokenizer, options.at, rollouts_each=options.rollouts))
    with progress_bar(console, "texts read") as report:
        head, found = fit_probe(
            model,
            name,
            places,
            logged,
            at=options.at,
            layers=layers,
            kind=options.head,
            seed=options.seed,
            batch_size=options.batch_size,
            frac_held_out=options.held_out,
            report=counted(report, len(places)),
        )
    content: dict[str, Any] = {
        "run": str(run),
        "model": name,
        "model_digest": head.about.model_digest,
        "at": options.at,
        "kind": options.head,
        "label": logged.label,
        "steps": options.steps,
        "seed": options.seed,
        "layers": layers,
        "layers_read": head.about.layers,
        "num_layers": head.about.num_layers,
        "num_rollouts": sum(len(each.texts) for each in logged.prompts),
        "num_without_reward": logged.num_without_reward,
        "num_prompts_put_bare": asked.num_bare,
    }
    return content | found.figures, head


def _check(options: argparse.Namespace, log: Path) -> None:
    if not log.is_file():
        raise ValueError(f"{log.parent} holds no {log.name}: log_rollouts: auto or true writes it")
    if not 0 < options.held_out < 1:
        raise ValueError(f"--held-out is {options.held_out}: give a share of the prompts, as 0.33")
    for name in ("prompts", "rollouts", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} is {getattr(options, name)}: give 1 or more")
    if options.head != HEADS[0] and options.at != PLACES[1]:
        raise ValueError(
            f"--head {options.head} compares two answers to one question, but --at is {options.at}:"
            f" give --at {PLACES[1]}, or --head {HEADS[0]}"
        )
    if options.model:
        resolve_model(options.model)


def _model_of(run: Path) -> str:
    """The run's model as it ended where it was saved, else the one that it began with."""
    from podsrl.runs.folder import read_json

    if (run / "model").is_dir():
        return str((run / "model").absolute())
    settings = read_json(run / "config.json")
    name = settings.get("model_name_or_path") or settings.get("model")
    if not name:
        raise ValueError(f"{run}/config.json names no model: give --model")
    return str(name)


def _layers(text: str | None, model: Any) -> list[int]:
    from podsrl.sampling.tap import check_layers, decoder_layers

    if text is None:
        num = len(decoder_layers(model))
        return sorted({max(1, round(share * num)) for share in FRACTIONS_OF_DEPTH})
    try:
        layers = [int(each) for each in text.split(",")]
    except ValueError:
        raise ValueError(f"--layers is {text!r}: write numbers such as 8,14") from None
    check_layers(model, layers)
    return layers


def _steps(text: str) -> "Steps":
    from podsrl.cli.view import steps_of

    return steps_of(text)


def _print(content: dict[str, Any], console: Any) -> None:
    from rich.table import Table

    title = f"{content['label']}, from states at {content['at']}"
    held_out, fitted = content["num_prompts_held_out"], content["num_prompts_fitted"]
    caption = f"{held_out} held-out prompts; fitted on {fitted} others"
    probe = {"value": content["auroc"], "low": content["low"], "high": content["high"]}
    read = content["layers_read"]
    layers = f"layer{'s' if len(read) > 1 else ''} {', '.join(map(str, read))}"
    rows = {f"the probe, {layers} of {content['num_layers']}": probe}
    if content["kind"] != HEADS[0]:
        title += ", of two rollouts of one prompt"
    elif "within" in content:
        rows["  among rollouts of one prompt"] = content["within"]
    table = Table(title=title, caption=caption)
    for column in ("AUROC of", "value", "95 % interval"):
        table.add_column(column, justify="left" if column == "AUROC of" else "right")
    alone = sorted(content["trivial"].items(), key=lambda each: -each[1]["value"])
    rows |= {("minus " if each["sign"] < 0 else "") + name: each for name, each in alone}
    if "together" in content:
        rows["these together"] = content["together"]
        rows["the probe minus these together"] = content["minus_together"]
    for name, each in rows.items():
        sign = "+" if "minus these" in name else ""
        ends = f"{each['low']:{sign}.3f} to {each['high']:{sign}.3f}"
        table.add_row(name, f"{each['value']:{sign}.3f}", ends)
    console.print(table)
    for line in _lines(content):
        console.print(line, soft_wrap=True)


def _lines(content: dict[str, Any]) -> list[str]:
    other = "the mean alone" if content["kind"] == HEADS[0] else "chance"
    lines = [
        f"{100 * content['frac_right']:.1f} % right; log-loss {content['log_loss']:.3f}, of "
        f"{other} {content['log_loss_constant']:.3f}; states of {content['model']}"
    ]
    if content["num_without_reward"]:
        lines.append(f"{content['num_without_reward']} rollouts without a reward were left out")
    if content["num_prompts_put_bare"]:
        lines.append(
            f"{content['num_prompts_put_bare']} questions stand in no row of the run's task and "
            "were put as a user's message alone"
        )
    if content["head"]:
        lines.append(f"written to {content['head']}")
    else:
        lines.append("no head is written: the interval is not above .5, which is chance")
    return lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
