"""From data sources to the stream of prompts: beginnings of texts, whole prompts of demonstrations, mixtures."""

from collections import Counter

import numpy as np
import pytest

from actors.prompt_texts import build_prompts
from common.config import RunConfig
from common.preferences import load_preferences
from common.records import Identity, ModelPaths, Prompt, Rollout
from common.text import decode, encode, load_tokenizer, train_word_tokenizer
from reward_service.mixture import text_of

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


def judged_texts(stream, folder, response):
    """What scorers read where each prompt is answered with a response."""
    tokenizer = load_tokenizer(folder)
    ids = encode(tokenizer, [response])[0]
    rollout = Rollout(0, 0, 0, 0, ids, np.zeros(len(ids), np.float32), Identity(0, 0), "length")
    return {text_of(tokenizer, prompt, rollout).whole for prompt in stream.take(len(stream))}


@pytest.mark.parametrize("template", [TEMPLATE, None], ids=["template", "plain"])
def test_scorers_read_the_text_that_a_reward_model_is_trained_on(policy, template):
    folder = policy(template)
    pairs = [{"prompt": f"what is {w}", "chosen": "it good", "rejected": "now"} for w in WORDS]
    settings = config(prompt_tokens={"min": 1, "max": 16}).model_dump()
    settings["data"]["asked"]["records"] = [asked(p["prompt"], p["chosen"]) for p in pairs]
    settings["data"]["pairs"] = {
        "type": "inline", "rows": {"type": "preferences", "prompt_column": "prompt"}, "records": pairs
    }  # fmt: skip
    made = RunConfig.model_validate(settings)
    trained = load_preferences(made.data["pairs"], made.heldout_fraction)
    assert judged_texts(build_prompts(made, paths(folder)), folder, "it good") == {
        trained.texts[ranking[0]] for ranking in trained.rankings
    }


def test_of_a_conversation_scorers_read_every_turn_and_no_role(policy):
    folder = policy(TEMPLATE)
    stream = build_prompts(config(data=["chats"], prompt_tokens={"min": 1, "max": 16}), paths(folder))
    texts = judged_texts(stream, folder, "it")
    assert texts <= {f"what is {w} ?\ngood\ntell me now it" for w in WORDS}
    assert len(texts) == len(stream)


def test_prompts_that_decode_to_themselves_carry_no_text(policy):
    for names in (["asked"], ["told"]):
        stream = build_prompts(config(data=names), paths(policy()))
        assert isinstance(stream.prompt_at(0), Prompt)
        assert {prompt.text for prompt in stream.take(len(stream))} == {None}
