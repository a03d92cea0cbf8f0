"""What all peers work on is the same, and ours does a step on it as the others would."""

import ast
import io
import json
import sys

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from deploy.bench.peers.comparison import TRL
from deploy.bench.peers.ours import VARIANTS, OurStep
from deploy.bench.peers.programs.judging import judge_ids, load_judge
from deploy.bench.peers.programs.task import END, PADDING, Task, read_prompts
from deploy.bench.peers.programs.turns import Turns
from deploy.bench.peers.work_folder import PROGRAMS, write_work

SIZE = 64
THERE = {"torch", "transformers", "trl", "datasets", "numpy"}
"""Installed in the environments of the peers."""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=SIZE, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=64, tie_word_embeddings=True, eos_token_id=0, pad_token_id=1, rope_theta=5e4,
    )  # fmt: skip
    write_work(folder, LlamaForCausalLM(shape), Task(steps=2, learning_rate=3e-3, threads=1))
    return folder


def test_the_task_comes_back_as_it_was_written(work):
    assert Task.read(work) == Task(steps=2, learning_rate=3e-3, threads=1)
    prompts = read_prompts(work)
    assert (len(prompts), {len(ids) for ids in prompts}) == (64, {8})
    assert {i for ids in prompts for i in ids} <= set(range(SIZE))


def test_nothing_that_a_model_can_sample_ends_a_response(work):
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(work / "tokenizer.json"), eos_token=END, pad_token=PADDING)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (SIZE, SIZE + 1)
    policy = AutoModelForCausalLM.from_pretrained(work / "policy")
    assert policy.get_output_embeddings().weight.shape[0] == SIZE
    assert policy.config.eos_token_id is None
    assert policy.generation_config.eos_token_id is None


def test_text_and_ids_of_a_prompt_are_the_same(work):
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(work / "tokenizer.json"), eos_token=END, pad_token=PADDING)
    prompts = read_prompts(work)
    assert tokenizer(tokenizer.batch_decode(prompts))["input_ids"] == prompts


def test_the_value_model_begins_as_the_policy_and_at_zero(work):
    policy = AutoModelForCausalLM.from_pretrained(work / "policy")
    value = AutoModelForSequenceClassification.from_pretrained(work / "value")
    mine, theirs = policy.model.state_dict(), value.model.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert not value.score.weight.any()


def test_older_libraries_find_the_entries_that_they_look_for(work):
    config = json.loads((work / "policy" / "config.json").read_text())
    assert (config["rope_theta"], config["torch_dtype"]) == (5e4, "float32")


def test_the_share_of_wanted_tokens_is_counted_in_the_response_only(work):
    task = Task(steps=1, reward="token_share", prompt_tokens=2, response_tokens=4)
    ids = torch.tensor([[4, 8, 1, 4, 0, 3], [1, 1, 2, 3, 5, 6]])
    assert judge_ids(load_judge(work, task), ids).tolist() == [0.5, 0.0]


def test_the_classifier_says_what_its_own_head_says(work):
    judge = AutoModelForSequenceClassification.from_pretrained(work / "reward")
    ids = torch.randint(2, SIZE, (3, 24))
    ours = judge_ids(load_judge(work, Task.read(work)), ids)
    torch.testing.assert_close(ours, judge(input_ids=ids).logits[:, 0].detach())


@pytest.mark.parametrize("variant", VARIANTS)
def test_ours_does_a_step_of_full_length_and_learns(work, variant):
    said = io.StringIO()
    ours = OurStep(work, Task.read(work), Turns(io.StringIO("step\nstep\n"), said), variant)
    before = [p.detach().clone() for p in ours.learner.plain.policy.parameters()]
    with pytest.raises(SystemExit):
        ours.turns.run(ours.step)
    first, second = (json.loads(line) for line in said.getvalue().splitlines())
    assert first["kl"] == pytest.approx(0.0, abs=1e-4)
    assert second["kl"] > 1e-3
    assert all(first[phase] > 0 for phase in ("generation", "forward", "update"))
    after = list(ours.learner.plain.policy.parameters())
    changed = sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert 0 < changed <= len(before)
    assert (changed == len(before)) is (variant != "top-2")
    assert ours.learner.step == 2


def test_programs_import_only_what_the_peers_environments_have():
    for path in PROGRAMS.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
        names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        wrong = [
            name
            for name in names
            if name.split(".")[0] not in sys.stdlib_module_names | THERE
            and not name.startswith("deploy.bench.peers.programs.")
        ]
        assert not wrong, path.name


def test_every_program_that_is_named_travels_with_the_work(work):
    code = work / "code" / "deploy" / "bench" / "peers" / "programs"
    assert {f"{program}.py" for _, program, _ in TRL.values()} <= {path.name for path in code.iterdir()}
    assert [path.name for path in (work / "code").iterdir()] == ["deploy"]
    assert [path.name for path in (work / "code" / "deploy" / "bench").iterdir()] == ["peers"]
