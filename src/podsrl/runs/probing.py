"""A probe from a run's rollout log: prompts and rewards that were logged, states of a model.

Shape letters: K items (prompts, rollouts or places in them), D layers, H hidden size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podsrl.probe.auroc import Items
from podsrl.probe.head import About, Head, model_digest
from podsrl.probe.measure import FRAC_HELD_OUT, Measured, measure, told_of_head
from podsrl.probe.pairs import head_of
from podsrl.probe.trivial import trivial_features
from podsrl.runs.folder import FROM_PYTHON, read_json
from podsrl.runs.rollout_log import read_rollouts
from podsrl.runs.rollout_records import question_of
from podsrl.tasks import Task
from podsrl.tasks.questions import QuestionArguments, named_task
from podsrl.tasks.turns import tools_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SUCCESS = 1.0
NUM_PREFIXES = 8
"""Places along a completion, its beginning and its end among them."""
Steps = tuple[int | None, int | None]


@dataclass
class LoggedPrompt:
    """One question of a run and what its rollouts earned, over all steps that asked it."""

    question: str
    texts: list[str] = field(default_factory=list)
    is_right: list[bool] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return sum(self.is_right) / len(self.is_right)


@dataclass(frozen=True)
class Logged:
    """What a rollout log has to fit a probe on."""

    prompts: list[LoggedPrompt]
    label: str
    num_without_reward: int
    """Rollouts left out: never sampled, stopped, or not graded."""


def read_logged(
    path: Path, *, reward: str | None = None, steps: Steps = (None, None), most: int | None = None
) -> Logged:
    """Return the questions of a rollout log with their rollouts, newest last.

    Equal questions are one, in whatever steps they were asked, so that none is both fitted on and
    held out. A rollout is right where the reward gave it 1 or more.

    Args:
        path: of the log.
        reward: name of the reward function; None: the first.
        steps: first and last that count, None for no bound.
        most: so many questions, the newest; None for all.

    Raises `ValueError` for a reward that the log does not have, and without any rollout.
    """
    header, records = read_rollouts(path)
    names = header["reward_names"]
    if reward is not None and reward not in names:
        raise ValueError(f"--reward is {reward}, but {path} has {', '.join(names)}")
    place = names.index(reward) if reward else 0
    found: dict[str, LoggedPrompt] = {}
    num_without = 0
    for record in records:
        if not _is_within(record, steps):
            continue
        known = [i for i, value in enumerate(record["parts"][place]) if value is not None]
        known = [i for i in known if record["texts"][i] is not None]
        num_without += len(record["rewards"]) - len(known)
        if known:
            # Taken out and put in again: the newest stand last.
            prompt = found.pop(record["question"], None) or LoggedPrompt(record["question"])
            prompt.texts += [record["texts"][i] for i in known]
            prompt.is_right += [record["parts"][place][i] >= SUCCESS for i in known]
            found[record["question"]] = prompt
    if not found:
        raise ValueError(f"{path} has no rewarded rollout in these steps: choose others")
    prompts = list(found.values())[-most if most else 0 :]
    return Logged(prompts, f"{names[place]} >= {SUCCESS:g}", num_without)


def _is_within(record: Mapping[str, Any], steps: Steps) -> bool:
    first, last = steps
    after = first is None or record["step"] >= first
    return "rewards" in record and after and (last is None or record["step"] <= last)


@dataclass(frozen=True)
class Asked:
    """How the questions of a run are put to a model, in tokens."""

    prompt_ids: dict[str, list[int]]
    num_bare: int
    """Questions that no training row has, which are put as a user's message alone."""


def prompts_in_tokens(
    folder: Path, tokenizer: "PreTrainedTokenizerBase", questions: Sequence[str]
) -> Asked:
    """Return the prompts of these questions as the run's task puts them.

    A run of a script has a task that only the script knows: its questions are put bare.
    """
    settings = read_json(folder / "config.json")
    rows: dict[str, Any] = {}
    tools = None
    if settings.get("task") not in (None, FROM_PYTHON):
        task = _task_of(settings)
        rows = {str(question_of(row["prompt"])): row["prompt"] for row in task.rows("train")}
        tools = None if task.environment is None else tools_of(task.environment())
    asked = [rows.get(each) or [{"role": "user", "content": each}] for each in questions]
    texts = [
        tokenizer.apply_chat_template(each, tools=tools, tokenize=False, add_generation_prompt=True)
        for each in asked
    ]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    num_bare = sum(each not in rows for each in questions)
    return Asked(dict(zip(questions, ids, strict=True)), num_bare)


def _task_of(settings: Mapping[str, Any]) -> Task:
    names = [each.name for each in fields(QuestionArguments)]
    given = {name: settings[name] for name in names if settings.get(name) is not None}
    return named_task(QuestionArguments(**given), seed=settings["seed"])


@dataclass(frozen=True)
class Places:
    """Where the states of one or more items are to be taken in a text."""

    prompt: int
    """Number of the item's prompt."""
    is_right: bool | None
    """None: the item is a whole prompt."""
    token_ids: list[int]
    at: list[int]
    trivial: dict[str, float]


def places_of(
    logged: Logged,
    asked: Asked,
    tokenizer: "PreTrainedTokenizerBase",
    at: str,
    *,
    rollouts_each: int,
) -> Iterator[Places]:
    """Yield the texts to read and where: of each prompt once, or of `rollouts_each` rollouts."""
    for number, prompt in enumerate(logged.prompts):
        ids = asked.prompt_ids[prompt.question]
        trivial = trivial_features(prompt.question, num_tokens=len(ids))
        if at == "prompt":
            yield Places(number, None, ids, [len(ids) - 1], trivial)
            continue
        texts = prompt.texts[:rollouts_each]
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        for tokens, is_right in zip(encoded, prompt.is_right, strict=False):
            last = len(ids) + len(tokens) - 1
            ends = [last] if at == "last" else _spread(len(ids) - 1, last)
            more = {"completion tokens": float(len(tokens))} if at == "last" else {}
            yield Places(number, is_right, ids + tokens, ends, trivial | more)


def _spread(first: int, last: int) -> list[int]:
    """At most `NUM_PREFIXES` places from first to last, evenly; 0 and 14 give 0, 2, ..., 14."""
    num = min(NUM_PREFIXES, last - first + 1)
    return [first + round(i * (last - first) / max(1, num - 1)) for i in range(num)]


def fit_probe(
    model: "PreTrainedModel",
    name: str,
    places: Sequence[Places],
    logged: Logged,
    *,
    at: str,
    layers: Sequence[int],
    kind: str = "logistic",
    seed: int,
    batch_size: int,
    frac_held_out: float = FRAC_HELD_OUT,
    report: Callable[[int], None] = lambda count: None,
) -> tuple[Head, Measured]:
    """Return the head that the best of the layers gives, and how it does on held-out prompts.

    It may be one that `save_head` refuses. Arguments are those of `states_at` and `measure`.
    """
    from podsrl.sampling.tap import decoder_layers, states_at

    states_KDH = states_at(
        model,
        [each.token_ids for each in places],
        [each.at for each in places],
        layers=layers,
        batch_size=batch_size,
        report=report,
    )
    found = measure(
        states_KDH.cpu().double().numpy(),
        _items(logged, places),
        [_trivial(each, place, at) for each in places for place in each.at],
        seed=seed,
        kind=kind,
        frac_held_out=frac_held_out,
    )
    about = About(
        model=name,
        model_digest=model_digest(model),
        layers=[layers[place] for place in found.choice.places],
        num_layers=len(decoder_layers(model)),
        at=at,
        kind=kind,
        label=logged.label,
        **told_of_head(found.figures),
    )
    return head_of(found.choice.fitted, about), found


def _items(logged: Logged, places: Sequence[Places]) -> Items:
    if all(each.is_right is None for each in places):
        return Items.of_prompts([prompt.rate for prompt in logged.prompts])
    pairs = [(each.prompt, bool(each.is_right)) for each in places for _ in each.at]
    return Items.of_rollouts([prompt for prompt, _ in pairs], [right for _, right in pairs])


def _trivial(places: Places, place: int, at: str) -> dict[str, float]:
    """The trivial features of one place, and how far along the answer it stands."""
    if at != "prefix":
        return places.trivial
    return places.trivial | {"tokens so far": float(place - places.at[0])}
