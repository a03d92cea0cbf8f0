"""What all tests share: a safe environment, the tiny configuration, one finished run of it, and one Ray cluster.

The environment comes first: Ray and OpenMP read theirs when they are imported.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import settings

from common.config import RunConfig
from common.config_file import load_config
from deploy.on_ray.environment import protect_local_cluster

protect_local_cluster()
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test touches the network

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")

TINY = Path(__file__).parents[1] / "deploy" / "configs" / "tiny.toml"

Tiny = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """Makes the configuration deploy/configs/tiny.toml, with changes as `--set` takes them."""

    def make(*changes: str) -> RunConfig:
        return load_config(TINY, changes)

    return make


@pytest.fixture(scope="session")
def tiny_run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `tiny` in one process. To be read only: change a copy."""
    from deploy.run import run_pipeline

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run_pipeline(tiny(), folder, local=True, address=None, again=frozenset())
    return folder


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """A GGUF file of a tiny Llama in 8 bits, and the weights that it holds, by their names in Hugging Face's format."""
    gguf = pytest.importorskip("gguf", reason="pip install 'minichatgpt[gguf]'")
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write_tiny_gguf(gguf, path)


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, for a test to change; no cache lies beside it."""
    folder = tmp_path / "runs" / tiny_run.name
    shutil.copytree(tiny_run, folder)
    return folder


@pytest.fixture(scope="session")
def ray_runtime(tiny: Tiny) -> Iterator[object]:
    """One Ray cluster for all tests that want one, large enough for four workers; it outlives single runs."""
    import psutil

    from deploy.cluster import RayRuntime

    class SharedRuntime(RayRuntime):
        """Stays open where a pipeline would close it."""

        def close(self) -> None:
            """The fixture closes it."""

    others = psutil.Process().children(recursive=True)
    runtime = SharedRuntime(tiny("rollout.workers=4"))
    started = [process for process in psutil.Process().children(recursive=True) if process not in others]
    yield runtime
    RayRuntime.close(runtime)
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive, f"Ray left processes behind: {alive}"


def write_tiny_gguf(gguf: Any, path: Path) -> dict[str, object]:
    """Write a Llama as llama.cpp's converter does: rows of queries and keys interleaved, tokens at byte level."""
    import numpy as np
    import torch
    from tokenizers import pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = ["<|endoftext|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=len(tokens), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
                        initializer_range=0.25)  # fmt: skip
    writer = gguf.GGUFWriter(str(path), "llama")
    for add, value in (
        (writer.add_context_length, 64), (writer.add_embedding_length, 32), (writer.add_block_count, 2),
        (writer.add_feed_forward_length, 64), (writer.add_head_count, 4), (writer.add_head_count_kv, 2),
        (writer.add_layer_norm_rms_eps, shape.rms_norm_eps), (writer.add_rope_freq_base, 10000.0),
        (writer.add_tokenizer_model, "gpt2"), (writer.add_tokenizer_pre, "smollm"), (writer.add_token_list, tokens),
        (writer.add_token_merges, ["t h"]), (writer.add_token_types, [3, 3] + [1] * (len(tokens) - 2)),
        (writer.add_bos_token_id, 0), (writer.add_eos_token_id, 1), (writer.add_chat_template, GGUF_TEMPLATE),
    ):  # fmt: skip
        add(value)
    held = {}
    for name, weight in LlamaForCausalLM(shape).state_dict().items():
        if name == "lm_head.weight":
            continue
        raw, kind = weight.numpy(), None
        if raw.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            raw = gguf.quants.quantize(raw, kind)
        held[name] = torch.from_numpy(np.array(raw if kind is None else gguf.quants.dequantize(raw, kind)))
        if heads := {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2]):
            raw = raw.reshape(heads, 2, len(raw) // heads // 2, -1).swapaxes(1, 2).reshape(raw.shape)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(raw), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


GGUF_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"


def gguf_name(name: str) -> str:
    """A weight's name in a GGUF file."""
    parts = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "q_proj": "attn_q",
             "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
             "up_proj": "ffn_up", "down_proj": "ffn_down", "embed_tokens": "token_embd",
             "norm": "output_norm"}  # fmt: skip
    words = name.split(".")
    layer = f"blk.{words[2]}." if "layers" in words else ""
    return f"{layer}{parts[words[-2]]}.weight"


@pytest.fixture
def store():
    """fsspec's object store in memory, empty: files by path."""
    MemoryFileSystem.store.clear()
    yield MemoryFileSystem.store
    MemoryFileSystem.store.clear()
