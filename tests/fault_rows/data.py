"""Data files as people have them: trained on rightly, or refused by file and line."""

import json
from typing import Any

from fault_rows.case import Attempt, Row, Verdict, spread
from fault_rows.outcome import last_line, metrics_of, refused_in_one_line
from fault_rows.recipes import left_behind

LINES = [json.dumps({"question": f"digit of {i}?", "answer": i % 10}) for i in range(100)]


def with_line(**fields: Any) -> str:
    """The questions with one more, which has these fields besides or instead."""
    line = json.dumps({"question": "a?", "answer": "7", **fields}, ensure_ascii=False)
    return "\n".join([*LINES, line]) + "\n"


def raw_line(text: str) -> str:
    return "\n".join([*LINES, text]) + "\n"


ALL = "\n".join(LINES)
# name -> content of data.jsonl; these are valid.
RIGHT: dict[str, str | bytes] = {
    "a byte-order mark": b"\xef\xbb\xbf" + ALL.encode(),
    "U+2028 in a question": with_line(question="a\u2028b"),
    "U+2029 in a question": with_line(question="a\u2029b"),
    "U+0085 in a question": with_line(question="a\u0085b"),
    "line ends of Windows": ALL.replace("\n", "\r\n"),
    "blank lines": ALL.replace("\n", "\n\n  \n\t\n"),
    "no line feed at the end": ALL,
    "answers of numbers": with_line(answer=7),
    "an answer of a decimal": with_line(answer=7.5),
    "further columns": with_line(extra=[1, {"a": None}], other=None),
    "questions twice": ALL + "\n" + ALL,
    "a prompt of messages": with_line(prompt=[{"role": "user", "content": "a?"}]),
    "a null prompt beside a question": with_line(prompt=None),
    "emoji": with_line(question="\U0001f600?"),
    "a zero byte in a question": with_line(question="a\x00b"),
    "a gold answer of 5,000 digits": with_line(answer="9" * 5000),
}
# These are not.
WRONG: dict[str, str | bytes] = {
    "an empty file": "",
    "blank lines alone": "\n\n \n",
    "a byte-order mark alone": b"\xef\xbb\xbf",
    "one question": LINES[0] + "\n",
    "a torn last line": raw_line('{"question": "a?", "ans'),
    "a CSV file": "question,answer\na,7\n",
    "a JSON list": "[" + ",\n".join(LINES) + "]",
    "an indented JSON object": json.dumps(json.loads(LINES[0]), indent=2),
    "two records on a line": raw_line(LINES[0] + LINES[1]),
    "a list as record": raw_line("[1, 2]"),
    "a number as record": raw_line("7"),
    "null as record": raw_line("null"),
    "text as record": raw_line('"a"'),
    "an empty record": raw_line("{}"),
    "no answer": raw_line('{"question": "a?"}'),
    "no question": raw_line('{"answer": "7"}'),
    "answer null": with_line(answer=None),
    "answer a list": with_line(answer=["7"]),
    "answer a mapping": with_line(answer={"value": 7}),
    "answer true": with_line(answer=True),
    "answer not a number": with_line(answer=float("nan")),
    "answer infinite": with_line(answer=float("inf")),
    "answer empty": with_line(answer=""),
    "answer blank": with_line(answer="  "),
    "question null": with_line(question=None),
    "question empty": with_line(question=""),
    "question a number": with_line(question=7),
    "question a list": with_line(question=["a?"]),
    "question a mapping": with_line(question={"text": "a?"}),
    "question true": with_line(question=True),
    "half a surrogate pair": raw_line('{"question": "a\\ud800b", "answer": "7"}'),
    "prompt an empty list": with_line(prompt=[]),
    "prompt a list of text": with_line(prompt=["a?"]),
    "a message without content": with_line(prompt=[{"role": "user"}]),
    "a message of null": with_line(prompt=[{"role": "user", "content": None}]),
    "a role of a number": with_line(prompt=[{"role": 1, "content": "a?"}]),
    "prompt a number": with_line(prompt=7),
    "100,000 brackets": raw_line("[" * 100_000),
    "a number of 5,000 digits": raw_line('{"question": "a?", "answer": ' + "9" * 5000 + "}"),
    "Latin-1": ALL.encode() + b'\n{"question": "caf\xe9", "answer": "7"}\n',
    "UTF-16": ALL.encode("utf-16"),
    "zero bytes": bytes(5000),
    "a prompt longer than the context": with_line(question="a" * 1000),
    "a line of five megabytes": with_line(question="a" * 5_000_000),
}
CASES = {**RIGHT, **WRONG}


def read_data(attempt: Attempt) -> Verdict:
    """Train on the file for a step, or be refused with its name."""
    name, content = spread(CASES, attempt.number)
    # Named train, all of it is trained on; what a bad line does cannot hide in the test split.
    path = attempt.folder / "train.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = {path.name for path in attempt.folder.iterdir()}
    changes = {"max_steps": 1, "evaluate_limit": 0, "save_strategy": None, "save_steps": None}
    ended = attempt.run(attempt.words(task=f"jsonl:{path}", **changes))
    if name in RIGHT:
        steps = len(metrics_of(attempt.run_folder))
        held = ended.status == 0 and steps == 1 and not ended.has_traceback
        return Verdict(None if held else f"not read: {last_line(ended)}", name)
    wrong = refused_in_one_line(ended)
    if wrong is None and path.name not in ended.text and "prompt" not in ended.text:
        wrong = f"names no file: {last_line(ended)}"
    left = left_behind(attempt.folder, before)
    return Verdict(wrong or (f"left {left} behind" if left else None), name)


ROWS = {"data": Row("data files as people have them", len(CASES), 5, read_data)}
