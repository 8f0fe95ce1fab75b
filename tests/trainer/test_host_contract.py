"""What podsrl relies on in TRL: when a new TRL changes any of it, these tests say so."""

import inspect
import re
from importlib.metadata import version

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import split_tensor_dict

from podsrl import PODSTrainer
from podsrl.trl.seen import SEEN

# Of every method of GRPOTrainer that PODSTrainer overrides; which these are, the class says.
SIGNATURES = {
    "_generate": ["self", "prompts"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "log": ["self", "logs", "start_time"],
    "_compute_loss": ["self", "model", "inputs"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "_get_train_sampler": ["self", "dataset"],
    "_generate_single_turn": [
        *("self", "prompt_ids", "images", "multimodal_fields", "num_generations"),
        "has_tool_images",
    ],
    "_get_per_token_logps_and_entropies": [
        *("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"),
        *("compute_entropy", "compute_aux_loss", "pixel_values", "image_grid_thw", "num_images"),
        *("pixel_attention_mask", "spatial_shapes", "num_tiles", "image_sizes", "token_type_ids"),
        *("mm_token_type_ids", "image_position_ids"),
    ],
}


def _source(method: str) -> str:
    return inspect.getsource(getattr(GRPOTrainer, method))


def overridden() -> set[str]:
    """The methods of GRPOTrainer and its bases in whose place one of PODSTrainer stands."""
    own = {name for name, value in vars(PODSTrainer).items() if inspect.isfunction(value)}
    return {name for name in own if hasattr(GRPOTrainer, name)} - {"__init__"}


def test_every_overridden_method_is_pinned_and_told_of() -> None:
    assert set(SIGNATURES) == overridden()
    for name in overridden():
        assert name in (PODSTrainer.__doc__ or ""), name


def test_one_class_overrides_and_none_of_ours_is_overridden() -> None:
    assert PODSTrainer.__bases__ == (GRPOTrainer,)
    ours = [each for each in PODSTrainer.__mro__ if each.__module__.startswith("podsrl")]
    assert ours == [PODSTrainer]


@pytest.mark.parametrize(("method", "parameters"), SIGNATURES.items())
def test_signatures(method: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(GRPOTrainer, method)).parameters) == parameters


def test_version_is_in_the_tested_range() -> None:
    assert version("trl").startswith("1.16."), (
        "pyproject.toml allows TRL 1.16 only; extend it together with these contract tests"
    )


def test_generation_comes_before_log_probs_and_those_before_rewards() -> None:
    """Selection inside _generate saves the log-probs of dropped rows only in this order."""
    source = _source("_generate_and_score_completions")
    calls = ["= self._generate(prompts)", "_get_per_token_logps_and_entropies(", "beta != 0.0"]
    calls.append("self._calculate_rewards(inputs, prompts, completions, completion_ids_list)")
    positions = [source.find(call) for call in calls]
    assert -1 not in positions, dict(zip(calls, positions, strict=True))
    assert positions == sorted(positions)


def test_names_that_objectives_read_from_a_batch() -> None:
    source = _source("_generate_and_score_completions")
    for name in (
        "advantages",
        "num_items_in_batch",
        "old_per_token_logps",
        "ref_per_token_logps",
        "sampling_per_token_logps",
    ):
        assert f'"{name}"' in source, name
    assert "current_gradient_accumulation_steps" in _source("_compute_loss")
    assert "self.model_wrapped" in _source("_generate_single_turn")


def test_what_a_model_that_sees_is_given_is_named() -> None:
    names = SIGNATURES["_get_per_token_logps_and_entropies"]
    assert {*SEEN} == {*names[names.index("pixel_values") :]}


def test_rows_are_prepared_before_generation_and_not_read_after_it() -> None:
    """Of n rows TRL makes environments and tools; then it goes on with the kept prompts alone."""
    source = _source("_generate_and_score_completions")
    generate = source.find("= self._generate(prompts)")
    for made in ("self._batch_environments = ", "self._sync_tool_dicts = ", "environment.reset("):
        assert 0 < source.find(made) < generate, made
    after = "\n".join(line.split("#")[0] for line in source[generate:].splitlines())
    assert len(re.findall(r"\binputs\b", after)) == 2  # extra fields, and rewards
    assert "if extra_fields:" in after and "self.environments" not in after
    assert "images = dataset_images" in after


def test_generate_returns_the_eight_values_in_order() -> None:
    expected = (
        "return prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, "
        "images, tool_images"
    )
    assert expected in _source("_generate")


def test_token_count_of_the_loss_is_taken_from_what_generate_returned() -> None:
    source = _source("_generate_and_score_completions")
    assert source.find("self._generate(") < source.find("num_items_in_batch = ")


def test_the_list_of_prompts_given_to_generate_is_the_one_that_is_logged_and_counted() -> None:
    """_generate puts the prompts of the kept rows into it: they may differ from the loader's."""
    source = _source("_generate_and_score_completions")
    generate = source.find("= self._generate(prompts)")
    for line in (
        "self.accelerator.process_index * len(prompts)",
        'self._logs["prompt"].extend(gather_object(prompts))',
    ):
        assert source.find(line) > generate > 0, line
    assert "prompts = " not in source[generate:]


def test_rows_are_split_over_micro_batches_by_their_number() -> None:
    """A step may have fewer rows than the configured batch: a schedule keeps fewer at first."""
    split = "split_tensor_dict(generation_batch, self.args.steps_per_generation)"
    assert split in _source("_prepare_inputs")
    parts = split_tensor_dict({"rows": torch.arange(6)}, 2)
    assert [part["rows"].tolist() for part in parts] == [[0, 1, 2], [3, 4, 5]]


def test_rewards_are_gathered_and_generation_reads_num_generations() -> None:
    assert "gather(rewards_per_func)" in _source("_calculate_rewards")
    assert "self.num_generations if mode" in _source("_generate")


def test_attributes_written_and_read_exist() -> None:
    source = inspect.getsource(GRPOTrainer)
    attributes = ["_metrics", "_logs", "_pending_extra_logs", "_step", "_is_vlm", "scale_rewards"]
    attributes += ["reward_weights", "reward_func_names", "multi_objective_aggregation"]
    for attribute in attributes:
        assert f"self.{attribute}" in source, attribute


def test_metric_names_that_are_overwritten_exist() -> None:
    source = _source("_generate_and_score_completions")
    for name in ('["reward"]', '["reward_std"]', '["frac_reward_zero_std"]', '/mean"]', '/std"]'):
        assert name in source, name


def test_config_fields_that_are_read_exist() -> None:
    fields = GRPOConfig.__dataclass_fields__
    for name in ("num_generations", "steps_per_generation", "per_device_train_batch_size"):
        assert name in fields
    assert "num_rollouts" not in fields, "TRL now has a field of our name"
