"""From data sources to the stream of prompts: beginnings of texts, whole prompts of demonstrations, mixtures."""

from collections import Counter

import pytest

from actors.prompt_texts import build_prompts
from common.config import RunConfig
from common.records import ModelPaths
from common.text import decode, load_tokenizer, train_word_tokenizer

WORDS = ["rain", "snow", "ice", "fog", "dew", "hail", "wind", "sun", "cloud", "storm"]
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


@pytest.fixture
def policy(tmp_path):
    """Folder of a tokenizer, with or without a template."""

    def make(template=None) -> str:
        texts = [f"what is {w} ? it film good user assistant system tell me all about now" for w in WORDS]
        tokenizer = train_word_tokenizer(texts, vocabulary_size=64, max_tokens=64)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(tmp_path / "policy")
        return str(tmp_path / "policy")

    return make


def asked(question: str, answer: str) -> dict:
    return {"prompt": question, "response": answer}


def config(**ppo) -> RunConfig:
    records = [asked(f"what is {w} ?", a) for w in WORDS for a in ("it good", "good")]
    chats = [
        {"m": [{"role": "user", "content": f"what is {w} ?"}, {"role": "assistant", "content": "good"},
               {"role": "user", "content": "tell me now"}, {"role": "assistant", "content": "it"}]}
        for w in WORDS
    ]  # fmt: skip
    rows = {"type": "demonstrations"}
    tree = {
        "name": "prompts",
        "heldout_fraction": 0.3,
        "data": {
            "asked": {"type": "inline", "rows": rows, "records": records},
            "chats": {"type": "inline", "rows": rows | {"messages_column": "m"}, "records": chats},
            "long": {"type": "inline", "rows": rows, "records": [*records, *[asked(f"tell me all about {w} now ?", "it")
                                                                         for w in WORDS]]},
            "told": {"type": "inline", "texts": [f"it is good {w} film" for w in WORDS]},
        },
        "model": {"type": "pretrained", "path": "none"},
        "reward_service": {"scorers": [{"type": "function", "callable": "a:b"}]},
        "ppo": {"data": ["asked"], "updates": 1, "prompt_tokens": {"min": 1, "max": 4}} | ppo,
    }  # fmt: skip
    return RunConfig.model_validate(tree)


def paths(policy: str) -> ModelPaths:
    return ModelPaths(policy=policy, reward_model=None)


def texts_of(stream, tokenizer_folder, count):
    tokenizer = load_tokenizer(tokenizer_folder)
    return [decode(tokenizer, p.token_ids) for p in stream.take(count)]


def test_demonstrations_give_their_whole_prompts_each_once(policy):
    folder = policy()
    parts = [build_prompts(config(), paths(folder), heldout=heldout) for heldout in (False, True)]
    train, heldout = (texts_of(part, folder, len(part)) for part in parts)
    assert sorted([*train, *heldout]) == sorted(f"what is {w}?" for w in WORDS)
    assert len(train) > len(heldout) > 0


def test_chats_are_templated_up_to_the_opened_turn_of_the_assistant(policy):
    folder = policy(TEMPLATE)
    stream = build_prompts(config(data=["chats"], prompt_tokens={"min": 1, "max": 16}), paths(folder))
    texts = set(texts_of(stream, folder, len(stream)))
    assert texts <= {f"user what is {w}? assistant good user tell me now assistant" for w in WORDS}
    assert len(texts) == len(stream)


def test_too_long_prompts_are_left_out_and_counted(policy):
    stream = build_prompts(config(data=["long"]), paths(policy()))
    kept = texts_of(stream, policy(), len(stream))
    assert all(text.startswith("what is") for text in kept)
    assert 0 < stream.num_too_long <= len(WORDS)


def test_texts_and_demonstrations_are_mixed_by_weight(policy):
    folder = policy()
    stream = build_prompts(config(data=["told", "asked"], weights={"told": 1, "asked": 3}), paths(folder))
    kinds = Counter(text.split()[0] for text in texts_of(stream, folder, 400))
    assert kinds == {"it": 100, "what": 300}
