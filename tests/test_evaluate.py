"""Figures of an evaluation from answers made by hand, by tiny models, and by the packaged one."""

import json
import math

import pytest
import torch

from helpers.tiny import make_model, make_tokenizer
from podsrl.evaluate import Answer, evaluate, summarise
from podsrl.intervals import mean_interval, pass_at_k, share_interval, t_quantile
from podsrl.packing.attention import use_shared_prefix
from podsrl.sampling import complete as generation
from podsrl.tasks import load_task
from podsrl.tasks.base import make_row, make_task

NUM = 12


def toy_task(answer_format="number"):
    """Questions of different lengths whose answer is never known to a random model."""

    def rows(split):
        return [make_row(f"{'1' * (i % 5)}{i} + 1 =", str(i + 1), tags=False) for i in range(NUM)]

    return make_task("toy", rows, answer_format=answer_format, max_new_tokens=10)


def answer(correct, *, final="1", num_tokens=5, truncated=False, keeps_format=True):
    return Answer(
        text=str(final),
        answer=final,
        correct=correct,
        num_tokens=num_tokens,
        truncated=truncated,
        keeps_format=keeps_format,
    )


def rows_of(num):
    return [make_row("?", "1", tags=True)] * num


def tags_task():
    return make_task("toy", lambda split: rows_of(1), answer_format="tags", max_new_tokens=4)


def test_wilson_by_hand():
    # p = 0.8, n = 10, z^2 = 3.8415: centre 0.8 + 0.19207, half 1.96 sqrt(0.016 + 0.009604)
    # = 0.31362, over 1.38415: 0.4902 and 0.9433.
    figure = share_interval([1.0] * 8 + [0.0] * 2)
    assert figure["value"] == 0.8 and figure["num_problems"] == 10
    assert figure["low"] == pytest.approx(0.4902, abs=1e-4)
    assert figure["high"] == pytest.approx(0.9433, abs=1e-4)
    none = share_interval([0.0] * 16)
    # z^2 / (n + z^2) = 3.8415 / 19.8415
    assert (none["low"], none["high"]) == (0.0, pytest.approx(0.19361, abs=1e-5))


def test_repeated_samples_narrow_the_interval_by_their_scatter():
    values = [0.25, 0.5, 0.75, 0.5] * 4
    narrow, wide = share_interval(values, num_repeats=4), share_interval(values)
    # s^2 = 8 * 0.0625 / 15 = 1/30, so n becomes 16 * 0.25 * 30 = 120, above 16 * 4 = 64: 64.
    exact = share_interval([1.0] * 32 + [0.0] * 32)
    assert (narrow["low"], narrow["high"]) == (exact["low"], exact["high"])
    assert wide["low"] < narrow["low"] < 0.5 < narrow["high"] < wide["high"]
    assert narrow["num_problems"] == 16
    # Problems that are all right or all wrong teach no more than one answer each.
    split = [1.0, 0.0] * 50
    assert share_interval(split, num_repeats=8)["low"] == pytest.approx(
        share_interval(split)["low"], abs=2e-3
    )


def test_wilson_covers_the_truth():
    # Exact coverage for 30 draws, by binomial weights, averaged over p: near 95 %.
    coverage = 0.0
    shares = [i / 40 for i in range(2, 39)]
    for right in range(31):
        figure = share_interval([1.0] * right + [0.0] * (30 - right))
        for p in shares:
            if figure["low"] <= p <= figure["high"]:
                coverage += math.comb(30, right) * p**right * (1 - p) ** (30 - right)
    assert 0.945 < coverage / len(shares) < 0.965


def test_mean_and_t():
    figure = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    # 3 -+ 2.7764 * 1.58114 / sqrt(5) = 3 -+ 1.9632
    assert figure["low"] == pytest.approx(3 - 1.9632, abs=2e-3)
    assert figure["high"] == pytest.approx(3 + 1.9632, abs=2e-3)
    assert mean_interval([7.0]) == {"value": 7.0, "low": None, "high": None, "num_problems": 1}
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 9: 2.2622, 30: 2.0423, 1000: 1.9623}
    for degrees, quantile in table.items():
        assert t_quantile(degrees) == pytest.approx(quantile, rel=2e-3)
    with pytest.raises(ValueError, match="at least 1 problem"):
        mean_interval([])


def test_pass_at_k_is_the_share_of_subsets_with_a_right_one():
    from itertools import combinations

    for num_right in range(6):
        samples = [1] * num_right + [0] * (5 - num_right)
        for k in range(1, 6):
            subsets = [any(subset) for subset in combinations(samples, k)]
            assert pass_at_k(5, num_right, k) == pytest.approx(sum(subsets) / len(subsets))
    with pytest.raises(ValueError, match="draw more"):
        pass_at_k(4, 1, 5)


def test_summary_by_hand():
    greedy = [answer(True, num_tokens=4), answer(False, num_tokens=10, truncated=True)]
    greedy += [answer(None, keeps_format=False), answer(True)]
    samples = [
        [answer(True), answer(True), answer(False, final="2"), answer(False, final="3")],
        [answer(False, final="2"), answer(True), answer(False, final="2.00"), answer(True)],
        [answer(False, final=None)] * 3 + [answer(True)],
        [answer(False, final=None)] * 4,
    ]
    summary = summarise(greedy, samples, tags_task(), rows_of(4))
    value = {name: s["value"] for name, s in summary.items() if isinstance(s, dict)}
    assert value["accuracy_greedy"] == 0.5  # the failed grading counts as wrong
    assert summary["num_grading_failures"] == 1
    assert value["format_rate"] == 0.75
    assert value["mean_length"] == (4 + 10 + 5 + 5) / 4
    assert value["truncated_share"] == 0.25
    assert value["accuracy_sampled"] == (2 + 2 + 1 + 0) / 16
    # Votes: 1 wins; "2", "1", "2.00", "1": spelled apart, so 1 has two; 1 alone votes; nobody.
    assert value["maj@4"] == 0.75
    # k = 2: 1 - C(2,2)/6 = 5/6 twice, 1 - C(3,2)/6 = 1/2, 0.
    assert value["pass@2"] == pytest.approx((5 / 6 + 5 / 6 + 1 / 2) / 4)
    assert value["pass@4"] == 0.75
    assert all(
        figure["low"] <= figure["value"] <= figure["high"] and figure["num_problems"] == 4
        for figure in summary.values()
        if isinstance(figure, dict)
    )


def test_majority_ties_go_to_the_first_sampled():
    task, rows = tags_task(), rows_of(1)
    first_right = [[answer(True), answer(False, final="2")]]
    first_wrong = [[answer(False, final="2"), answer(True)]]
    assert summarise([answer(True)], first_right, task, rows)["maj@2"]["value"] == 1.0
    assert summarise([answer(True)], first_wrong, task, rows)["maj@2"]["value"] == 0.0


def test_greedy_equals_generating_one_prompt_at_a_time():
    model, tokenizer, task = make_model(), make_tokenizer(), toy_task()
    evaluation = evaluate(model, tokenizer, task, batch_size=5)
    assert [problem["index"] for problem in evaluation.problems] == list(range(NUM))
    lengths = []
    for problem, row in zip(evaluation.problems, task.rows("test"), strict=True):
        assert problem["prompt"] == row["prompt"]
        ids = tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**ids, max_new_tokens=10, do_sample=False)
        new = out[0, ids["input_ids"].shape[1] :].tolist()
        assert problem["greedy"]["text"] == tokenizer.decode(new, skip_special_tokens=True)
        assert problem["greedy"]["num_tokens"] == len(new)
        assert problem["greedy"]["truncated"] == (new[-1] != tokenizer.eos_token_id)
        lengths.append(len(new))
    assert evaluation.summary["mean_length"]["value"] == sum(lengths) / NUM
    assert 0 < evaluation.summary["truncated_share"]["value"] <= 1


def test_batch_size_changes_nothing_and_the_seed_only_the_samples():
    model, tokenizer, task = make_model(), make_tokenizer(), toy_task()

    def greedy(batch_size, seed=0, num_samples=0):
        evaluation = evaluate(
            model, tokenizer, task, batch_size=batch_size, seed=seed, num_samples=num_samples
        )
        return [p["greedy"] for p in evaluation.problems], [
            p["samples"] for p in evaluation.problems
        ]

    reference, first = greedy(64, num_samples=2)
    # 1 decodes the two samples of a problem one after the other, 7 takes three problems at a time.
    assert greedy(1, num_samples=2) == greedy(7, num_samples=2) == (reference, first)
    again = greedy(64, num_samples=2)
    assert again == (reference, first)
    other = greedy(64, seed=1, num_samples=2)
    assert other[0] == reference and other[1] != first
    assert any(a["text"] != b["text"] for a, b in first)


def refuse_sampler(monkeypatch):
    monkeypatch.setattr(generation, "can_sample", lambda model, config: "refused for the test")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_generate_answers_the_same_where_the_sampler_is_refused(family, monkeypatch, caplog):
    model, tokenizer, task = (
        make_model(family, tie_word_embeddings=False),
        make_tokenizer(),
        toy_task(),
    )
    model.generation_config.eos_token_id = list(range(1, 45, 6))

    def refused(**_):
        raise AssertionError("generate was called")

    with monkeypatch.context() as patch:
        patch.setattr(model, "generate", refused)
        sampled = evaluate(model, tokenizer, task, batch_size=5)
    assert not caplog.records
    refuse_sampler(monkeypatch)
    generated = evaluate(model, tokenizer, task, batch_size=5)
    assert [r.message for r in caplog.records] == [
        "answering through generate, which is slower: refused for the test"
    ]
    assert generated.problems == sampled.problems
    assert len({p["greedy"]["num_tokens"] for p in sampled.problems}) > 1  # some ended early


def test_samples_through_generate_follow_the_seed_and_leave_the_random_state(monkeypatch):
    model, tokenizer, task = make_model(), make_tokenizer(), toy_task()
    refuse_sampler(monkeypatch)
    state = torch.get_rng_state()
    seen = []

    def samples(seed):
        evaluation = evaluate(
            model,
            tokenizer,
            task,
            num_samples=2,
            seed=seed,
            batch_size=20,
            progress=lambda done, total: seen.append((done, total)),
        )
        return [p["samples"] for p in evaluation.problems]

    model.train()
    first = samples(0)
    assert seen == [(12, 36), (32, 36), (36, 36)]
    assert samples(0) == first != samples(1)
    assert model.training and torch.equal(torch.get_rng_state(), state)


def test_samples_of_a_problem_share_the_reading_of_its_prompt():
    model = make_model()
    num_read = []

    def count(module, args, kwargs):
        if kwargs["input_ids"].shape[1] > 1:
            num_read.append(kwargs["input_ids"].shape[0])

    model.register_forward_pre_hook(count, with_kwargs=True)
    evaluate(model, make_tokenizer(), toy_task(), num_samples=4, batch_size=20)
    # Greedy: 12 prompts at once. Samples: 20 rows are 5 prompts of 4, so 5 + 5 + 2.
    assert num_read == [12, 5, 5, 2]


def test_the_model_trained_on_packed_rows_is_sampled():
    model, tokenizer, task = make_model(), make_tokenizer(), toy_task()
    before = evaluate(model, tokenizer, task).problems
    assert use_shared_prefix(model)
    config = generation.plain_config(model, tokenizer, max_new_tokens=4, temperature=0.5)
    assert generation.can_sample(model, config) is None
    assert evaluate(model, tokenizer, task).problems == before


@pytest.mark.parametrize("through_generate", [False, True])
def test_ends_at_any_end_token_and_counts_it(through_generate, monkeypatch):
    if through_generate:
        refuse_sampler(monkeypatch)
    model, tokenizer, task = make_model(), make_tokenizer(), toy_task()
    texts = [p["greedy"]["text"] for p in evaluate(model, tokenizer, task).problems]
    long = next(text for text in texts if len(set(text)) > 1)
    end = tokenizer.convert_tokens_to_ids(long[1])
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    stopped = evaluate(model, tokenizer, task).problems[texts.index(long)]["greedy"]
    at = 1 + long.index(long[1])
    assert stopped["text"] == long[:at]
    assert stopped["num_tokens"] == at and not stopped["truncated"]


def test_leaves_mode_random_state_and_gradients_alone():
    model, tokenizer = make_model(), make_tokenizer()
    model.train()
    state = torch.get_rng_state()
    evaluate(model, tokenizer, toy_task(), num_samples=2, limit=3)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("through_generate", [False, True])
def test_a_models_own_sampling_habits_are_not_used(through_generate, monkeypatch):
    if through_generate:
        refuse_sampler(monkeypatch)
    model, tokenizer, task = make_model(), make_tokenizer(), toy_task()
    plain = evaluate(model, tokenizer, task, num_samples=2).problems
    model.generation_config.update(
        repetition_penalty=5.0, top_k=1, temperature=0.1, top_p=0.1, min_p=0.9, max_length=3
    )
    model.generation_config.update(typical_p=0.1, no_repeat_ngram_size=1, num_beams=2)
    if through_generate:
        model.generation_config.update(min_length=99)
    assert evaluate(model, tokenizer, task, num_samples=2).problems == plain


def test_progress_and_files(tmp_path):
    seen = []
    evaluation = evaluate(
        make_model(),
        make_tokenizer(),
        toy_task(),
        limit=4,
        num_samples=3,
        batch_size=6,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(4, 16), (10, 16), (16, 16)]
    evaluation.save(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert saved == evaluation.to_json()
    assert saved["settings"]["num_samples"] == 3 and saved["num_problems"] == 4
    lines = (tmp_path / "out" / "answers.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in lines] == evaluation.problems


@pytest.mark.parametrize(
    ("letters", "remedy"),
    [(245, "lower max_new_tokens to 6 or less"), (251, "take that question out"), (900, "take")],
)
def test_a_prompt_too_long_is_named_with_what_helps(tmp_path, letters, remedy):
    """The model reads 256 tokens and the template adds 5: after 245 letters 6 are left."""
    rows = [{"question": "x" * n, "answer": "7"} for n in (3, letters)]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_task(f"jsonl:{path}", answer_format="number", max_new_tokens=8)
    with pytest.raises(ValueError, match=rf"question 2, has {letters + 5} tokens.*{remedy}"):
        evaluate(make_model(), make_tokenizer(), task)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": -1}, "num_samples is -1"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"max_new_tokens": 250}, "lower max_new_tokens to 2"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(make_model(), make_tokenizer(), toy_task(), **options)


def test_a_saved_model_evaluates_to_the_same_answers(tmp_path):
    from podsrl.models import load_model, load_tokenizer

    model, tokenizer, task = make_model(), make_tokenizer(), toy_task()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    before = evaluate(model, tokenizer, task)
    after = evaluate(load_model(str(tmp_path)), load_tokenizer(str(tmp_path)), task)
    assert after.problems == before.problems


@pytest.mark.packaged
def test_the_packaged_model_knows_some_sums_and_keeps_them_when_saved(tmp_path):
    from podsrl.models import load_model, load_tokenizer

    model, tokenizer = load_model("smollm2-135m"), load_tokenizer("smollm2-135m")
    task = load_task("arithmetic")
    before = evaluate(model, tokenizer, task, limit=24, batch_size=24)
    # 22 % of 256; more than one and no more than fourteen of 24 are right by far most often.
    assert 2 / 24 <= before.summary["accuracy_greedy"]["value"] <= 14 / 24
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    after = evaluate(
        load_model(str(tmp_path)), load_tokenizer(str(tmp_path)), task, limit=24, batch_size=24
    )
    assert after.problems == before.problems
