"""examples/loop.py: each step by hand, and the whole update against TRL and PODSTrainer."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.tiny import make_model, make_tokenizer
from podsrl import select
from podsrl.core.selection import Selection, Selector

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import loop

EOS = 1
DEVICE = torch.device("cpu")
LOSS_TYPES = ["grpo", "dr_grpo", "dapo", "bnpo"]


def ask(*questions: str) -> loop.Problems:
    return [{"prompt": [{"role": "user", "content": question}]} for question in questions]


# Sample -------------------------------------------------------------------------------------------


def test_completions_end_at_their_first_end_token_or_at_the_limit():
    torch.manual_seed(0)
    options = loop.Options(num_rollouts=16, max_new_tokens=20, temperature=1.5)
    prompts, completions = loop.sample(
        make_model(), make_tokenizer(), ask("1+1", "22+33?"), options
    )
    assert len(prompts) == len(completions) == 32
    assert prompts[:16] == [prompts[0]] * 16 and prompts[16:] == [prompts[16]] * 16
    assert prompts[0] != prompts[16]
    assert all(EOS not in row[:-1] for row in completions)
    cut = [row for row in completions if row[-1] != EOS]
    ended = [row for row in completions if row[-1] == EOS]
    assert ended and cut and all(len(row) == 20 for row in cut)
    assert min(len(row) for row in ended) < 20


def test_sampling_stops_when_all_rollouts_have_ended():
    model, calls = make_model(), []

    def end_at_once(_module: Any, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        calls.append(len(logits))
        logits[..., EOS] += 1e4
        return logits

    model.lm_head.register_forward_hook(end_at_once)
    options = loop.Options(num_rollouts=4, max_new_tokens=9)
    _, completions = loop.sample(model, make_tokenizer(), ask("1+1", "2+2"), options)
    assert completions == [[EOS]] * 8
    assert calls == [2]  # one pass, over the two prompts and not over eight copies


def test_greedy_sampling_equals_transformers_generate_on_prompts_of_unequal_length():
    model, tokenizer = make_model(seed=1), make_tokenizer()
    options = loop.Options(num_rollouts=1, max_new_tokens=12, temperature=0)
    problems = ask("1+1", "what is 22+33?")
    prompts, completions = loop.sample(model, tokenizer, problems, options)
    for prompt, completion in zip(prompts, completions, strict=True):
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        assert completion == whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_sampled_tokens_follow_the_policy(temperature):
    torch.manual_seed(0)
    model = make_model()
    options = loop.Options(num_rollouts=8000, max_new_tokens=1, temperature=temperature)
    prompts, completions = loop.sample(model, make_tokenizer(), ask("3+4"), options)
    with torch.no_grad():
        logits = model(torch.tensor(prompts[:1])).logits[0, -1]
    expected = (logits / temperature).softmax(dim=-1)
    share = torch.bincount(torch.tensor(completions).flatten(), minlength=48) / 8000
    # Five standard deviations of a share of 8000 draws, and one draw for the rarest tokens.
    assert ((share - expected).abs() < 5 * (expected / 8000).sqrt() + 1 / 8000).all()


# Reward, select, advantage ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("12 + 3 = 15.", 1), ("15", 1), ("15.0", 1), ("15 or 16", 0), ("-15", 0), ("", 0), ("no", 0)],
)
def test_reward_reads_the_last_number_as_the_arithmetic_task_does(text, value):
    assert loop.reward(text, "15") == value
    assert loop.arithmetic().is_correct(text, {"answer": "15"}) == bool(value)


def test_keep_takes_rows_of_the_right_group():
    # Groups of three: rows 0..2 and 3..5. Kept (0, 2) and (1, 2): rows 0, 2, 4, 5.
    prompts, completions = [[10]] * 3 + [[11]] * 3, [[i] for i in range(6)]
    rewards = torch.tensor([[0.0, 0.5, 1.0], [7.0, 2.0, 4.0]])
    kept_PN = torch.tensor([[True, False, True], [False, True, True]])
    chosen = Selection(Selector(num_kept=2), rewards.unsqueeze(-1), rewards, kept_PN)
    batch = loop.keep(prompts, completions, chosen)
    assert batch.prompt_BL.tolist() == [[10], [10], [11], [11]]
    assert batch.completion_BT.tolist() == [[0], [2], [4], [5]]
    # (0, 1): 1/2 over sqrt(1/2); (2, 4): 1 over sqrt(2).
    one, two = 0.5 / (math.sqrt(0.5) + 1e-4), 1 / (math.sqrt(2) + 1e-4)
    torch.testing.assert_close(batch.advantages_B, torch.tensor([-one, one, -two, two]))


# Update -------------------------------------------------------------------------------------------


def make_batch(prompts: loop.Rows, completions: loop.Rows, values: torch.Tensor) -> loop.Batch:
    prompt_BL, prompt_mask_BL = loop.pad(prompts, "left", DEVICE)
    return loop.Batch(
        prompt_BL, prompt_mask_BL, *loop.pad(completions, "right", DEVICE), advantages_B=values
    )


def test_log_probs_of_padded_rows_equal_each_row_alone():
    model = make_model()
    prompts, completions = [[5, 6], [7, 8, 9, 10, 11]], [[12, 13, 14], [15]]
    batch = make_batch(prompts, completions, torch.zeros(2))
    assert batch.mask_BT.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.prompt_mask_BL.tolist() == [[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
    got = loop.log_probs(model, batch, 0.7)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        logits = model(torch.tensor([prompt + completion])).logits[0] / 0.7
        for t, token in enumerate(completion):
            expected = logits[len(prompt) + t - 1].log_softmax(dim=-1)[token]
            torch.testing.assert_close(got[row, t], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        # Ratios below: row 1 (1, 2, 1/2) with A = 1: min(w, clip) = 1, 1.2, 0.5, sum 2.7.
        # Row 2 (2), A = -2: min(-4, -2.4) = -4. Losses are the negatives: -2.7 and 4.
        ("grpo", (-2.7 / 3 + 4 / 1) / 2),
        ("bnpo", (-2.7 + 4) / 4),
        ("dapo", (-2.7 + 4) / 4),
        ("dr_grpo", (-2.7 + 4) / (2 * 5)),  # two rows of at most five tokens
    ],
)
def test_loss_by_hand(loss_type, expected):
    ratio = torch.tensor([[1.0, 2.0, 0.5], [2.0, 9.0, 9.0]])
    batch = make_batch([[9], [9]], [[3, 4, 5], [6]], torch.tensor([1.0, -2.0]))
    options = loop.Options(loss_type=loss_type, max_new_tokens=5)
    old = torch.full((2, 3), -3.0)
    got = loop.loss(old + ratio.log(), old, None, batch, options)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_kl_term_by_hand():
    # A = 0 leaves beta w (e^d - d - 1). First token: w = 3, d = log 2, so 3 (2 - log 2 - 1); second
    # token: d = 0 gives 0. Mean of two tokens.
    new = torch.tensor([[-1.0, -1.0]])
    old = new - torch.tensor([[3.0, 5.0]]).log()
    reference = new + torch.tensor([[2.0, 1.0]]).log()
    batch = make_batch([[9]], [[3, 4]], torch.zeros(1))
    got = loop.loss(new, old, reference, batch, loop.Options(beta=0.1))
    assert got.item() == pytest.approx(0.1 * 3 * (1 - math.log(2)) / 2, rel=1e-5)


def random_batch(num_rows: int = 8, seed: int = 0) -> loop.Batch:
    draw = torch.Generator().manual_seed(seed)

    def rows(low: int, high: int) -> list[list[int]]:
        lengths = torch.randint(low, high, (num_rows,), generator=draw).tolist()
        return [torch.randint(3, 45, (n,), generator=draw).tolist() for n in lengths]

    return make_batch(rows(3, 9), rows(1, 12), torch.randn(num_rows, generator=draw))


def test_update_makes_better_rollouts_likelier():
    batch = random_batch()
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def objective() -> float:
        with torch.no_grad():
            log_probs_BT = loop.log_probs(model, batch, 1.0)
        per_row = (log_probs_BT * batch.mask_BT).sum(dim=1) / batch.mask_BT.sum(dim=1)
        return (per_row * batch.advantages_B).sum().item()

    before = objective()
    loop.update(model, optimizer, batch, loop.Options())
    assert objective() > before


# Evaluate and main --------------------------------------------------------------------------------


def test_evaluate_counts_right_greedy_answers_over_all_chunks(monkeypatch):
    problems = ask(*(f"What is {i} + 0?" for i in range(70)))
    for i, problem in enumerate(problems):
        problem["answer"] = str(i)
    tokenizer, asked = make_tokenizer(), []

    def answer(_model, _tokenizer, chunk, options):
        assert (options.num_rollouts, options.temperature, options.max_new_tokens) == (1, 0, 7)
        asked.extend(chunk)
        numbers = [int(problem["answer"]) for problem in chunk]
        texts = [f"it is {n if n % 5 else n + 1}." for n in numbers]  # wrong for 0, 5, .. 65
        return None, [[*tokenizer(text)["input_ids"], EOS] for text in texts]

    monkeypatch.setattr(loop, "sample", answer)
    options = loop.Options(max_new_tokens=7)
    assert loop.evaluate(None, tokenizer, problems, options) == pytest.approx(56 / 70)
    assert asked == problems


def test_two_steps_of_main_train_on_what_select_keeps(monkeypatch, tiny_folder, capsys):
    asked, kept, batches, weights = [], [], [], []
    plain_sample, plain_keep, plain_update = loop.sample, loop.keep, loop.update

    def sample(model, tokenizer, problems, options):
        asked.append([problem["prompt"][0]["content"] for problem in problems])
        return plain_sample(model, tokenizer, problems, options)

    def keep(prompt_ids, completion_ids, chosen):
        assert chosen.rewards_PN.shape == (2, 6) and len(completion_ids) == 12
        kept_PM = select(chosen.rewards_PN, keep=4, seed=len(kept))
        assert torch.equal(chosen.kept_PM, kept_PM)
        rows = [completion_ids[6 * p + i] for p in range(2) for i in kept_PM[p].tolist()]
        kept.append(loop.pad(rows, "right", DEVICE)[0].tolist())
        return plain_keep(prompt_ids, completion_ids, chosen)

    def update(model, optimizer, batch, options, reference):
        weights.append(model.lm_head.weight.detach().clone())
        value = plain_update(model, optimizer, batch, options, reference)
        weights.append(model.lm_head.weight.detach().clone())
        batches.append(batch.completion_BT.tolist())
        return value

    monkeypatch.setattr(loop, "sample", sample)
    monkeypatch.setattr(loop, "keep", keep)
    monkeypatch.setattr(loop, "update", update)
    # Random models never add: reward the parity of the length so that groups are not constant.
    monkeypatch.setattr(loop, "reward", lambda text, answer: float(len(text) % 2))
    options = loop.Options(
        model=tiny_folder, steps=2, num_prompts=2, num_rollouts=6, num_kept=4,
        learning_rate=1e-2, max_new_tokens=8, num_test=4, temperature=1.5,
    )  # fmt: skip
    loop.main(options)
    task = loop.arithmetic(num_train=4, num_test=4)
    train = [row["prompt"][0]["content"] for row in task.rows("train")]
    test = [row["prompt"][0]["content"] for row in task.rows("test")]
    assert asked == [test, train[:2], train[2:], test]
    assert train[0].startswith("State the final answer to the following arithmetic problem: ")
    assert batches == kept and len(batches[0]) == 8
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[2], weights[3])
    assert torch.equal(weights[1], weights[2])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("before: ") and lines[-1].startswith("after: ")
    assert [line.split()[:2] for line in lines[1:-1]] == [["step", "1"], ["step", "2"]]


# Against the trainers -----------------------------------------------------------------------------

QUESTIONS = ["1+1", "2+3 is", "what is 7-4?", "9+9?"]
LEARNING_RATE = 0.1


class Recorder:
    """What one run of a trainer sampled and rewarded, its losses, and the weights it ended with."""

    def __init__(self) -> None:
        self.prompt_ids: list[list[int]] = []
        self.completion_ids: list[list[int]] = []
        self.rewards: list[float] = []
        self.losses: list[float] = []

    def reward(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        """A different reward for every rollout, so that no tie decides what is kept."""
        assert not self.rewards, "rollouts were rewarded twice"
        self.rewards = torch.randn(len(completion_ids), generator=self.draw()).tolist()
        return self.rewards

    def generate(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[Any, None]:
        draw = self.draw()
        self.prompt_ids = prompt_ids
        lengths = torch.randint(2, 13, (len(prompt_ids),), generator=draw).tolist()
        self.completion_ids = [
            [*torch.randint(3, 45, (n - 1,), generator=draw).tolist(), EOS] for n in lengths
        ]
        return self.completion_ids, None

    def draw(self) -> torch.Generator:
        return torch.Generator().manual_seed(7)


def train(
    trainer_class: Any, config_class: Any, folder: str, output: Path, **settings: Any
) -> tuple[Recorder, dict[str, torch.Tensor]]:
    """Train `num_iterations` steps on one batch of made-up rollouts."""
    from datasets import Dataset

    recorder = Recorder()

    class Recorded(trainer_class):  # type: ignore[misc, valid-type]
        def _generate_single_turn(self, prompt_ids: Any, *_: Any, **__: Any) -> Any:
            return recorder.generate(prompt_ids)

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            value = super().compute_loss(*args, **kwargs)
            recorder.losses.append(value.item())
            return value

    iterations = settings.get("num_iterations", 1)
    config = config_class(
        output_dir=str(output), max_steps=iterations, num_generations=4, seed=5,
        per_device_train_batch_size=8, max_completion_length=12, temperature=0.9,
        optim="sgd", learning_rate=LEARNING_RATE, lr_scheduler_type="constant",
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[],
        save_strategy="no", disable_tqdm=True, **settings,
    )  # fmt: skip
    trainer = Recorded(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype="float32"),
        reward_funcs=[recorder.reward],
        args=config,
        train_dataset=Dataset.from_dict(
            {"prompt": [[{"role": "user", "content": question}] for question in QUESTIONS]}
        ),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )
    trainer.train()
    assert trainer.state.global_step == iterations
    return recorder, trainer.model.state_dict()


def train_by_loop(
    recorder: Recorder, folder: str, num_rollouts: int, source: str = "kept", **settings: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    """The same steps on the recorded rollouts by `loop.update`."""
    rewards_PN = torch.tensor(recorder.rewards).view(-1, num_rollouts)
    chosen = Selector(num_kept=4, advantage={"source": source})(rewards_PN.unsqueeze(-1))
    batch = loop.keep(recorder.prompt_ids, recorder.completion_ids, chosen)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    options = loop.Options(max_new_tokens=12, temperature=0.9, **settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    value = loop.update(model, optimizer, batch, options, reference if options.beta else None)
    return value, model.state_dict()


def assert_same_training(
    recorder: Recorder, trained: dict[str, torch.Tensor], folder: str, **how: Any
) -> None:
    value, expected = train_by_loop(recorder, folder, **how)
    assert recorder.losses[-1] == pytest.approx(value, rel=1e-5, abs=1e-6)
    start = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").state_dict()
    moved = max((trained[name] - start[name]).abs().max().item() for name in start)
    assert moved > 1e-3, "the steps are too small to tell a difference"
    torch.testing.assert_close(dict(trained), dict(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_all_kept_equals_stock_grpo(loss_type, tiny_folder, tmp_path):
    from trl import GRPOConfig, GRPOTrainer

    settings = {"loss_type": loss_type, "beta": 0.1, "num_iterations": 2}
    recorder, trained = train(GRPOTrainer, GRPOConfig, tiny_folder, tmp_path, **settings)
    assert len(recorder.rewards) == 8
    assert_same_training(recorder, trained, tiny_folder, num_rollouts=4, **settings)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("iterated", [{}, {"beta": 0.1, "num_iterations": 2}])
def test_some_kept_equals_pods_trainer(loss_type, iterated, tiny_folder, tmp_path):
    from podsrl import PODSConfig, PODSTrainer

    settings = {"loss_type": loss_type, **iterated}
    recorder, trained = train(
        PODSTrainer, PODSConfig, tiny_folder, tmp_path, num_rollouts=10, **settings
    )
    assert len(recorder.rewards) == 20
    assert_same_training(recorder, trained, tiny_folder, num_rollouts=10, **settings)


def test_some_kept_with_advantages_from_all_equals_pods_trainer(tiny_folder, tmp_path):
    from podsrl import PODSConfig, PODSTrainer

    recorder, trained = train(
        PODSTrainer, PODSConfig, tiny_folder, tmp_path, num_rollouts=10, loss_type="grpo",
        advantage_from="all",
    )  # fmt: skip
    assert_same_training(recorder, trained, tiny_folder, num_rollouts=10, source="all")
