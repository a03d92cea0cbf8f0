"""Prompts from texts begin as the model's own tokenizer begins a text."""

import pytest
from tokenizers import processors
from transformers import LlamaConfig

from actors.prompt_texts import build_prompts
from common.corpus import load_corpus
from common.records import ModelPaths
from common.text import train_word_tokenizer


@pytest.mark.parametrize("with_bos", [False, True])
def test_prompts_begin_with_the_bos_token_where_the_tokenizer_writes_it(tiny, tmp_path, with_bos):
    config = tiny()
    tokenizer = train_word_tokenizer(load_corpus(config.data["reviews"]).texts, vocabulary_size=64, max_tokens=32)
    if with_bos:
        tokenizer.bos_token = "<eos>"  # as in GPT-2, one token for both
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<eos> $A", special_tokens=[("<eos>", 2)]
        )
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig(eos_token_id=2).save_pretrained(tmp_path)
    prompts = build_prompts(config, ModelPaths(str(tmp_path), None, None)).take(64)
    assert {int(prompt.token_ids[0]) == 2 for prompt in prompts} == {with_bos}
    assert not any((prompt.token_ids[1:] == 2).any() for prompt in prompts)
    assert {len(prompt.token_ids) for prompt in prompts} == {1, 2, 3}
