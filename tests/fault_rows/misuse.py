"""Commands typed wrongly: each must be refused in one line."""

from fault_rows.case import Attempt, Row, Verdict, spread
from fault_rows.outcome import refused_in_one_line

# Words of a command; MODEL, RUN and DIR stand for a model, a finished run, an empty folder, and
# a name in CONTENTS for a file of that content.
COMMANDS: list[str] = [
    "trian", "--train", "select", "select /no/such/file --keep 2", "select empty.json --keep 2",
    "select list.json", "select list.json --keep 0", "select list.json --keep 99",
    "select list.json --keep two", "select list.json --keep -1", "select broken.json --keep 2",
    "select huge.json --keep 2 --json", "select deep.json --keep 2", "select text.json --keep 2",
    "select nested.json --keep 2", "select list.json --keep 2 --rule best", "select DIR --keep 2",
    "select binary.json --keep 2", "select list.json --keep 2 --seed x",
    "select null.json --keep 2", "evaluate --model /no/such/model", "evaluate --model DIR",
    "evaluate --model MODEL --task chess", "evaluate --model MODEL --limit -1",
    "evaluate --model MODEL --samples -1", "evaluate --model MODEL --temperature 0 --samples 2",
    "evaluate --model MODEL --max-new-tokens 0", "evaluate --model MODEL --batch-size 0",
    "evaluate --model MODEL --device cuda:99", "evaluate --model MODEL --device toaster",
    "evaluate --model MODEL --output list.json", "evaluate --model MODEL --task-argument x",
    "evaluate --model MODEL --task-argument digits=3", "evaluate --model MODEL --split dev",
    "evaluate --model MODEL --dtype float7", "evaluate --model MODEL --task jsonl:empty.json",
    "evaluate --model MODEL --task jsonl:broken.json", "evaluate --model MODEL --data x",
    "evaluate --model MODEL --max-new-tokens 100000 --limit 2", "evaluate --limit many",
    "view", "view /no/such/run", "view DIR", "view list.json", "view broken.gz", "view binary.json",
    "report", "report /no/such/folder", "report DIR", "report list.json", "report broken.csv",
    "compare", "compare /no/such/recipe.yaml", "compare list.json", "compare broken.yaml",
    "compare binary.json", "compare empty.json", "plan /no/such/recipe.yaml", "plan broken.yaml",
    "plan binary.json", "train /no/such/recipe.yaml", "train DIR", "train broken.yaml",
    "train --no_such_flag 1", "train --max_steps", "train --resume --output_dir DIR",
    "train --resume --output_dir /no/such/folder", "train --output_dir list.json",
]  # fmt: skip
CONTENTS: dict[str, bytes] = {
    "list.json": b"[0, 1, 1, 0]",
    "empty.json": b"",
    "broken.json": b"[0, 1,",
    "huge.json": b"[1, 2, 9" + b"0" * 400 + b"]",
    "deep.json": b"[" * 100_000,
    "text.json": b'["a", "b", "c"]',
    "nested.json": b"[[[0, 1], [1, 0]]]",
    "null.json": b"null",
    "binary.json": bytes(range(256)),
    "broken.gz": b"\x1f\x8b\x08\x00broken",
    "broken.csv": b"a,b\n1\n",
    "broken.yaml": b"arms: [1",
}
CASES = {command: command.split() for command in COMMANDS}


def refuse_command(attempt: Attempt) -> Verdict:
    """Run the command in a folder of files; it must be refused."""
    name, command = spread(CASES, attempt.number)
    for file, content in CONTENTS.items():
        (attempt.folder / file).write_bytes(content)
    (attempt.folder / "DIR").mkdir()
    named = {
        "MODEL": str(attempt.bench.scratch / "model"), "DIR": str(attempt.folder / "DIR"),
        **{file: str(attempt.folder / file) for file in CONTENTS},
    }  # fmt: skip
    words = [f"jsonl:{named[w[6:]]}" if w[6:] in CONTENTS else named.get(w, w) for w in command]
    if command[0] == "train" and "--output_dir" not in command:
        words += ["--output_dir", str(attempt.run_folder)]
    wrong = refused_in_one_line(attempt.run(words))
    left = attempt.run_folder.exists() or any((attempt.folder / "DIR").iterdir())
    return Verdict(wrong or ("left a folder behind" if left else None), name)


ROWS = {"misuse": Row("commands typed wrongly", len(CASES), 6, refuse_command)}
