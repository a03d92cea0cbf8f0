"""What a run exports is read by plain transformers, with nothing of ours in the process, and gives the same bits."""

import hashlib
import json
import os
import subprocess
import sys
import sysconfig

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from actors.chat import Sampling, Speaker
from common.classifiers import load_classifier, register_classifiers
from common.config import RunConfig
from common.modeling import load_policy
from common.text import encode, eos_token_ids, load_tokenizer
from deploy.run import run_pipeline

ROOMS = ("actors", "common", "deploy", "learner", "reward_service")
PROMPT = "this film is"
PLAIN = """
import hashlib, json, sys
from importlib.abc import MetaPathFinder

class Nobody(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in {rooms!r}:
            raise ImportError(name + " is of Mini-ChatGPT")

sys.meta_path.insert(0, Nobody())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

torch.set_num_threads(1)
found = {{}}
for folder in sys.argv[1:]:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    encoded = tokenizer({prompt!r}, return_tensors="pt")
    with torch.inference_mode():
        logits = model(input_ids=encoded["input_ids"]).logits
    speak = pipeline("text-generation", model=folder)
    spoken = speak({prompt!r}, max_new_tokens=8, do_sample=False, return_full_text=False)[0]["generated_text"]
    bits = hashlib.sha256(logits.numpy().tobytes()).hexdigest()
    found[folder] = [encoded["input_ids"][0].tolist(), str(logits.dtype), bits, spoken]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def plain(tiny_run, tmp_path_factory):
    """What a program without our packages finds in each policy's folder."""
    folders = [str(tiny_run / "models" / name) for name in ("pretrained", "sft", "ppo")]
    # -S: no editable install of ours is put on the path
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"PYTHONPATH": sysconfig.get_path("purelib"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", PLAIN.format(rooms=ROOMS, prompt=PROMPT), *folders],
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["pretrained", "sft", "ppo"])
def test_a_policy_has_the_same_ids_and_logits_bit_for_bit(tiny_run, plain, name):
    folder = str(tiny_run / "models" / name)
    ids, dtype, bits, _ = plain[folder]
    ours = encode(load_tokenizer(folder), [PROMPT])[0]
    with torch.inference_mode():
        logits = load_policy(folder)(input_ids=torch.from_numpy(ours).long()[None]).logits
    assert ids == ours.tolist()
    assert dtype == "torch.float32"
    assert bits == hashlib.sha256(logits.numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["pretrained", "sft", "ppo"])
def test_a_pipeline_says_what_chat_says(tiny_run, plain, name):
    folder = str(tiny_run / "models" / name)
    speaker = Speaker(load_policy(folder), load_tokenizer(folder), frozenset({2}))
    ids = encode(speaker.tokenizer, [PROMPT])[0]
    reply = speaker.answer(ids, Sampling(temperature=0, max_tokens=8), 1, continues=True)
    list(reply)
    assert plain[folder][3].strip() == reply.answer().text.strip() != ""


def test_the_exported_policies_differ(plain):
    assert len({bits for _, _, bits, _ in plain.values()}) == 3


@pytest.mark.parametrize("role", ["reward_model", "judge"])
def test_a_classifier_of_ours_is_read_by_transformers_once_it_is_registered(tiny_run, role):
    folder = str(tiny_run / "models" / role)
    register_classifiers()
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoded = AutoTokenizer.from_pretrained(folder)(
        ["i like this good film", "i hate it"], padding=True, return_tensors="pt"
    )
    inputs = {"input_ids": encoded["input_ids"], "attention_mask": encoded["attention_mask"]}
    with torch.inference_mode():
        logits, ours = model(**inputs).logits, load_classifier(folder)(**inputs).logits
    assert torch.equal(logits, ours)
    assert logits[0, 1] > logits[1, 1], "the good one has the higher score"


@pytest.fixture(scope="module")
def chat_run(tiny, tiny_run, tmp_path_factory):
    """A run from a model whose turns end with a token that its settings do not name."""
    runs = tmp_path_factory.mktemp("chat")
    policy, tokenizer = (load(str(tiny_run / "models" / "pretrained")) for load in (load_policy, load_tokenizer))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"
    policy.resize_token_embeddings(len(tokenizer))
    policy.save_pretrained(runs / "model")
    tokenizer.save_pretrained(runs / "model")
    parts = {
        "pretrain": None,
        "judge": None,
        "evaluate": None,
        "model": {"type": "pretrained", "path": str(runs / "model")},
    }
    config = RunConfig.model_validate(tiny("ppo.updates=1").model_dump() | parts)
    run_pipeline(config, runs / "run", local=True, address=None, again=frozenset())
    return runs / "run"


@pytest.mark.parametrize("name", ["sft", "ppo"])
def test_plain_generation_ends_where_the_run_ended_at_the_end_of_a_turn_too(chat_run, name):
    folder = str(chat_run / "models" / name)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert set(model.generation_config.eos_token_id) == {2, end} == eos_token_ids(folder, load_tokenizer(folder))
    bias = {(end,): 1000.0}  # so that it is said at once
    encoded = tokenizer(PROMPT, return_tensors="pt")
    spoken = model.generate(input_ids=encoded["input_ids"], max_new_tokens=8, do_sample=False, sequence_bias=bias)
    assert spoken[0, encoded["input_ids"].shape[1] :].tolist() == [end]
