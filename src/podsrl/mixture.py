"""Several models on the same questions, taking turns token by token: `podsrl evaluate --mixture`.

Collab (arXiv 2503.21720), greedily: see `podsrl.sampling.mixture`. What decides between models are
heads on their hidden states (`podsrl probe`), never what is right.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from podsrl.answering import Answer, encode, graded
from podsrl.evaluate import Evaluation, problems_of, summarise
from podsrl.intervals import mean_interval, share_interval
from podsrl.tasks.base import Row, Task
from podsrl.tasks.questions import with_answers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from podsrl.sampling.mixture import Agent, Mixed, Pull


@dataclass(frozen=True)
class Mixture:
    """What a mixture has answered, whose tokens it is made of, and what it took."""

    evaluation: Evaluation
    """Of its greedy answers, as one model's."""
    answers: list["Mixed"]
    """To each problem."""
    num_read: list[int]
    """Tokens that each model has read, the prompts apart; a pull's model comes last."""


def evaluate_mixture(
    agents: Sequence["Agent"],
    tokenizers: Sequence["PreTrainedTokenizerBase"],
    task: Task,
    *,
    split: str = "test",
    limit: int | None = 256,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    pull: "Pull | None" = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Mixture:
    """Return how well a mixture answers the first problems of a split, greedily.

    The questions, prompts, batches and figures are those of `podsrl.evaluate.evaluate`; so a
    mixture of one model with itself has its answers.

    tokenizers: of each model; where there is a pull, that of its reference comes last.

    Raises `ValueError` for models with different tokenizers or chat templates, for one that our
    sampler does not serve, and as `evaluate` does.
    """
    from podsrl.sampling.complete import batches, plain_config
    from podsrl.sampling.mixture import decode_mixture
    from podsrl.sampling.settings import settings_from

    begin = time.perf_counter()
    most = task.max_new_tokens if max_new_tokens is None else max_new_tokens
    rows = with_answers(task.rows(split, limit), split)
    models = [*(each.model for each in agents), *([pull.model] if pull else [])]
    prompts = same_prompts(models, tokenizers, task, rows, most)
    config = plain_config(models[0], tokenizers[0], max_new_tokens=most, temperature=None)
    check_served(models, config)
    settings = settings_from(models[0], config)
    found: dict[int, Mixed] = {}
    num_read = [0] * len(models)
    for batch in batches(prompts, batch_size):
        asked = [prompts[i] for i in batch]
        answers, of_batch = decode_mixture(agents, asked, settings, pull=pull)
        found |= dict(zip(batch, answers, strict=True))
        num_read = [a + b for a, b in zip(num_read, of_batch, strict=True)]
        progress(len(found), len(prompts))
    answers = [found[i] for i in range(len(prompts))]
    ends = settings.eos_token_ids
    completions = [(each.token_ids, each.token_ids[-1] not in ends) for each in answers]
    greedy = graded(task, tokenizers[0], completions, rows)
    samples: list[list[Answer]] = [[] for _ in rows]
    summary = summarise(greedy, samples, task, rows)
    summary["seconds"] = time.perf_counter() - begin
    told = {"task": task.name, "split": split, "num_samples": 0, "temperature": None}
    told |= {"max_new_tokens": most}
    problems = problems_of(rows, greedy, samples)
    return Mixture(Evaluation(settings=told, summary=summary, problems=problems), answers, num_read)


def figures_of(mixture: Mixture, alone: Sequence[Evaluation]) -> dict[str, Any]:
    """Return what a mixture does beside each of its models alone, on the same problems.

    Returns:
        - `mixture`, `alone`: accuracy of greedy answers, of the mixture and of each model
        - `minus_alone`: the mixture's minus each model's, paired by problem
        - `share_agreed`: of the mixture's tokens those that all models proposed
        - `share_chosen`: of the others, those of each model; None where there are none
        - `tokens_read`: for a problem, by each model for the mixture, the reference of a pull last;
          `tokens_read_alone`: by each model for its own answer. Prompts are not counted, and an
          answer's last token is not read

        Each accuracy and difference has a 95 % interval over problems (`podsrl.intervals`).
    """
    right, rights = _is_right(mixture.evaluation), [_is_right(each) for each in alone]
    owners = [owner for each in mixture.answers for owner in each.chosen]
    disputed = [owner for owner in owners if owner >= 0]
    shares = [disputed.count(number) / max(1, len(disputed)) for number in range(len(alone))]
    return {
        "num_problems": len(right),
        "mixture": share_interval(right),
        "alone": [share_interval(each) for each in rights],
        "minus_alone": [_difference(right, each) for each in rights],
        "share_agreed": 1 - len(disputed) / len(owners),
        "share_chosen": shares if disputed else [None] * len(alone),
        "tokens_read": [num / len(right) for num in mixture.num_read],
        "tokens_read_alone": [each.summary["mean_length"]["value"] - 1 for each in alone],
    }


def same_prompts(
    models: Sequence[Any],
    tokenizers: Sequence["PreTrainedTokenizerBase"],
    task: Task,
    rows: Sequence[Row],
    max_new_tokens: int,
) -> list[list[int]]:
    """Return the prompts in tokens, which are those of all models.

    Raises `ValueError` for models with different tokens, end tokens or chat templates.
    """
    first, prompts = tokenizers[0], encode(models[0], tokenizers[0], task, rows, max_new_tokens)
    for number, (model, tokenizer) in enumerate(zip(models, tokenizers, strict=True), 1):
        what = None
        if tokenizer.get_vocab() != first.get_vocab():
            what = f"its {len(tokenizer)} tokens are not the first one's {len(first)}"
        elif tokenizer.eos_token_id != first.eos_token_id:
            what = "answers end with another token"
        elif encode(model, tokenizer, task, rows, max_new_tokens) != prompts:
            what = "its tokenizer or chat template makes other tokens of the questions"
        if what is not None:
            raise ValueError(
                f"models of a mixture take turns token by token, but of model {number} {what}: "
                "take models that were trained from the same one, or vote with --switch"
            )
    return prompts


def check_served(models: Sequence[Any], config: Any) -> None:
    """Raise `ValueError` for models that our sampler does not serve, or on several devices."""
    from podsrl.sampling.settings import can_sample

    for number, model in enumerate(models, 1):
        if (reason := can_sample(model, config)) is not None:
            raise ValueError(f"a mixture cannot be decoded with model {number}: {reason}")
        if model.device != models[0].device:
            raise ValueError(
                f"model {number} is on {model.device} and the first on {models[0].device}: put "
                "the models of a mixture on one device"
            )


def _is_right(evaluation: Evaluation) -> list[float]:
    return [float(bool(each["greedy"]["correct"])) for each in evaluation.problems]


def _difference(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    return dict(mean_interval([a - b for a, b in zip(one, other, strict=True)]))
