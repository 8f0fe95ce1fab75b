"""What users call and set is as pinned in public_names.json: names, defaults and help texts.

A change that is meant is pinned with `python tests/test_public_names.py` and told in CHANGELOG.md.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from trl import GRPOConfig, GRPOTrainer

import podsrl
from podsrl import PODSConfig, PODSTrainer

PINS = Path(__file__).with_name("public_names.json")

# Every function that these modules define without a leading underscore is public.
MODULES = (
    "podsrl.core.select",
    "podsrl.core.rules",
    "podsrl.core.advantage",
    "podsrl.core.budget",
    "podsrl.core.statistics",
    "podsrl.core.early_stop",
    "podsrl.models",
)
FUNCTIONS = ("podsrl.select", "podsrl.tasks.load_task", "podsrl.evaluate.evaluate")
# Two ways to build the configuration: with the defaults, and with n = m, which is plain GRPO.
BUILT = {"n > m": {"num_generations": 4}, "n = m": {"num_generations": 4, "num_rollouts": 4}}


def parameters(function: Callable[..., Any]) -> str:
    """The signature without annotations, which callers do not depend on."""
    signature = inspect.signature(function)
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=signature.empty))


def functions_of(module_name: str) -> dict[str, str]:
    """Dotted name -> parameters of the public functions that the module defines."""
    members = inspect.getmembers(import_module(module_name), inspect.isfunction)
    return {
        f"{module_name}.{name}": parameters(function)
        for name, function in members
        if not name.startswith("_") and function.__module__ == module_name
    }


def functions() -> dict[str, str]:
    """Dotted name -> parameters of everything that is public."""
    found: dict[str, str] = {}
    for module in MODULES:
        found |= functions_of(module)
    for dotted in FUNCTIONS:
        module, name = dotted.rsplit(".", 1)
        found[dotted] = parameters(getattr(import_module(module), name))
    return found


def described(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """Type, default and help text of one field of a configuration."""
    is_made = field.default_factory is not dataclasses.MISSING
    default = field.default_factory() if is_made else field.default
    kind = hint.__name__ if isinstance(hint, type) else str(hint)
    return {"type": kind, "default": repr(default), "help": field.metadata.get("help")}


def fields_of(config: type) -> dict[str, dict[str, Any]]:
    """Name -> description of all fields, in the order in which a caller may give them."""
    # The hints, because parsers of flags write what they read into `field.type`.
    hints = get_type_hints(config)
    return {field.name: described(field, hints[field.name]) for field in dataclasses.fields(config)}


def own_fields() -> dict[str, dict[str, Any]]:
    """The fields that PODSConfig adds to GRPOConfig or describes otherwise, by name."""
    of_grpo = fields_of(GRPOConfig)
    own = {name: f for name, f in fields_of(PODSConfig).items() if of_grpo.get(name) != f}
    return dict(sorted(own.items()))


def values_once_built(options: dict[str, Any], output_dir: Path) -> dict[str, str]:
    """What the own fields hold after `__post_init__` has filled in what was left out."""
    config = PODSConfig(str(output_dir), per_device_train_batch_size=8, bf16=False, **options)
    return {name: repr(getattr(config, name)) for name in own_fields()}


def state(output_dir: Path) -> dict[str, Any]:
    """Everything that is pinned."""
    return {
        "names": sorted(podsrl.__all__),
        "rules": list(podsrl.RULES),
        "functions": functions(),
        "fields": own_fields(),
        "built": {case: values_once_built(o, output_dir) for case, o in BUILT.items()},
    }


IF_MEANT = "if this is meant: python tests/test_public_names.py, and CHANGELOG.md"


def pinned(part: str) -> Any:
    return json.loads(PINS.read_text(encoding="utf-8"))[part]


@pytest.mark.parametrize("part", ["names", "rules", "fields", "built"])
def test_public_names_and_settings_are_as_pinned(part: str, tmp_path: Path) -> None:
    assert state(tmp_path)[part] == pinned(part), IF_MEANT


def test_functions_take_what_they_took() -> None:
    """Functions may be added; those that are pinned stay, and a call of theirs means the same."""
    before, now = pinned("functions"), functions()
    assert {name: now.get(name) for name in before} == before, IF_MEANT


def test_fields_of_grpo_keep_their_names_order_and_defaults() -> None:
    """A GRPOConfig call is a PODSConfig call, also with values given by position."""
    of_grpo, ours = fields_of(GRPOConfig), fields_of(PODSConfig)
    assert list(ours)[: len(of_grpo)] == list(of_grpo)
    redescribed = [name for name, field in of_grpo.items() if ours[name] != field]
    assert redescribed == ["beta"]  # None: the objective's own


def test_the_trainer_takes_what_grpo_trainer_takes() -> None:
    assert str(inspect.signature(PODSTrainer)) == str(inspect.signature(GRPOTrainer))


def main() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        pins = state(Path(folder))
    PINS.write_text(json.dumps(pins, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
