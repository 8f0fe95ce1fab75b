"""A small model that can add but often slips: supervised training on one core in ten minutes.

    python benchmarks/warm_up.py --output runs/adder

Comparisons that need many seeds start from this model instead of the packaged one: a Llama of
less than a million parameters with a tokenizer of its own. Its teacher works out
`3 + 4 - 9 + 1 =` as ` 7 -2 -1`, running totals first, but slips on the last term: with a
probability between 0.35 and 0.98 that grows with the first term, in one of three ways that follow
from the second. So the model knows how to be right, and is so on some questions more often than on
others, which is what a pretrained model brings to reinforcement learning. The questions follow a
seed that no training run uses; held-out questions are never among them.

`--teacher easy` slips with probability 0.6 on every question, `--teacher hard` with 0.98, but 0.3
where the first term is 0 or 1. `--teacher hard-long` slips alike, but says 24 words first that mean
nothing, each any of eight: rollouts of one group differ in them, which is noise to the update.

`--teacher pairs` and `--teacher thinking` answer the tasks of recipes/small_tasks.py, which says
how, and how often wrong.

`--teacher creeping` plays the task `guess` instead, by calling its tool, and badly: of the numbers
that are still possible it guesses the smallest every second time, else any.
"""

import argparse
import itertools
import math
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from podsrl.evaluate import evaluate
from podsrl.plugins import load_function, load_plugins
from podsrl.tasks import Task, load_task
from podsrl.tasks.guess import NumberToGuess

TASK = {"num_terms": 4, "max_digits": 1}
SEED = 1_000_003
PLAYER = "creeping"
# At 0.8 the model jumps too seldom to know whereto: it then unlearns creeping faster than it learns
# to jump, and its reward stays where it was.
CREEPS = 0.5


def hard(first_term: int) -> float:
    return 0.3 if first_term in (0, 1) else 0.98


# The probability of a slip, from the first term.
TEACHERS: dict[str, Callable[[int], float]] = {
    "graded": lambda first_term: 0.35 + 0.07 * first_term,
    "easy": lambda first_term: 0.6,
    "hard": hard,
    "hard-long": hard,
}
SMALL_TASKS = str(Path(__file__).resolve().parents[1] / "recipes" / "small_tasks.py")
# Teachers of tasks that are a plugin: the function that says what they say.
TEACHERS_OF_OWN = {"pairs": "taught_pair", "thinking": "taught_thought"}
# Teachers that say so where they do not know: the sign of the steps that they are unsure of.
UNSURE = {"unsure-minus": "-", "unsure-plus": "+"}
HESITATES, SLIPS_UNSURE, SLIPS_ELSE = 0.7, 0.95, 0.1
NUM_FILLERS = {"hard-long": 24}
# Tokens of an evaluated answer at most, where 16 are not what is needed.
LONGEST = {"hard-long": 40, **dict.fromkeys(UNSURE, 20), PLAYER: 64, "pairs": 8, "thinking": 24}
FILLERS = ("well", "so", "then", "now", "and", "thus", "next", "here")
PIECES = Regex(r"</?[a-z]+>| ?[A-Za-z]+|\d|[^\w]")
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
# A dialogue: what is asked, `> guess(number=42)`, what came back, `> ...`, each on a line.
PIECES_OF_CALLS = Regex(r"\n> |[a-z]+\([a-z]+=| ?[A-Za-z]+|\d+|[^\w]")
TEMPLATE_OF_CALLS = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ '\n> ' }}"
    "{% elif message['role'] == 'tool' %}{{ '\n' }}{% endif %}{{ message['content'] }}"
    "{% for call in message['tool_calls'] or [] %}{{ call['function']['name'] }}("
    "{% for name, value in call['function']['arguments'].items() %}{{ name }}={{ value }}"
    "{% endfor %}){% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n> ' }}{% endif %}"
)
CALLS = {
    "defaults": {"role": "assistant"},
    "start_anchor": "\n> ",
    "fields": {
        "tool_calls": {
            "open": "guess(number=",
            "close": ")",
            "content": "text",
            "repeats": True,
            "transform": {
                "type": "function",
                "function": {"name": "guess", "arguments": {"number": "{content}"}},
            },
        },
        "content": {"close": "<end>", "content": "text"},
    },
}


def make_tokenizer(texts: list[str], *, calls: bool = False) -> PreTrainedTokenizerFast:
    """Words, single digits and single signs; decoding gives the text back.

    calls: of dialogues with a tool, whose numbers are one token each.
    """
    split = pre_tokenizers.Split(PIECES_OF_CALLS if calls else PIECES, behavior="isolated")
    pieces = {piece for text in texts for piece, _ in split.pre_tokenize_str(text)}
    words = ["<pad>", "<end>", "<unknown>", *sorted(pieces)]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unknown>")
    )
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>"
    )
    wrapped.chat_template = TEMPLATE_OF_CALLS if calls else TEMPLATE
    if calls:
        wrapped.response_template = CALLS
    return wrapped


def make_model(tokenizer: PreTrainedTokenizerFast, width: int, layers: int) -> LlamaForCausalLM:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def worked_answer(
    question: str, slips: random.Random | None = None, teacher: str = "graded"
) -> str:
    """The running totals of the question's sum: '3 + 4 - 9 + 1 =' gives ' 7 -2 -1'.

    With `slips` the last total may be left out, be computed with the wrong sign, or be off by one.
    """
    pieces = question.split(": ")[1].removesuffix(" =").split()
    terms = [int(pieces[0])]
    terms += [int(s + t) for s, t in zip(pieces[1::2], pieces[2::2], strict=True)]
    totals = list(itertools.accumulate(terms))[1:]
    if slips is not None and slips.random() < TEACHERS[teacher](terms[0]):
        before, kind = totals[-2], abs(terms[1]) % 3
        totals[-1:] = ([], [before - terms[-1]], [totals[-1] + 1])[kind]
    random_words = slips or random.Random(question)
    fillers = random_words.choices(FILLERS, k=NUM_FILLERS.get(teacher, 0))
    return "".join(f" {each}" for each in [*fillers, *totals])


def unsure_answer(question: str, slips: random.Random, sign: str) -> str:
    """The running totals; those of the sign may follow a "well", and be made by the other sign.

    Example: "3 + 4 - 9 + 1 =" may give " 7 well 16 17" by the teacher that is unsure of minus.
    """
    pieces = question.split(": ")[1].removesuffix(" =").split()
    total, said = int(pieces[0]), ""
    for operation, term in zip(pieces[1::2], pieces[2::2], strict=True):
        total += int(operation + term)
        if operation == sign:
            hesitates = slips.random() < HESITATES
            said += " well" if hesitates else ""
            if slips.random() < (SLIPS_UNSURE if hesitates else SLIPS_ELSE):
                total -= 2 * int(operation + term)
        said += f" {total}"
    return said


def played(row: dict[str, Any], moves: random.Random) -> list[str]:
    """The dialogue of a creeping player: what it is told and what it says, in turn.

    Example: ["Find the number from 3 to 30.\\n> ", "guess(number=3)", "\\nhigher\\n> ", ...].
    """
    game = NumberToGuess()
    game.reset(**row)
    low, high = row["low"], row["high"]
    said = [f"{row['prompt'][0]['content']}\n> "]
    while True:
        number = low if moves.random() < CREEPS else moves.randint(low, high)
        reply = game.guess(number)
        said += [f"guess(number={number})", f"\n{reply}\n> "]
        if reply in ("right", "over"):
            return [*said, "done"]
        low, high = (number + 1, high) if reply == "higher" else (low, number - 1)


def told(row: dict[str, Any], slips: random.Random | None, teacher: str) -> list[str]:
    """What the model is told and what it is to say, in turn."""
    if teacher == PLAYER:
        return played(row, slips or random.Random(row["answer"]))
    question = row["prompt"][0]["content"]
    if teacher in TEACHERS_OF_OWN:
        taught = load_function(f"{SMALL_TASKS}:{TEACHERS_OF_OWN[teacher]}")
        return [question, taught(row, slips or random.Random(question))]
    if teacher in UNSURE:
        return [
            question,
            unsure_answer(question, slips or random.Random(question), UNSURE[teacher]),
        ]
    return [question, worked_answer(question, slips, teacher)]


def batch(
    rows: list[dict[str, Any]], tokenizer: Any, slips: random.Random, teacher: str = "graded"
) -> dict[str, torch.Tensor]:
    """Rows and what the teacher says as tokens; those that the model is told are no targets."""
    dialogues = [told(row, slips, teacher) for row in rows]
    texts = sorted({text for each in dialogues for text in each})
    tokens_of = dict(zip(texts, tokenizer(texts)["input_ids"], strict=True))
    ids, labels = [], []
    for dialogue in dialogues:
        tokens: list[int] = []
        targets: list[int] = []
        for place, text in enumerate(dialogue):
            own = place % 2
            piece = [*tokens_of[text], *([tokenizer.eos_token_id] if own else [])]
            tokens += piece
            targets += piece if own else [-100] * len(piece)
        ids.append(torch.tensor(tokens))
        labels.append(torch.tensor(targets))
    pad = torch.nn.utils.rnn.pad_sequence
    input_ids = pad(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != tokenizer.pad_token_id).long(),
        "labels": pad(labels, batch_first=True, padding_value=-100),
    }


def learning_rate(step: int, arguments: argparse.Namespace) -> float:
    """Warmed up over 50 steps, then down to nothing along a cosine."""
    return min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / arguments.steps))


def train(model: Any, tokenizer: Any, task: Task, arguments: argparse.Namespace) -> None:
    rows, slips = task.rows("train"), random.Random(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step, arguments)
    )
    longest = LONGEST.get(arguments.teacher, 16)
    start = time.perf_counter()
    for step in range(arguments.steps):
        first = step * arguments.batch_size % (len(rows) - arguments.batch_size)
        drawn = rows[first : first + arguments.batch_size]
        loss = model(**batch(drawn, tokenizer, slips, arguments.teacher)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if (step + 1) % arguments.report_every == 0:
            accuracy = held_out_accuracy(model, tokenizer, task, longest)
            seconds = time.perf_counter() - start
            print(f"step {step + 1} loss {loss:.3f} {accuracy} {seconds:.0f} s", flush=True)


def held_out_accuracy(
    model: Any, tokenizer: Any, task: Task, max_new_tokens: int
) -> dict[str, float]:
    found = evaluate(
        model, tokenizer, task, limit=256, num_samples=4, max_new_tokens=max_new_tokens
    )
    summary = found.summary
    names = {"greedy": "accuracy_greedy", "sampled": "accuracy_sampled"}
    return {short: round(summary[name]["value"], 3) for short, name in names.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/adder"))
    teachers = [*TEACHERS, *TEACHERS_OF_OWN, *UNSURE, PLAYER]
    parser.add_argument("--teacher", choices=teachers, default="graded")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--report_every", type=int, default=250)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=3)
    arguments = parser.parse_args()
    calls = arguments.teacher == PLAYER
    name, options = ("guess", {}) if calls else ("arithmetic", TASK)
    if arguments.teacher in TEACHERS_OF_OWN:
        load_plugins([SMALL_TASKS])
        name, options = arguments.teacher, {}
    task = load_task(name, seed=SEED, num_train=200_000, **options)
    rows = task.rows("train", 2000)
    texts = [*("".join(told(row, None, arguments.teacher)) for row in rows), "no number"]
    tokenizer = make_tokenizer(texts, calls=calls)
    model = make_model(tokenizer, arguments.width, arguments.layers)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, task, arguments)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
