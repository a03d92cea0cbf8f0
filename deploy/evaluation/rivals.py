"""Other policies that answer the same held-out prompts as this run's: who they are, and who wins by the judge.

A rival has workers and replicas of its own, with its own tokenizer: prompts travel as text, and what it answers is
judged as text. Prompts that its tokenizer cannot read back are left out and counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase

from actors.evaluate import win_rate
from actors.prompts import PromptStream
from common.errors import ConfigError, MemberFailedError
from common.hub import loading
from common.metrics import RunMetrics
from common.records import Identity, ModelPaths, Prompt
from common.supervision import Ledger
from common.text import decode, encode, eos_token_ids, load_tokenizer, opening_ids, tokenizer_eos_ids, with_opening
from deploy.chat.answers import Answer, fetch_answers, in_both, judged, numbers_of, why_unscored
from deploy.place import Place
from deploy.ppo.pools import supervised
from deploy.run_folder.address import runs_near
from deploy.run_folder.event_log import EventLog

RIVAL = Identity(-1, 2)
"""Weights of an evaluation belong to no lineage of training."""
CLASSIFIERS = ("reward_model", "judge")
"""Folders of a run's models that do not speak."""


def rival_path(name: str, runs: Path) -> str:
    """The model that `evaluate.against` names: a model folder, what PPO left in a run folder, or a name on the hub.

    Args:
        name: a path; or the name of a run, or of one of its models, as `RUN/models/sft`.
        runs: where the runs are.

    Raises:
        ConfigError: it is a folder without such a model; says which models are there.
    """
    folder = next((place for place in (Path(name), runs / name) if place.is_dir()), None)
    if folder is None:
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ConfigError(f"evaluate.against: {name} does not exist; {runs_near(name, runs)}")
        return name
    if (folder / "config.json").is_file():
        return str(folder)
    if (folder / "models" / "ppo" / "config.json").is_file():
        return str(folder / "models" / "ppo")
    found = sorted(p.parent for p in folder.rglob("config.json") if p.parent.name not in CLASSIFIERS)
    models = ", ".join(f"{name}/{p.relative_to(folder).as_posix()}" for p in found)
    raise ConfigError(
        f"evaluate.against: {name} is no model folder, and no run that has finished PPO (models/ppo is absent); name "
        f"one of its policies: {models or 'there is none'}"
    )


def reencoded(
    prompts: Sequence[Prompt], ours: PreTrainedTokenizerBase, theirs: PreTrainedTokenizerBase
) -> list[Prompt]:
    """The prompts in another tokenizer's ids; those that it does not read back as the same text are left out.

    Case and white space may differ, for some tokenizers know neither. Special tokens, as of a chat template, have no
    text, so prompts with any are left out, too. The number of response tokens stays, in the other's tokens. Where the
    two know the same tokens, the prompts stay as they are.
    """
    if ours.get_vocab() == theirs.get_vocab():
        return list(prompts)
    special, begin = set(ours.all_special_ids), len(opening_ids(ours))
    texts = [decode(ours, prompt.token_ids) for prompt in prompts]
    ids = with_opening(theirs, encode(theirs, texts))
    unknown = None if theirs.unk_token_id in tokenizer_eos_ids(theirs) else theirs.unk_token_id
    return [
        replace(prompt, token_ids=new)
        for prompt, text, new in zip(prompts, texts, ids, strict=True)
        if len(new)
        and unknown not in new
        and special.isdisjoint(prompt.token_ids[begin:].tolist())
        and _plain(decode(theirs, new)) == _plain(text)
    ]


def _plain(text: str) -> str:
    return "".join(text.casefold().split())


def compare_with(
    name: str,
    path: str,
    place: Place,
    models: ModelPaths,
    asked: tuple[PromptStream, Sequence[Prompt]],
    ours: Mapping[int, Answer],
    *,
    metrics: RunMetrics,
    log: EventLog,
) -> dict[str, Any]:
    """The rival's own numbers, and how often the judge prefers our answer to its own.

    Args:
        name: of the rival, for errors.
        path: of its model.
        place: where it runs.
        models: of this run; the same reward model and judge score the rival.
        asked: the stream of held-out prompts, and those of it that were asked.
        ours: this run's answers, by draw.
        metrics: told of the calls.
        log: told of what is lost and replaced.

    Raises:
        ConfigError: it can read none of the prompts, or has too few positions; or it is no model.
        MemberFailedError: no prompt has a score of both.
    """
    assert place.config.evaluate is not None, "rivals are of an evaluation"
    stream, prompts = asked
    theirs = load_tokenizer(path)
    readable = reencoded(prompts, load_tokenizer(models.policy), theirs)
    if not readable:
        raise ConfigError(
            f"evaluate.against: the tokenizer of {name} reads back none of {len(prompts)} prompts as the same text; "
            "its vocabulary is too small, or of another language: choose another model"
        )
    _check_positions(name, path, readable)
    with (
        place.runtime.members(
            place.config, replace(models, policy=path), place.folder, place.stop, with_learner=False
        ) as members,
        supervised(place, members, prompts=stream, metrics=metrics, ledger=Ledger(), note=log.note) as supervisor,
    ):
        supervisor.publish(members.weights_of(path, RIVAL))
        chunks = supervisor.sample(readable, top_p=place.config.evaluate.top_p)
        answers = fetch_answers(members.transport, chunks)
    if not answers.keys() & ours.keys():
        raise MemberFailedError(f"no prompt has a score of this run and of {name}{why_unscored(chunks)}")
    return head_to_head(ours, answers, ignore=eos_token_ids(path, theirs), seed=place.config.seed) | {
        "prompts_unreadable": len(prompts) - len(readable)
    }


def _check_positions(name: str, path: str, prompts: Sequence[Prompt]) -> None:
    with loading(path) as (model, revision):
        shape = AutoConfig.from_pretrained(model, revision=revision).get_text_config()
    limit = getattr(shape, "max_position_embeddings", None)  # some architectures have no such limit
    longest = max(len(prompt.token_ids) + prompt.max_new_tokens for prompt in prompts)
    if limit is not None and longest > limit:
        raise ConfigError(
            f"evaluate.against: in the tokens of {name} prompt and response take up to {longest} positions, and it has "
            f"{limit}; shorten ppo.prompt_tokens or ppo.response_tokens, or choose another model"
        )


def head_to_head(
    ours: Mapping[int, Answer], theirs: Mapping[int, Answer], *, ignore: frozenset[int], seed: int
) -> dict[str, Any]:
    """Win rate of ours over theirs by the judge, on the prompts that both have, and their numbers on these."""
    mine, others = in_both(ours, theirs)
    rate, interval = win_rate(judged(others), judged(mine), seed=seed)
    return {
        "win_rate": rate,
        "win_rate_ci95": list(interval),
        "prompts": len(mine),
        **numbers_of(others, ignore=ignore),
    }
