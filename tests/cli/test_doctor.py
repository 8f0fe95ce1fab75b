"""podsrl doctor and podsrl completion."""

import copy
import json
import subprocess
from typing import Any

import pytest

from podsrl.cli import VERBS, main
from podsrl.extras import EXTRAS
from podsrl.runs import machine
from podsrl.runs.machine import advice, examine

# A machine on which nothing is missing and nothing slow.
FINE: dict[str, Any] = {
    "needed": {"python": "3.12.1", "torch": "2.13.0"},
    "ranges": {},
    "optional": {},
    "machine": {
        "cores": 8,
        "load_of_last_minute": 0.5,
        "memory_free_gib": 64.0,
        "disk_free_gib": 100.0,
        "nvidia_driver": True,
        "torch_built_for": "CUDA 13.0",
        "torch_threads": 8,
        "gpu": "1 x H100",
        "bfloat16_over_float32": 8.0,
    },
}
CASES = [
    ({"gpu": None}, ["this torch cannot use it (built for CUDA 13.0)"]),
    ({"gpu": None, "nvidia_driver": False}, ["no GPU: everything runs on the CPU"]),
    # A quarter of the speed: 1 / 0.25 = 4 times slower; told only where the CPU computes.
    (
        {"gpu": None, "nvidia_driver": False, "bfloat16_over_float32": 0.25},
        ["no GPU", "bfloat16 is 4.0 times slower than float32"],
    ),
    ({"bfloat16_over_float32": 0.25}, []),
    ({"load_of_last_minute": 4.0}, []),  # half of 8 cores is the bound
    ({"load_of_last_minute": 4.1}, ["other work keeps 4.1 of 8 cores busy"]),
    ({"torch_threads": 16}, ["16 threads, more than the 8 cores"]),
    ({"torch_threads": 1}, ["1 threads, fewer than the 8 cores here (OMP_NUM_THREADS is 1)"]),
    ({"memory_free_gib": 3.9}, ["3.9 GiB of memory are free"]),
    ({"disk_free_gib": 7.9}, ["7.9 GiB are free here"]),
    ({}, []),
]


@pytest.mark.parametrize(("change", "told"), CASES, ids=lambda case: str(case)[:60])
def test_what_follows_from_a_machine(
    change: dict[str, Any], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    lines = advice(FINE | {"machine": FINE["machine"] | change})
    assert len(lines) == len(told) and not any(line["stops"] for line in lines)
    assert all(words in line["text"] for words, line in zip(told, lines, strict=True))


def test_what_is_missing_or_out_of_range_stops() -> None:
    found = copy.deepcopy(FINE)
    found["needed"] |= {"torch": None, "trl": "1.20.0"}
    found["ranges"] = {"trl": ">=1.16,<1.17"}
    texts = [line["text"] for line in advice(found) if line["stops"]]
    assert texts == [
        "torch is missing: pip install 'torch'",
        "trl is 1.20.0, and podsrl is tested with >=1.16,<1.17: pip install 'trl>=1.16,<1.17'",
    ]


def test_this_machine_is_examined() -> None:
    found = examine()
    assert {"python", "podsrl", "torch", "trl"} <= found["needed"].keys()
    assert not found["ranges"] and None not in found["needed"].values()
    assert found["machine"]["cores"] >= 1 and found["machine"]["float32_gflops"] >= 1
    modules = {package.replace("-", "_") for package in machine.USES}
    # What can be missing is told; one package has another name than its module.
    assert {name.replace("sklearn", "scikit_learn") for name in EXTRAS} <= modules


def test_the_verb_prints_what_was_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    optional = {"peft": {"version": None, "for": "LoRA", "remedy": "pip install 'podsrl[lora]'"}}
    monkeypatch.setattr(machine, "examine", lambda: FINE | {"optional": optional})
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "LoRA: not installed: pip install 'podsrl[lora]'" in text
    assert "nothing stands in the way" in text
    broken = copy.deepcopy(FINE)
    broken["needed"]["torch"] = None
    monkeypatch.setattr(machine, "examine", lambda: broken)
    assert main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["advice"] == [{"text": "torch is missing: pip install 'torch'", "stops": True}]


def completed(script: str, *words: str) -> set[str]:
    """What bash would offer after these words, the last of which is being written."""
    line = " ".join(f"'{word}'" for word in words)
    done = subprocess.run(
        ["bash", "--norc"],
        input=f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _shtab_podsrl; "
        'printf "%s\\n" "${COMPREPLY[@]}"',
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_bash_completes_verbs_flags_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert completed(script, "podsrl", "tr") == {"train"}
    assert completed(script, "podsrl", "") >= set(VERBS)
    assert completed(script, "podsrl", "train", "--num_ro") == {"--num_rollouts"}
    assert completed(script, "podsrl", "evaluate", "--max") == {"--max-new-tokens"}
    assert completed(script, "podsrl", "evaluate", "--split", "t") == {"train", "test"}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script_too(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "num_rollouts" in capsys.readouterr().out
    assert main(["completion", "fish"]) == 2
