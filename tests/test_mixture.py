"""Models that take turns token by token: by hand, against decoding without a cache, and refused."""

import argparse
import json
import math
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from helpers.heads import about
from helpers.tiny import make_model, make_tokenizer
from podsrl.cli import evaluate as verb
from podsrl.cli.mixing import check_mixture
from podsrl.evaluate import Evaluation, evaluate
from podsrl.mixture import Mixture, check_served, evaluate_mixture, figures_of
from podsrl.models import load_model
from podsrl.probe.head import FORMAT, About, load_head, model_digest
from podsrl.sampling.complete import plain_config
from podsrl.sampling.mixture import (
    AGREED,
    Agent,
    Mixed,
    Pull,
    choose,
    decode_mixture,
    divergence,
)
from podsrl.sampling.sample import sample
from podsrl.sampling.settings import SamplingSettings
from podsrl.sampling.tap import states_at
from podsrl.tasks import load_task
from podsrl.tasks.base import Task, make_row, make_task

EOS = 1
NAN = float("nan")


def settings(max_new_tokens: int) -> SamplingSettings:
    return SamplingSettings(max_new_tokens, (EOS,), pad_token_id=0, do_sample=False)


def constant(states: Tensor) -> Tensor:
    return states.new_full(states.shape[:-1], 0.5)


def toy_task() -> Task:
    def rows(split: str) -> list[Any]:
        return [make_row(f"{'1' * (i % 5)}{i} + 1 =", str(i + 1), tags=False) for i in range(9)]

    return make_task("toy", rows, answer_format="number", max_new_tokens=10)


def test_the_highest_value_and_its_ties() -> None:
    # Columns: the second is higher; equal values: the first model's; a NaN is never higher.
    proposed = torch.tensor([[5, 5, 5, 5], [7, 7, 7, 7], [9, 9, 9, 9]])
    values = torch.tensor([[0.3, 0.4, 0.2, NAN], [0.4, 0.4, NAN, 0.9], [0.35, 0.1, 0.2, 0.9]])
    token_B, model_B = choose(proposed, values)
    assert token_B.tolist() == [7, 5, 5, 5] and model_B.tolist() == [1, 0, 0, 0]


def table(follows: dict[int, int], values: dict[int, float]) -> Agent:
    """A model whose next token follows from the last alone, and what each token is worth to it."""
    model = make_model(hidden_size=48)
    with torch.no_grad():
        for layer in model.model.layers:  # nothing is added to a token's embedding
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(48))
        model.lm_head.weight.zero_()
        for last, following in follows.items():
            model.lm_head.weight[following, last] = 1.0
    weights = torch.tensor([values.get(token, 0.0) for token in range(48)])
    return Agent(model, 1, lambda states: states @ weights)


def test_two_models_by_hand() -> None:
    """After 10 one model proposes 11 (.3) and the other 13 (.6): 13. After 13 15 and 14 are worth
    .5 each: the first model's, 15. After 15 both end. The other prompt ends at once.
    """
    one = table({10: 11, 13: 15, 15: EOS, 20: EOS}, {11: 0.3, 15: 0.5})
    two = table({10: 13, 13: 14, 15: EOS, 20: EOS}, {13: 0.6, 14: 0.5})
    mixed, num_read = decode_mixture([one, two], [[10], [5, 20]], settings(6))
    assert mixed == [Mixed([13, 15, EOS], [1, 0, AGREED]), Mixed([EOS], [AGREED])]
    # Each reads the proposals of both rows, and 13 in the one that goes on; 15 or 14, and 15.
    assert num_read == [4 + 1, 4 + 1]
    # Cut off after two: what was chosen last is not read.
    cut, num_read = decode_mixture([one, two], [[10]], settings(2))
    assert cut == [Mixed([13, 15], [1, 0])] and num_read == [3, 3]
    # In the other order the tie falls to the other, after which the first knows no end.
    turned, _ = decode_mixture([two, one], [[10]], settings(2))
    assert turned == [Mixed([13, 14], [0, 0])]


def linear(weights_H: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda states: torch.sigmoid(states.float() @ weights_H)


def without_cache(agents: list[Agent], prompt: list[int], most: int) -> Mixed:
    """The same by one pass over everything for each token and each value."""
    ids, chosen = list(prompt), []
    while len(chosen) < most:
        with torch.no_grad():
            logits = [each.model(torch.tensor([ids])).logits[0, -1] for each in agents]
        proposed = [int(each.argmax()) for each in logits]
        values = [
            float(each.value(states_at(each.model, [[*ids, token]], layers=[each.layer])[0]))
            for each, token in zip(agents, proposed, strict=True)
        ]
        best = max(range(len(agents)), key=lambda i: values[i])
        ids.append(proposed[best])
        chosen.append(AGREED if len(set(proposed)) == 1 else best)
        if ids[-1] == EOS:
            break
    return Mixed(ids[len(prompt) :], chosen)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_equal_to_decoding_without_a_cache(family: str) -> None:
    generator = torch.Generator().manual_seed(1)
    agents = []
    for seed in range(3):
        model = make_model(family, seed=seed, tie_word_embeddings=False)
        agents.append(Agent(model, 1 + seed % 2, linear(torch.randn(32, generator=generator))))
    prompts = [[5, 6, 7], [9], [12, 3, 4, 30, 8, 8, 20], [11, 40]]
    mixed, _ = decode_mixture(agents, prompts, settings(12))
    assert mixed == [without_cache(agents, prompt, 12) for prompt in prompts]
    owners = {owner for each in mixed for owner in each.chosen}
    assert owners >= {0, 1, 2}  # all have had their turns


def greedy(evaluation: Evaluation) -> list[Any]:
    return [problem["greedy"] for problem in evaluation.problems]


@pytest.mark.parametrize("value", [constant, lambda states: states[:, 0]])
def test_one_model_twice_is_that_model(value: Callable[[Tensor], Tensor]) -> None:
    model, tokenizer, task = make_model(), make_tokenizer(), toy_task()
    alone = evaluate(model, tokenizer, task, batch_size=4)
    agents = [Agent(model, layer, value) for layer in (1, 2)]
    model.train()
    mixture = evaluate_mixture(agents, [tokenizer] * 2, task, batch_size=4)
    assert greedy(mixture.evaluation) == greedy(alone)
    assert model.training and not any(layer._forward_hooks for layer in model.model.layers)
    figures = figures_of(mixture, [alone, alone])
    assert figures["share_agreed"] == 1.0 and figures["share_chosen"] == [None, None]
    # Nothing is read but what the model itself reads.
    assert figures["tokens_read"] == pytest.approx(figures["tokens_read_alone"])
    assert figures["mixture"] == figures["alone"][0]
    same = {name: mixture.evaluation.summary[name] for name in ("mean_length", "truncated_share")}
    assert same.items() <= alone.summary.items()


def test_a_constant_value_is_the_first_model() -> None:
    tokenizer, task = make_tokenizer(), toy_task()
    models = [make_model(seed=seed) for seed in (0, 1)]
    first = evaluate(models[0], tokenizer, task, batch_size=64)
    agents = [Agent(model, 2, constant) for model in models]
    mixture = evaluate_mixture(agents, [tokenizer] * 2, task, batch_size=64)
    assert greedy(mixture.evaluation) == greedy(first)
    figures = figures_of(mixture, [first, first])
    assert figures["share_chosen"] == [1.0, 0.0] and figures["share_agreed"] < 1
    assert all(num > figures["tokens_read_alone"][0] for num in figures["tokens_read"])


def test_divergence_by_hand() -> None:
    # Halves against 1/4 and 3/4, and against themselves.
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    reference = torch.tensor([[0.0, math.log(3)], [1.0, 1.0]])
    expected = [math.log(2) / 2 + math.log(2 / 3) / 2, 0.0]
    assert divergence(logits, reference).tolist() == pytest.approx(expected, abs=1e-7)


def test_with_a_constant_value_the_model_nearest_the_reference_writes() -> None:
    """Whatever alpha is, as the chances are equal; the reference itself is at 0, nearer than all.

    With the first model as the reference the first writes, with the second the second does.
    """
    tokenizer, task = make_tokenizer(), toy_task()
    models = [make_model(seed=seed) for seed in (0, 1)]
    agents = [Agent(model, 2, constant) for model in models]
    for number, model in enumerate(models):
        alone = evaluate(model, tokenizer, task, batch_size=64)
        pull = Pull(make_model(seed=number), 1e-3)
        mixture = evaluate_mixture(agents, [tokenizer] * 3, task, batch_size=64, pull=pull)
        assert greedy(mixture.evaluation) == greedy(alone)
        figures = figures_of(mixture, [alone, alone])
        assert figures["share_chosen"] == [1.0 - number, float(number)]
        # The reference reads what was chosen, and no proposal.
        assert figures["tokens_read"][2] == pytest.approx(figures["tokens_read_alone"][number])


def test_alpha_weighs_the_divergence_against_the_value() -> None:
    """Values .5 and .6, and the reference is the first model: the second costs alpha KL.

    The last norm makes sqrt(48) of the embedding's 1, so behind 10 its proposal has the logit 6.928
    and the 47 other tokens 0: the odds are e^6.928 = 1020 to 47, and the first model's are the same
    for another. So KL = 6.928 (1020 - 1) / (1020 + 47) = 6.62, and the second is chosen while alpha
    is below .1 / 6.62 = .0151.
    """
    one, two = table({10: 11}, {11: 0.5}), table({10: 13}, {13: 0.6})
    odds = math.exp(math.sqrt(48))
    tie = 0.1 / (math.sqrt(48) * (odds - 1) / (odds + 47))
    for alpha, expected in ((0.0, 13), (0.99 * tie, 13), (1.01 * tie, 11)):
        mixed, _ = decode_mixture([one, two], [[10]], settings(1), pull=Pull(one.model, alpha))
        assert mixed[0].token_ids == [expected]
    none, num_read = decode_mixture([one, two], [[10], [5]], settings(6))
    at_0, with_reference = decode_mixture(
        [one, two], [[10], [5]], settings(6), pull=Pull(make_model(hidden_size=48, seed=4), 0.0)
    )
    assert at_0 == none and with_reference[:2] == num_read


def sampled(max_new_tokens: int, **changes: Any) -> SamplingSettings:
    drawn = {"do_sample": True, "temperature": 1.3, "top_k": 20, "repetition_penalty": 1.1}
    return replace(settings(max_new_tokens), **drawn, **changes)


@pytest.mark.parametrize("max_rows", [None, 4])
def test_draws_of_one_model_twice_are_those_of_the_sampler(max_rows: int | None) -> None:
    model = make_model()
    prompts = [[5, 6, 7], [9], [12, 3, 4, 30, 8, 8, 20]]
    options = {"settings": sampled(12), "max_rows": max_rows}
    own = sample(model, prompts, 5, generator=torch.Generator().manual_seed(2), **options)
    for value in (constant, lambda states: states[:, 0]):
        mixed, _ = decode_mixture(
            [Agent(model, 1, value), Agent(model, 2, constant)],
            prompts,
            num_rollouts=5,
            generator=torch.Generator().manual_seed(2),
            **options,
        )
        assert [each.token_ids for each in mixed] == own.completion_ids
        assert {owner for each in mixed for owner in each.chosen} == {AGREED}
    assert len({tuple(ids) for ids in own.completion_ids[:5]}) > 1


def test_draws_of_two_models_follow_the_values() -> None:
    """Whose value is always higher samples alone, from the same numbers."""
    models = [make_model(seed=seed, tie_word_embeddings=False) for seed in (0, 1)]
    prompts, found = [[5, 6, 7], [9]], []
    for worth in ((1.0, 0.0), (0.0, 1.0)):
        agents = [
            Agent(model, 1, lambda states, w=w: states.new_full(states.shape[:-1], w))
            for model, w in zip(models, worth, strict=True)
        ]
        mixed, _ = decode_mixture(
            agents,
            prompts,
            sampled(8),
            num_rollouts=4,
            generator=torch.Generator().manual_seed(5),
        )
        found.append([each.token_ids for each in mixed])
        owners = {owner for each in mixed for owner in each.chosen}
        assert owners == {AGREED, int(worth[1])}
    for model, rollouts in zip(models, found, strict=True):
        generator = torch.Generator().manual_seed(5)
        own = sample(model, prompts, 4, settings=sampled(8), generator=generator)
        assert rollouts == own.completion_ids
    assert found[0] != found[1]


def evaluation(right: list[bool], num_tokens: float) -> Evaluation:
    problems = [{"greedy": {"correct": each}} for each in right]
    return Evaluation(
        settings={}, summary={"mean_length": {"value": num_tokens}}, problems=problems
    )


def test_figures_by_hand() -> None:
    # Four problems, of which the mixture gets three, the models two and one; 2 of 8 tokens agreed.
    mixture = Mixture(
        evaluation([True, True, True, False], 2.0),
        [
            Mixed([5, 6], [0, 1]),
            Mixed([5, 6], [0, AGREED]),
            Mixed([5], [0]),
            Mixed([7] * 3, [1] * 2 + [AGREED]),
        ],
        [12, 16],
    )
    alone = [evaluation([True, True, False, False], 3.0), evaluation([False] * 3 + [True], 5.0)]
    found = figures_of(mixture, alone)
    assert found["mixture"]["value"] == 3 / 4 and found["num_problems"] == 4
    assert [each["value"] for each in found["alone"]] == [2 / 4, 1 / 4]
    # 0, 0, 1, 0 and 1, 1, 1, -1
    assert [each["value"] for each in found["minus_alone"]] == [1 / 4, 2 / 4]
    assert found["share_agreed"] == 2 / 8 and found["share_chosen"] == [3 / 6, 3 / 6]
    assert found["tokens_read"] == [3.0, 4.0] and found["tokens_read_alone"] == [2.0, 4.0]


def test_models_that_do_not_fit_are_refused() -> None:
    task, agents = toy_task(), [Agent(make_model(), 1, constant)] * 2

    def mix(other: Any) -> None:
        evaluate_mixture(agents, [make_tokenizer(), other], task)

    more = make_tokenizer()
    more.add_tokens(["plus"])
    with pytest.raises(ValueError, match="of model 2 its 46 tokens are not the first one's 45"):
        mix(more)
    ends = make_tokenizer()
    ends.eos_token = "<bos>"
    with pytest.raises(ValueError, match="of model 2 answers end with another token"):
        mix(ends)
    asks = make_tokenizer()
    asks.chat_template = "say " + asks.chat_template
    with pytest.raises(ValueError, match="chat template makes other tokens of the questions"):
        mix(asks)
    model = make_model()
    config = plain_config(model, make_tokenizer(), max_new_tokens=4, temperature=None)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="decoded with model 2: attention flash_attention_2"):
        check_served([make_model(), model], config)


def options(**changes: Any) -> argparse.Namespace:
    plain = {"model": ["a", "b"], "mixture": "collab", "probe": ["p", "q"], "switch": None}
    plain |= {"alpha": 0.0, "reference": None}
    return argparse.Namespace(**{**plain, "samples": 0, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ["a"]}, "--mixture is of several models: give --model 2 times or more"),
        ({"switch": 1.0}, "--mixture and --switch are two ways"),
        ({"samples": 4}, "--samples is 4, but a mixture answers greedily"),
        ({"probe": ["p"]}, "each of the 2 models, in their order, but --probe is given 1 times"),
        ({"alpha": -1.0}, "--alpha is -1.0: give 0 for no pull to a reference, or more"),
        ({"alpha": NAN, "reference": "r"}, "--alpha is nan: give 0"),
        ({"alpha": 0.1}, "--alpha is 0.1 and --reference None: the first says how strongly"),
        ({"reference": "r"}, "--alpha is 0.0 and --reference r: the first says"),
        (
            {"alpha": 0.1, "reference": "r", "mixture": None, "probe": []},
            "--alpha pulls a mixture: add --mixture collab",
        ),
        ({"mixture": None}, "--probe decides between models: add --mixture collab"),
    ],
)
def test_flags_that_do_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_mixture(options(**changes))
    check_mixture(options())
    check_mixture(options(alpha=0.1, reference="r"))
    check_mixture(options(mixture=None, probe=[]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models, each with heads of its own in its folder, as `head` names them."""
    names = [str(tmp_path_factory.mktemp("models") / name) for name in ("a", "b")]
    for seed, name in enumerate(names):
        model = make_model(seed=seed, max_position_embeddings=1024)
        model.save_pretrained(name)
        make_tokenizer().save_pretrained(name)
        told = about(model=name, model_digest=model_digest(model), layers=[1], at="prefix")
        write_head(name, "good", told)
        write_head(name, "chance", replace(told, auroc_low=0.5))
        write_head(name, "prompt", replace(told, at="prompt"))
        write_head(name, "within", replace(told, within_low=0.5))
        write_head(name, "other", replace(told, label="format >= 1"))
    return names


def write_head(folder: str, name: str, about: About) -> None:
    torch.manual_seed(3)
    tensors = {"weight": torch.randn(32), "bias": torch.tensor(0.0)}
    metadata = {"format": FORMAT, "about": json.dumps(asdict(about))}
    save_file(tensors, head(folder, name), metadata=metadata)


def head(folder: str, name: str) -> str:
    return f"{folder}/{name}.safetensors"


def command(folders: list[str], heads: list[str], *more: str) -> int:
    words = [word for name in folders for word in ("--model", name)]
    words += [word for name in heads for word in ("--probe", name)]
    limits = ["--limit", "5", "--max-new-tokens", "8", "--device", "cpu"]
    return verb.main([*words, "--mixture", "collab", *limits, *more])


def test_the_command(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    heads = [head(name, "good") for name in folders]
    assert command(folders, heads, "--output", str(tmp_path)) == 0
    shown = capsys.readouterr().out
    assert "collab, arithmetic" in shown and "the others are of model 1" in shown
    found = json.loads((tmp_path / "mixture.json").read_text())
    assert found["settings"]["alpha"] == 0 and found["settings"]["reference"] is None
    assert found["settings"]["models"] == folders and found["settings"]["probes"] == heads
    for number in (1, 2):
        own = json.loads((tmp_path / f"model-{number}" / "evaluation.json").read_text())
        assert own["accuracy_greedy"] == found["alone"][number - 1]
        assert own["settings"]["model"] == folders[number - 1]
    written = json.loads((tmp_path / "mixture" / "evaluation.json").read_text())
    assert written["accuracy_greedy"] == found["mixture"]
    # What the parts are made of, by the functions themselves.
    agents = [Agent(load_model(name), 1, load_head(head(name, "good")).score) for name in folders]
    tokenizers = [make_tokenizer()] * 2
    mixture = evaluate_mixture(
        agents, tokenizers, load_task("arithmetic"), limit=5, max_new_tokens=8
    )
    lines = (tmp_path / "mixture" / "answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["greedy"] for line in lines] == greedy(mixture.evaluation)
    assert found["tokens_read"] == [num / 5 for num in mixture.num_read]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("good", "chance"), "which is not above chance"),
        (("prompt", "prompt"), "was fitted at the prompt token, but a mixture values answers"),
        (("within", "good"), "not shown to tell right from wrong among answers to one question"),
        (("good", "other"), "predicts 'format >= 1' and the first 'correctness >= 1'"),
    ],
)
def test_heads_that_cannot_decide_are_one_line(
    names: tuple[str, str],
    message: str,
    folders: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    heads = [head(folder, name) for folder, name in zip(folders, names, strict=True)]
    assert command(folders, heads) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_head_of_another_model_is_refused(
    folders: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(folders, [head(folders[0], "good")] * 2) == 2
    assert "and this model is another" in capsys.readouterr().err
