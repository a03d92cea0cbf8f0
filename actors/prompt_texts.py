"""From a configuration to the stream of prompts; in the driver alone, so that workers need no data libraries."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from actors.prompts import PromptShare, PromptStream
from common.config import RunConfig
from common.corpus import load_corpus, split
from common.data_config import DataSource
from common.demonstrations import load_demonstrations, split_demonstrations
from common.dialogue import encode_prompt, prompt_text
from common.errors import DataError
from common.records import Ids, ModelPaths
from common.row_config import DemonstrationRows
from common.splits import Which
from common.text import encode, load_tokenizer, tokenizer_eos_ids, with_opening


@dataclass(frozen=True, slots=True)
class _Texts:
    """Of one data source."""

    ids: list[Ids]
    plain: list[str | None]
    """Of each, as in `Prompt.text`."""
    are_whole: bool


def build_prompts(config: RunConfig, paths: ModelPaths, *, heldout: bool = False) -> PromptStream:
    """Prompts from the data that the PPO stage names: its training split, or the held-out one for evaluation.

    Texts give their beginnings; demonstrations, each different prompt once, with the assistant's turn opened where the
    tokenizer has a chat template.
    """
    ppo = config.ppo
    assert ppo is not None, "prompts are of a PPO stage"
    tokenizer = load_tokenizer(paths.policy)
    which: Which = "heldout" if heldout else "train"
    found = {
        name: _known(
            _read(config.data[name], tokenizer, config.heldout_fraction, which, max_tokens=ppo.prompt_tokens.max),
            tokenizer,
        )
        for name in dict.fromkeys(ppo.data)
    }
    sources = [(name, found[name]) for name in ppo.data]
    if not any(texts.ids for _, texts in sources):
        raise DataError(
            f"every text of {', '.join(ppo.data)} begins with a word that the policy's vocabulary of "
            f"{len(tokenizer)} lacks; choose other data, or raise model.vocabulary_size"
        )
    return PromptStream(
        [ids for _, texts in sources for ids in texts.ids],
        prompt_tokens=ppo.prompt_tokens,
        response_tokens=ppo.response_tokens,
        seed=config.seed + (1 << 32 if heldout else 0),
        whole=[texts.are_whole for _, texts in sources for _ in texts.ids],
        plain=[text for _, texts in sources for text in texts.plain],
        shares=[PromptShare(name, len(texts.ids), ppo.weights[name]) for name, texts in sources if ppo.weights],
    )


def _read(
    source: DataSource, tokenizer: PreTrainedTokenizerBase, heldout_fraction: float, which: Which, *, max_tokens: int
) -> _Texts:
    if isinstance(source.rows, DemonstrationRows):
        chosen = split_demonstrations(load_demonstrations(source), heldout_fraction, which)
        different: dict[bytes, tuple[Ids, str | None]] = {}
        for chat in chosen.chats:
            ids = encode_prompt(tokenizer, chat, chosen.rows)
            different.setdefault(ids.tobytes(), (ids, prompt_text(tokenizer, chat, chosen.rows)))
        prompts = list(different.values())
        return _Texts([ids for ids, _ in prompts], [plain for _, plain in prompts], are_whole=True)
    texts = split(load_corpus(source), heldout_fraction, which).texts
    beginnings = with_opening(tokenizer, encode(tokenizer, texts, max_tokens=max_tokens + 1))
    return _Texts(beginnings, [None] * len(beginnings), are_whole=False)


def _known(texts: _Texts, tokenizer: PreTrainedTokenizerBase) -> _Texts:
    """Those without a word outside of the vocabulary."""
    if tokenizer.unk_token_id is None or tokenizer.unk_token_id in tokenizer_eos_ids(tokenizer):
        return texts
    kept = [i for i, ids in enumerate(texts.ids) if tokenizer.unk_token_id not in ids]
    return _Texts([texts.ids[i] for i in kept], [texts.plain[i] for i in kept], texts.are_whole)
