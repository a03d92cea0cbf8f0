"""From a configuration to the stream of prompts; in the driver alone, so that workers need no data libraries."""

import numpy as np

from actors.prompts import PromptStream
from common.config import RunConfig
from common.corpus import Which, load_corpus, split
from common.errors import DataError
from common.records import ModelPaths
from common.text import encode, eos_token_ids, load_tokenizer, opening_ids


def build_prompts(config: RunConfig, paths: ModelPaths, *, heldout: bool = False) -> PromptStream:
    """Prompts from the data that the PPO stage names: its training split, or the held-out one for evaluation."""
    ppo = config.ppo
    assert ppo is not None, "prompts are of a PPO stage"
    tokenizer = load_tokenizer(paths.policy)
    which: Which = "heldout" if heldout else "train"
    texts = [
        text
        for name in ppo.data
        for text in split(load_corpus(config.data[name]), config.heldout_fraction, which).texts
    ]
    opening = opening_ids(tokenizer)
    ids = encode(tokenizer, texts, max_tokens=ppo.prompt_tokens.max + 1)
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in eos_token_ids(paths.policy, tokenizer):
        ids = [i for i in ids if tokenizer.unk_token_id not in i]
        if not ids:
            raise DataError(
                f"every text of {', '.join(ppo.data)} begins with a word that the policy's vocabulary of "
                f"{len(tokenizer)} lacks; choose other data, or raise model.vocabulary_size"
            )
    return PromptStream(
        [np.concatenate([opening, i]) for i in ids] if len(opening) else ids,
        prompt_tokens=ppo.prompt_tokens,
        response_tokens=ppo.response_tokens,
        seed=config.seed + (1 << 32 if heldout else 0),
    )
