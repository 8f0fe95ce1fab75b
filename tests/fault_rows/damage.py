"""Files of a killed run damaged before it is resumed."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from fault_rows import moments
from fault_rows.case import Attempt, Bench, Row, Verdict, finished_or, spread
from fault_rows.outcome import checkpoint_steps, refused_in_one_line

Damage = Callable[[Path], None]
NEWEST = "checkpoint-3"
TENSORS = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")
OTHERS = (
    "trainer_state.json", "training_args.bin", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def bit_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


def torn_line(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"step": 3, "lo')


def zero_tail(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(100))


def bad_line(path: Path) -> None:
    path.write_bytes(b'{"step": 1, "lo\n' + path.read_bytes())


def cases() -> dict[str, tuple[str, Damage]]:
    """Name -> file below the run folder and what is done to it."""
    checkpoint = {
        f"{NEWEST}/{name} {damage.__name__}": (f"{NEWEST}/{name}", damage)
        for damage in (missing, empty, half)
        for name in (*TENSORS, *OTHERS)
    }
    more = {f"{NEWEST}/{name} zeros": (f"{NEWEST}/{name}", zeros) for name in TENSORS}
    flips = {
        f"{NEWEST}/{name} bit_flip": (f"{NEWEST}/{name}", bit_flip)
        for name in ("model.safetensors", "optimizer.pt")
    }
    files = [
        ("metrics.jsonl", torn_line),
        ("metrics.jsonl", zero_tail),
        ("metrics.jsonl", bad_line),
        ("metrics.jsonl", empty),
        ("metrics.jsonl", zeros),
        ("rollouts.jsonl.gz", empty),
        ("rollouts.jsonl.gz", half),
        ("rollouts.jsonl.gz", zeros),
        ("before/evaluation.json", half),
        ("config.json", half),
        ("versions.json", empty),
        (NEWEST, shutil.rmtree),
        ("checkpoint-99", lambda path: path.mkdir()),
        ("checkpoint-latest", lambda path: path.mkdir()),
    ]
    run = {f"{name} {getattr(d, '__name__', 'made')}": (name, d) for name, d in files}
    return {**checkpoint, **more, **flips, **run}


CASES = cases()


def resume_damaged(attempt: Attempt) -> Verdict:
    """Resume a copy of a killed run with one file damaged: the same bits, or one line that says."""
    name, (file, damage) = spread(CASES, attempt.number)
    shutil.copytree(killed_run(attempt.bench), attempt.run_folder)
    damage(attempt.run_folder / file)
    ended = attempt.run(attempt.words("--resume"))
    if ended.status == 2:
        return Verdict(refused_in_one_line(ended), f"{name}: refused")
    verdict = finished_or(attempt, ended, f"{name}: resumed")
    said = Path(file).name in ended.text
    if verdict.failure in ("other rollouts", "other metrics", "other accuracies") and said:
        return Verdict(None, f"{name}: resumed, and the loss was said")  # it cannot come back
    return verdict


def killed_run(bench: Bench) -> Path:
    """The folder of a run killed in its fourth step, with three whole checkpoints; made once."""
    if "killed" not in bench.cache:
        folder = bench.scratch / "killed"
        folder.mkdir()
        attempt = Attempt(bench, "killed", 0, folder)
        fourth = moments.nth("rollouts.jsonl.gz$", 4)  # sampled and not yet trained on
        setup = moments.at_moment(
            attempt.run_folder, fourth, lambda: os.kill(os.getpid(), signal.SIGKILL)
        )
        attempt.run(attempt.words(), setup)
        if checkpoint_steps(attempt.run_folder) != [1, 2, 3]:
            raise RuntimeError("the run to be damaged was not killed in its fourth step")
        bench.cache["killed"] = attempt.run_folder
    return Path(bench.cache["killed"])


ROWS = {
    "damage": Row("one file damaged, a good older checkpoint there", len(CASES), 4, resume_damaged),
}
