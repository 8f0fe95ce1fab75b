"""Every field of GRPOConfig and argument of GRPOTrainer does what it does in TRL, with n = m.

`PYTHONPATH=tests python tests/trainer/test_options.py` writes the table of docs/trl.md from what is
set here. A field that a new TRL brings is "not covered" there, and fails.
"""

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pandas
import pytest
import torch
from peft import LoraConfig
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    TrainerCallback,
)
from trl import GRPOConfig, GRPOTrainer
from trl.trainer import grpo_trainer

from helpers.harness import arguments, build, numbers
from helpers.tiny import SIZES, digit_reward, make_tokenizer
from podsrl import PODSTrainer

ROOT = Path(__file__).resolve().parents[2]
THIS = "tests/trainer/test_options.py"
PAGE = ROOT / "docs" / "trl.md"
MARKS = ("<!-- table: fields -->", "<!-- end -->")

# Fields that are set together, each to another value than its default; two steps of both trainers.
CASES: dict[str, dict[str, Any]] = {
    "sampling": {
        "temperature": 0.9,
        "top_p": 0.95,
        "top_k": 20,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "generation_kwargs": {"suppress_tokens": [5]},
        "cache_implementation": "dynamic",
        "ds3_gather_for_generation": False,
        "chat_template_kwargs": {"enable_thinking": False},
        "pad_to_multiple_of": 8,
        "shuffle_dataset": False,
        "remove_unused_columns": True,
    },
    "losses": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon": 0.1,
        "epsilon_high": 0.3,
        "delta": 1.5,
        "num_iterations": 2,
        "scale_rewards": "none",
        "mask_truncated_completions": True,
        "generation_batch_size": 16,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "seed": 5,
        "optim": "adamw_torch",
        "weight_decay": 0.1,
        "max_grad_norm": 0.3,
    },
    "off-policy": {
        "loss_type": "sapo",
        "sapo_temperature_neg": 1.2,
        "sapo_temperature_pos": 0.9,
        "off_policy_mask_threshold": 0.01,
        "steps_per_generation": 2,
        "per_device_train_batch_size": 4,
    },
    "vespo": {
        "loss_type": "vespo",
        "vespo_k_pos": 1.5,
        "vespo_lambda_pos": 2.5,
        "vespo_k_neg": 2.5,
        "vespo_lambda_neg": 1.5,
        "num_iterations": 2,
    },
    "entropy": {
        "entropy_coef": 0.01,
        "use_adaptive_entropy": True,
        "entropy_coef_min": 0.005,
        "entropy_coef_max": 0.02,
        "entropy_coef_delta": 0.004,
        "entropy_target": 5.0,
        "top_entropy_quantile": 0.8,
    },
    "reference": {
        "beta": 0.05,
        "sync_ref_model": True,
        "ref_model_mixup_alpha": 0.5,
        "ref_model_sync_steps": 1,
        "use_bias_correction_kl": False,
        "disable_dropout": True,
        "model_init_kwargs": {"dtype": "float32", "attn_implementation": "eager"},
        "trust_remote_code": True,
        "cast_lm_head_to_fp32": True,
    },
    "rewards": {
        "reward_weights": [1.0, 0.5],
        "multi_objective_aggregation": "normalize_then_sum",
        "learning_rate": 1e-2,
        "lr_scheduler_type": "cosine_with_min_lr",
        "lr_scheduler_kwargs": {"min_lr": 1e-3},
    },
    "logs": {
        "log_completions": True,
        "num_completions_to_print": 1,
        "log_unique_prompts": True,
        "log_multimodal": False,
        "log_completions_hub_repo": "nobody/nothing",
        "logging_steps": 2,
    },
    "evaluation": {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "num_generations_eval": 2,
        "per_device_eval_batch_size": 4,
    },
    "adapter": {
        "bf16": True,
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "torch_empty_cache_steps": 1,
    },
    "mixture of experts": {"router_aux_loss_coef": 0.1},
}

# Those of vLLM, for an engine that stands in vLLM's place.
ENGINE: dict[str, dict[str, Any]] = {
    "server": {
        "use_vllm": True,
        "vllm_mode": "server",
        "vllm_server_base_url": "http://localhost:9",
        "vllm_server_host": "localhost",
        "vllm_server_port": 9,
        "vllm_server_timeout": 1.0,
        "vllm_group_port": 10,
        "vllm_structured_outputs_regex": "[0-9]+",
        "vllm_importance_sampling_mode": "token_mask",
        "vllm_importance_sampling_clip_max": 1.5,
        "vllm_importance_sampling_clip_min": 0.5,
    },
    "colocate": {
        "use_vllm": True,
        "vllm_model_impl": "transformers",
        "vllm_enable_sleep_mode": True,
        "vllm_gpu_memory_utilization": 0.5,
        "vllm_max_model_length": 64,
        "vllm_tensor_parallel_size": 2,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_cap": 1.2,
    },
    "uncorrected": {"use_vllm": True, "vllm_importance_sampling_correction": False},
}

# Arguments, by the case that gives them.
ARGUMENTS = {
    "rewards": ("reward_processing_classes", "callbacks", "optimizers"),
    "evaluation": ("eval_dataset",),
    "adapter": ("peft_config",),
}

# Fields and arguments that other tests set, with these.
TURNS = "tests/trainer/test_turns.py::test_turns_with_n_equal_to_m_are_stock_bit_for_bit"
LOSS = "tests/trainer/test_equal_to_grpo.py::test_loss_and_parameters_are_bit_for_bit_equal"
FOLLOWERS = "tests/trainer/test_followers.py::test_what_does_not_fit_is_refused"
BATCHING = "tests/trainer/test_trainer.py::test_continuous_batching_samples_after_a_packed_update"
ELSEWHERE = {
    **dict.fromkeys(("tools", "environment_factory", "rollout_func"), TURNS),
    **dict.fromkeys(("model", "reward_funcs", "args", "train_dataset", "processing_class"), LOSS),
    **dict.fromkeys(("num_generations", "max_completion_length"), LOSS),
    "max_tool_calling_iterations": (
        "tests/trainer/test_turns.py::test_turns_are_no_more_than_asked_for"
    ),
    "use_transformers_continuous_batching": BATCHING,
    "transformers_continuous_batching_config": BATCHING,
    "fp16": FOLLOWERS,
}
QUANTIZED = "test_a_quantization_goes_to_the_model"
LIGER = "test_liger_is_what_it_is_in_trl"
PAGED = "test_the_old_name_of_continuous_batching"
HERE = {
    "quantization_config": QUANTIZED,
    "use_liger_kernel": LIGER,
    "use_transformers_paged": PAGED,
}


@pytest.fixture(scope="module")
def experts_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model of several experts."""
    folder = tmp_path_factory.mktemp("experts")
    torch.manual_seed(0)
    config = MixtralConfig(
        **SIZES, num_local_experts=2, num_experts_per_tok=1, initializer_range=0.3
    )
    MixtralForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


class Calls(TrainerCallback):
    """Counts steps."""

    num = 0

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.num += 1


def scorer() -> Any:
    """A tiny model that scores texts."""
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=1))
    model.config._name_or_path = "nobody/scorer"
    return model


def maker(case: str, trainer_class: type[GRPOTrainer], folder: str) -> Callable[..., GRPOTrainer]:
    """Builds a trainer of the arguments that `build` gives, and of those of the case."""

    def make(**given: Any) -> GRPOTrainer:
        if case == "reference":
            given["model"] = folder
        if case == "rewards":
            given["reward_funcs"] = [scorer(), digit_reward]
            given["reward_processing_classes"] = [make_tokenizer(), None]
            optimizer = torch.optim.SGD(given["model"].parameters(), lr=1e-2)
            given |= {"callbacks": [Calls()], "optimizers": (optimizer, None)}
        if case == "adapter":
            given["peft_config"] = LoraConfig(r=2, target_modules=["q_proj"])
        if case != "evaluation":
            del given["eval_dataset"]
        return trainer_class(**given)

    return make


def trained(
    trainer_class: type[GRPOTrainer], case: str, folder: str, output: Path, options: dict[str, Any]
) -> GRPOTrainer:
    """A trainer of the case after two steps."""
    torch.manual_seed(0)
    options = {"max_steps": 2, **options}
    if trainer_class is PODSTrainer:
        options |= {"num_rollouts": 4}
    make = maker(case, trainer_class, folder)
    trainer = build(folder, output, trainer_class=trainer_class, make=make, **options)
    trainer.train()
    return trainer


def settings(trainer: GRPOTrainer) -> dict[str, Any]:
    """All that GRPOConfig has fields for, but where it is written."""
    names = {field.name for field in dataclasses.fields(GRPOConfig)} - {"output_dir", "logging_dir"}
    return {name: repr(getattr(trainer.args, name, None)) for name in names}


def told(trainer: GRPOTrainer) -> list[dict[str, float]]:
    """What was logged, without times, those of an evaluation among them."""
    times = ("_runtime", "_per_second")
    return [{k: v for k, v in each.items() if not k.endswith(times)} for each in numbers(trainer)]


def assert_equal(ours: GRPOTrainer, stock: GRPOTrainer) -> None:
    assert settings(ours) == settings(stock)
    assert told(ours) == told(stock) and told(stock)
    pairs = zip(ours.model.parameters(), stock.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def assert_set(options: dict[str, Any], stock: GRPOTrainer, output: Path) -> None:
    """Each field has the value of the case, which is not the one that it has without it."""
    plain = arguments(GRPOTrainer, output)
    for name, value in options.items():
        assert getattr(stock.args, name) == value != getattr(plain, name), name


@pytest.mark.parametrize("case", CASES)
def test_options_with_n_equal_to_m_are_trls(
    case: str,
    tiny_folder: str,
    experts_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Settings, logs and weights, bit for bit, with every field of the case at another value."""
    uploads: list[str] = []
    monkeypatch.setattr(grpo_trainer, "create_repo", lambda name, **_: uploads.append(name))
    card = SimpleNamespace(push_to_hub=uploads.append)
    monkeypatch.setattr(grpo_trainer.DatasetCard, "from_template", lambda **_: card)
    monkeypatch.setattr(grpo_trainer, "CommitScheduler", lambda **_: None)
    folder = experts_folder if case == "mixture of experts" else tiny_folder
    stock, ours = (
        trained(each, case, folder, tmp_path / each.__name__, CASES[case])
        for each in (GRPOTrainer, PODSTrainer)
    )
    assert_equal(ours, stock)
    assert_set(CASES[case], stock, tmp_path)
    if case == "logs":
        assert uploads == ["nobody/nothing"] * 4
        tables = [
            pandas.read_parquet(next((tmp_path / each).glob("completions/*.parquet")))
            for each in ("GRPOTrainer", "PODSTrainer")
        ]
        assert tables[0].equals(tables[1]) and len(tables[0])
    if case == "rewards":
        for trainer in (stock, ours):
            (calls,) = (each for each in trainer.callback_handler.callbacks if type(each) is Calls)
            assert calls.num == 2
    if case == "evaluation":
        assert any("eval_reward" in entry for entry in ours.state.log_history)


class Engine:
    """Stands for TRL's VLLMGeneration: remembers its options, samples without a model."""

    built: ClassVar[list["Engine"]] = []
    vllm_client = SimpleNamespace(
        get_server_info=lambda: {"model_config": {"logprobs_mode": "processed_logprobs"}}
    )

    def __init__(self, *, model: Any, accelerator: Any, processing_class: Any, **options: Any):
        self.options, self.generator = options, torch.Generator().manual_seed(0)
        Engine.built.append(self)

    def sync_weights(self) -> None:
        pass

    def generate(self, prompts: list, images: Any, num_generations: int, profiler: Any) -> tuple:
        ids_BT = torch.randint(3, 40, (len(prompts), 8), generator=self.generator)
        logps_BT = -4 * torch.rand(ids_BT.shape, generator=self.generator)
        ids_BT[:, -1] = 1
        log_probs = [[[each] for each in row] for row in logps_BT.tolist()]
        return prompts, ids_BT.tolist(), log_probs, None


@pytest.mark.filterwarnings("ignore:The `vllm_importance_sampling_cap`:FutureWarning")
@pytest.mark.parametrize("case", ENGINE)
def test_options_of_vllm_with_n_equal_to_m_are_trls(
    case: str, tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vLLM is built with, and what is made of its log-probs."""
    monkeypatch.setattr(grpo_trainer, "VLLMGeneration", Engine)
    Engine.built.clear()
    stock, ours = (
        trained(each, case, tiny_folder, tmp_path / each.__name__, ENGINE[case])
        for each in (GRPOTrainer, PODSTrainer)
    )
    assert_equal(ours, stock)
    of_stock, of_ours = (engine.options for engine in Engine.built)
    assert of_ours == of_stock
    assert_set(ENGINE[case], stock, tmp_path)
    for name, value in ENGINE[case].items():
        assert of_ours.get(name.removeprefix("vllm_"), value) == value


def test_a_quantization_goes_to_the_model(
    tiny_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The argument is TRL's to use, which loads the model with it."""
    given: list[Any] = []
    create = grpo_trainer.create_model_from_path

    def watched(name: str, *, quantization_config: Any = None, **options: Any) -> Any:
        given.append(quantization_config)
        return create(name, **options)

    monkeypatch.setattr(grpo_trainer, "create_model_from_path", watched)
    make = maker("reference", PODSTrainer, tiny_folder)
    options = CASES["reference"]
    quantized = partial(make, quantization_config="four bits")
    build(tiny_folder, tmp_path, make=quantized, num_rollouts=4, **options)
    assert given == ["four bits"] * 2  # the policy and its reference


@pytest.mark.filterwarnings("ignore:`use_liger_kernel=True` is deprecated:FutureWarning")
def test_liger_is_what_it_is_in_trl(tiny_folder: str, tmp_path: Path) -> None:
    """Its kernels without the one that would replace the head; training needs them installed."""
    configs = [
        build(tiny_folder, tmp_path, trainer_class=each, use_liger_kernel=True).args
        for each in (GRPOTrainer, PODSTrainer)
    ]
    kernels = [config.liger_kernel_config for config in configs]
    assert kernels == [{"fused_linear_cross_entropy": False}] * 2


@pytest.mark.filterwarnings("ignore:`use_transformers_paged` is deprecated:FutureWarning")
def test_the_old_name_of_continuous_batching(tmp_path: Path) -> None:
    for trainer_class in (GRPOTrainer, PODSTrainer):
        config = arguments(trainer_class, tmp_path, use_transformers_paged=True)
        assert config.use_transformers_continuous_batching


def fields() -> list[str]:
    """GRPOConfig's fields that TRL defines, podsrl reads or a case sets, in TRL's order."""
    defined = {
        name
        for each in GRPOConfig.__mro__
        if each.__module__.startswith("trl.")
        for name in inspect.get_annotations(each)
    }
    code = "".join(path.read_text() for path in (ROOT / "src/podsrl/trl").glob("*.py"))
    read = {*re.findall(r"\b(?:args|config)\.([a-z]\w*)\b", code)}
    return [
        field.name
        for field in dataclasses.fields(GRPOConfig)
        if field.name in defined | read | {*covering()}
    ]


def covering() -> dict[str, str]:
    """Argument or field -> the test that sets it."""
    found = dict(ELSEWHERE)
    found |= {name: f"{THIS}::{test}" for name, test in HERE.items()}
    for test, cases in (
        ("test_options_of_vllm_with_n_equal_to_m_are_trls", ENGINE),
        ("test_options_with_n_equal_to_m_are_trls", CASES),
    ):
        for case, options in cases.items():
            names = [*options, *(ARGUMENTS.get(case, ()) if cases is CASES else ())]
            found |= {name: f"{THIS}::{test}[{case}]" for name in names}
    return found


def table() -> str:
    """The rows of docs/trl.md, and what is said of the fields that have none."""
    tests = covering()
    names = [*inspect.signature(GRPOTrainer).parameters], fields()
    lines = ["| argument or field | test |", "| --- | --- |"]
    for name in [*names[0], *names[1]]:
        test = tests.get(name, "not covered")
        lines.append(f"| `{name}` | {test.removeprefix('tests/trainer/')} |")
    others = len(dataclasses.fields(GRPOConfig)) - len(names[1])
    lines += [
        "",
        f"The other {others} fields are those of `TrainingArguments`, which TRL inherits, "
        "transformers' Trainer handles and no code here touches.",
    ]
    return "\n".join(lines)


def page_with(rows: str) -> str:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(MARKS[0] + "\n")
    return f"{before}{MARKS[0]}\n{rows}\n{MARKS[1]}{rest.split(MARKS[1], 1)[1]}"


def test_every_field_is_covered_and_the_page_says_by_what() -> None:
    assert "not covered" not in table(), [row for row in table().splitlines() if "not cov" in row]
    assert page_with(table()) == PAGE.read_text(encoding="utf-8"), f"run `python {THIS}`"


def test_a_field_of_a_new_trl_is_not_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    made = dataclasses.make_dataclass("Newer", [("new_field", int, 1)], bases=(GRPOConfig,))
    made.__module__ = "trl.newer"
    monkeypatch.setattr(sys.modules[__name__], "GRPOConfig", made)
    assert "| `new_field` | not covered |" in table()


def test_the_other_tests_set_what_they_are_named_for() -> None:
    """In the test's file, or the helpers that it imports from, as a keyword or a key."""
    for name, test in ELSEWHERE.items():
        path, function = test.split("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert function in {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}
        imported = [each.module or "" for each in tree.body if isinstance(each, ast.ImportFrom)]
        helpers = [ROOT / "tests" / f"{each.replace('.', '/')}.py" for each in imported]
        code = [path.read_text() for path in (ROOT / path, *helpers) if path.is_file()]
        assert any(re.search(rf'\b{name}=|"{name}":', text) for text in code), (name, test)


def test_the_readme_names_what_is_left_refused() -> None:
    """The rows of docs/trl.md, each with its reason in brackets; it links to the rest there."""
    page = PAGE.read_text(encoding="utf-8").split("## What is refused")[1].split("## ")[0]
    rows = re.findall(r"^\| (`(?!sdpo_).*?) \|", page, re.MULTILINE)
    (told,) = re.findall(r"Refused: (.*?)\. ", (ROOT / "README.md").read_text(encoding="utf-8"))
    told, links = re.subn(r"\]\(docs/trl\.md#what-is-refused\)", "]", told)
    assert links == 1
    assert len(rows) == told.count("(") == 4
    for name in ("early_stop", "tdpo", "astar_po", "qrpo", "sdpo"):
        assert name in told and any(name in row for row in rows), name


if __name__ == "__main__":
    PAGE.write_text(page_with(table()), encoding="utf-8")
