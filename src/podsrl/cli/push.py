"""podsrl push: a run's model and its card to the Hugging Face hub."""

import argparse
import sys
from pathlib import Path

from podsrl.cli.parser import VerbParser, errors_in_one_line

DESCRIPTION = """Upload the model of a finished run with its card to the Hugging Face hub, and the
adapter of LoRA into adapter/.  The repository is private unless --public says otherwise.

Only the run's model/ and adapter/ go: no rollouts, answers, data, settings or checkpoints.  Read
model/README.md first: it says what the model is, and where no licence is known, you must choose
one.  Files, name and token are checked before anything is sent."""
EXAMPLES = """examples:
  podsrl push runs/my-run me/my-model --dry_run     what would be sent
  podsrl push runs/my-run me/my-model
  podsrl push runs/my-run me/my-model --public

The token is that of `hf auth login`, or HF_TOKEN; it must be allowed to write."""


@errors_in_one_line("push")
def main(argv: list[str] | None) -> int:
    """Upload and print the address; 2 with one line where something is missing or refused."""
    options = build_parser().parse_args(argv)
    from podsrl.runs.push import plan_upload, upload

    plan = plan_upload(Path(options.run), options.repo_id, is_public=options.public)
    for name, size in plan.files().items():
        print(f"  {size / 2**20:9.2f} MiB  {name}")
    for note in plan.notes:
        print(f"  {note}")
    if options.dry_run:
        print(f"would go to {options.repo_id}, {'public' if options.public else 'private'}")
        return 0
    from huggingface_hub import HfApi, get_token

    if get_token() is None:
        raise ValueError("no token for the hub: run hf auth login, or set HF_TOKEN")
    print(f"uploaded to {upload(plan, HfApi())}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the verb."""
    parser = VerbParser("push", description=DESCRIPTION, epilog=EXAMPLES)
    add = parser.add_argument
    add("run", metavar="RUN", help="the folder of a finished run")
    add("repo_id", metavar="REPO_ID", help="NAME or OWNER/NAME on the hub")
    add("--public", action="store_true", help="let everybody see it (default: private)")
    add("--dry_run", action="store_true", help="print what would be sent, and send nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
