"""Data and pre-trained models are looked at without loading them; what is absent or does not fit is named."""

import json
import shutil

import pytest
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from common.config import RunConfig
from common.text import load_tokenizer, train_word_tokenizer
from deploy.preflight.models import check_data, check_models, input_paths


def data_failures(config):
    return [finding.failure for finding in check_data(config) if finding.failure]


def model_failures(config):
    return [finding.failure for finding in check_models(config) if finding.failure]


@pytest.fixture
def with_files(tiny):
    """A configuration that fine-tunes on files."""

    def make(*paths, **columns):
        source = {"type": "files", "paths": [str(path) for path in paths], **columns}
        changes = ", ".join(f"{key} = {json.dumps(value)}" for key, value in source.items())
        return tiny(f"data.mine={{{changes}}}", 'sft.data=["mine"]')

    return make


def test_inline_texts_are_there(tiny):
    (finding,) = check_data(tiny())
    assert (finding.check, finding.failure) == ("data.reviews", "")
    assert finding.measured == "32 inline texts"


def test_data_that_no_stage_reads_are_not_asked_for(tiny):
    assert not data_failures(tiny('data.unused={type="files", paths=["/nowhere.csv"]}'))


def test_files_with_the_columns_pass_and_are_measured(with_files, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nhello,1\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"label": 0, "text": "hello"}\n', encoding="utf-8")
    config = with_files(tmp_path / "a.csv", tmp_path / "b.jsonl", label_column="label")
    assert not data_failures(config)
    assert check_data(config)[-1].measured == "2 files of 49 bytes, with text, label"


def test_an_absent_file_and_an_absent_column_are_both_told(with_files, tiny, tmp_path):
    (tmp_path / "a.csv").write_text("txt\nhello\n", encoding="utf-8")
    first = f'data.a={{type="files", paths=["{tmp_path / "a.csv"}"]}}'
    second = f'data.b={{type="files", paths=["{tmp_path / "b.csv"}"]}}'
    found = data_failures(tiny(first, second, 'sft.data=["a", "b"]'))
    assert len(found) == 2
    assert "data.a: " in found[0]
    assert "has no column 'text': did you mean 'txt'?" in found[0]
    assert "data.b: " in found[1]
    assert "b.csv does not exist; did you mean a.csv?" in found[1]


def test_an_absent_package_names_what_to_install(tiny):
    source = 'data.p={type="package", package="no_such_package", file="x.csv", install="no-such-package==1"}'
    (failure,) = data_failures(tiny(source, 'ppo.data=["p"]'))
    assert "run: pip install no-such-package==1" in failure


# --- models


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory):
    """A tiny GPT-2 of 8 words and 16 positions, with its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "gpt2"
    tokenizer = train_word_tokenizer(["a good film", "a bad film"], vocabulary_size=8, max_tokens=16)
    shape = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=16, eos_token_id=2)
    GPT2LMHeadModel(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def gpt2_copy(gpt2_folder, tmp_path):
    return shutil.copytree(gpt2_folder, tmp_path / "gpt2")


@pytest.fixture
def pretrained(tiny):
    """A run of `tiny` from a pre-trained policy."""

    def make(folder, *changes):
        settings = tiny("sft.max_tokens=16", *changes).model_dump()
        settings |= {"model": {"type": "pretrained", "path": str(folder)}, "pretrain": None}
        return RunConfig.model_validate(settings)

    return make


@pytest.fixture
def judged(tiny):
    """A run of `tiny` whose reward model is a pre-trained classifier, used as it is."""

    def make(folder, **table):
        classifier = {"type": "pretrained", "path": str(folder)}
        settings = tiny().model_dump() | {"reward_model": {"classifier": classifier, "max_tokens": 16, **table}}
        return RunConfig.model_validate(settings)

    return make


def test_a_fresh_model_needs_nothing(tiny):
    assert check_models(tiny()) == []


def test_a_model_that_fits_is_described(pretrained, gpt2_folder):
    (finding,) = check_models(pretrained(gpt2_folder))
    assert finding.failure == ""
    assert "gpt2, 7 tokens known, embedding of 7, 16 positions" in finding.measured


def test_a_model_that_is_not_there_is_named(pretrained, tmp_path):
    (failure,) = model_failures(pretrained(tmp_path / "nothing"))
    assert "model: cannot load" in failure
    assert "nothing" in failure


def test_a_folder_of_an_unknown_kind_of_model_is_named(pretrained, gpt2_copy):
    (gpt2_copy / "config.json").write_text('{"model_type": "quantum"}', encoding="utf-8")
    (failure,) = model_failures(pretrained(gpt2_copy))
    assert "is no model that transformers knows" in failure
    assert "quantum" in failure


def test_a_copy_without_weights_is_told(pretrained, gpt2_copy):
    (gpt2_copy / "model.safetensors").unlink()
    (failure,) = model_failures(pretrained(gpt2_copy))
    assert "holds no weights" in failure


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_told(pretrained, gpt2_copy):
    tokenizer = load_tokenizer(str(gpt2_copy))
    tokenizer.add_tokens(["movie"])
    tokenizer.save_pretrained(gpt2_copy)
    (failure,) = model_failures(pretrained(gpt2_copy))
    assert "knows ids up to 7, but the model's embedding has 7 rows" in failure


def test_a_model_without_eos_is_told(pretrained, gpt2_copy):
    for name, key in (
        ("tokenizer_config.json", "eos_token"),
        ("config.json", "eos_token_id"),
        ("generation_config.json", "eos_token_id"),
    ):
        path = gpt2_copy / name
        settings = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(settings | {key: None}), encoding="utf-8")
    (failure,) = model_failures(pretrained(gpt2_copy))
    assert "names an EOS token, so no response could ever end" in failure


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("ppo.response_tokens={min = 4, max = 20}", "responses of 20 tokens do not fit the model's 16 positions"),
        ("sft.max_tokens=17", "sft.max_tokens=17 does not fit the 16 positions"),
        ("ppo.trainable_layers=2", "ppo.trainable_layers=2 exceeds the 1 layers"),
    ],
)
def test_what_does_not_fit_the_model_is_told(pretrained, gpt2_folder, change, said):
    (failure,) = model_failures(pretrained(gpt2_folder, change))
    assert said in failure


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory):
    """A tiny BERT classifier of two classes and 16 positions."""
    folder = tmp_path_factory.mktemp("models") / "bert"
    tokenizer = train_word_tokenizer(["a good film", "a bad film"], vocabulary_size=8, max_tokens=16)
    shape = BertConfig(
        vocab_size=8,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=16,
    )
    BertForSequenceClassification(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_that_fits_is_described(judged, bert_folder):
    (finding,) = check_models(judged(bert_folder))
    assert (finding.check, finding.failure) == ("reward_model", "")
    assert "bert, 7 tokens known, 2 classes" in finding.measured


def test_a_class_that_the_classifier_does_not_have_is_told(judged, bert_folder):
    (failure,) = model_failures(judged(bert_folder, positive_class=2))
    assert "reward_model.positive_class=2, but" in failure
    assert "legal are 0 to 1" in failure


def test_texts_longer_than_the_classifier_reads_are_told(judged, bert_folder):
    (failure,) = model_failures(judged(bert_folder, max_tokens=64))
    assert "reward_model.max_tokens=64 does not fit the 16 positions" in failure


def test_what_other_nodes_must_have_is_what_is_on_disk_here(pretrained, gpt2_folder, tmp_path):
    (tmp_path / "a.csv").write_text("text\nhello\n", encoding="utf-8")
    pattern = str(tmp_path / "*.csv")
    change = f'data.mine={{type="files", paths=["{pattern}", "/nowhere/x.csv"]}}'
    assert input_paths(pretrained(gpt2_folder, change, 'sft.data=["mine"]')) == (pattern, str(gpt2_folder))


def test_a_dataset_of_the_hub_is_looked_at_without_loading_it(tiny, tmp_path, monkeypatch):
    (tmp_path / "train.jsonl").write_text('{"text": "hello"}\n', encoding="utf-8")
    monkeypatch.setattr("datasets.load_dataset", None)
    config = tiny(f"data.mine={{type='hub', path='{tmp_path}'}}", 'sft.data=["mine"]')
    assert not data_failures(config)
    assert f"{tmp_path}, split train, version " in check_data(config)[-1].measured
    assert input_paths(config) == (str(tmp_path),)


def test_a_dataset_that_cannot_be_had_is_named(tiny):
    config = tiny("data.mine={type='hub', path='stanfordnlp/imdb'}", 'sft.data=["mine"]')
    (failure,) = data_failures(config)
    assert failure.startswith("data.mine: cannot read stanfordnlp/imdb, split train")


def test_inline_records_are_counted(tiny):
    rows = "{type='inline', rows={type='demonstrations'}, records=[{prompt='a', response='b'}]}"
    assert check_data(tiny(f"data.mine={rows}", 'sft.data=["mine"]'))[-1].measured == "1 inline records"
