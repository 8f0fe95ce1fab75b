"""A head as a reward function: its prediction at the end of each completion.

The head reads the model it was fitted to, which is loaded a second time and never trained, and not
the policy: a reward that moved with the policy's own states could be raised without another word.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from podsrl.models import load_to_read, load_tokenizer, resolve_model
from podsrl.probe.head import Head, load_head
from podsrl.rewards.functions import Completion, RewardFunction, completion_text


def probe_reward(path: str) -> RewardFunction:
    """Return the reward `probe`: the chance of success, 0 to 1, that a head sees in each text.

    Costs one forward pass of the head's model over each rollout. The model is loaded with the first
    call. Completions are read as texts, end tokens left out.

    Raises `ValueError` for a file that is no head, for one that was fitted at the prompt (all
    rollouts of a prompt would earn the same), for one that does not tell right from wrong among the
    rollouts of one prompt, and for a model that cannot be found; with the first call for a model
    that has changed since.
    """
    head = answer_head(path, f"probe:{path}")
    resolve_model(head.about.model)
    read = functools.cache(lambda: _reader(head))

    def probe(prompts: Sequence[Any], completions: Sequence[Completion], **_: Any) -> list[Any]:
        return read()(prompts, [completion_text(each) for each in completions])

    return probe


def answer_head(path: str, told: str) -> Head:
    """Return a head that tells answers to one question apart.

    told: how errors call it.

    Raises `ValueError` as `probe_reward` does for a head.
    """
    head = load_head(path)
    about = head.about
    if about.at == "prompt":
        raise ValueError(
            f"{told} was fitted at the prompt and gives all rollouts of a prompt the same: "
            "fit one with podsrl probe --at last"
        )
    if not about.tells_within:
        raise ValueError(
            f"{told} tells hard prompts from easy ones, but not right from wrong among the "
            f"rollouts of one prompt: the interval of its AUROC there begins at {about.within_low}"
        )
    return head


def _reader(head: Head) -> Callable[[Sequence[Any], Sequence[str]], list[float]]:
    from podsrl.sampling.tap import states_at

    model = load_to_read(head.about.model)
    head.check(model)
    tokenizer = load_tokenizer(head.about.model)

    def read(prompts: Sequence[Any], texts: Sequence[str]) -> list[float]:
        begins = [
            each
            if isinstance(each, str)
            else tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=True)
            for each in prompts
        ]
        begin_ids = tokenizer(begins, add_special_tokens=False)["input_ids"]
        text_ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        ids = [begin + text for begin, text in zip(begin_ids, text_ids, strict=True)]
        states_BDH = states_at(model, ids, layers=head.about.layers)
        scores: list[float] = head.score(head.of_layers(states_BDH)).tolist()
        return scores

    return read
