"""What is installed, and of packages that only some uses need the extra of podsrl with each."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

# Module -> extra, as pyproject.toml lists them.
EXTRAS = {
    "peft": "lora",
    "matplotlib": "figures",
    "reasoning_gym": "gym",
    "gguf": "packaged",
    "shtab": "completion",
    "sklearn": "tune",
}


def is_installed(module: str) -> bool:
    """Return whether the module can be imported, without importing it."""
    return find_spec(module) is not None


def version_of(package: str) -> str | None:
    """Return the version that is installed of a package, None where it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def remedy(module: str) -> str:
    """Return the command that installs the module.

    Example: `remedy("peft") == "pip install 'podsrl[lora]'"`.
    """
    return f"pip install 'podsrl[{EXTRAS[module]}]'"


def need(module: str, what: str) -> None:
    """Raise `ValueError` naming what needs the module, and how to install it, where it is absent.

    Example: `need("peft", "use_peft")` says "use_peft needs peft: pip install 'podsrl[lora]'".
    """
    if not is_installed(module):
        raise ValueError(f"{what} needs {module}: {remedy(module)}")
