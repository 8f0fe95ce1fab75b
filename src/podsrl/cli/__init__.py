"""The podsrl command: one file per verb, each with a main(argv) that returns the exit status."""

import importlib
import sys

from podsrl.cli.waiting import wait_briefly

# Here, because `python -m podsrl.cli.VERB` imports this file first and torch with the verb.
wait_briefly()

VERBS = {
    "init": "write a recipe, a reward and a comparison for a file of your questions",
    "train": "train a language model with PODS from a recipe",
    "compare": "run arms at equal wall-clock, seed by seed, and evaluate all alike",
    "report": "compare arms at equal training time: a page with figures and intervals",
    "plan": "measure a recipe on this machine and propose n, m and the micro-batch",
    "tune": "look for the settings that learn most at equal training time, and confirm them",
    "evaluate": "measure a model on a task: accuracy, format, length, with 95 % intervals",
    "view": "write a page of a run's rollouts: rewards, kept or dropped and why",
    "probe": "fit a head that predicts success from hidden states, of a run's rollouts",
    "select": "show which rollouts each rule keeps for the rewards in a file",
    "push": "upload a run's model and its card to the Hugging Face hub",
    "doctor": "say what is installed, what this machine can do, and what is slow and why",
    "completion": "print what a shell needs to complete podsrl's verbs and flags",
}

USAGE = """podsrl: reinforcement learning of language models on the rollouts that matter

usage: podsrl VERB [options]        (podsrl VERB --help explains the verb)

{verbs}

Start here:
  podsrl train recipes/arithmetic-smollm2.yaml     a small model learns arithmetic, on a laptop
  podsrl init questions.jsonl                      a recipe and a reward for questions of yours
  echo '[0, 0, 0, 0, 1, 1, 1, 0]' | podsrl select - --keep 4

PODS samples n rollouts per prompt and updates the policy on the m < n whose rewards have
maximal variance (arXiv 2504.13818).  n is --num_rollouts, m is --num_generations."""


def main(argv: list[str] | None = None) -> int:
    """Run the verb named by the first argument and return its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {name:<10} {text}" for name, text in VERBS.items())
        print(USAGE.format(verbs=verbs))
        return 0
    if argv[0] == "--version":
        from podsrl import __version__

        print(f"podsrl {__version__}")
        return 0
    if argv[0] not in VERBS:
        print(f"podsrl: unknown verb {argv[0]!r}; {_meant(argv[0])}", file=sys.stderr)
        return 2
    return importlib.import_module(f"podsrl.cli.{argv[0]}").main(argv[1:])


def _meant(word: str) -> str:
    """The verb that was probably meant, else all."""
    import difflib

    close = difflib.get_close_matches(word, VERBS, 1)
    return f"did you mean {close[0]}?" if close else f"choose from {', '.join(VERBS)}"
