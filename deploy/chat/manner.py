"""Whether a policy is talked with or its texts are continued: as it was trained, where nobody says otherwise."""

from dataclasses import dataclass

from common.chat import has_chat_template
from common.config import RunConfig
from common.data_config import DataSource
from common.errors import ConfigError
from common.row_config import DemonstrationRows
from deploy.chat.open import Opened


@dataclass(frozen=True, slots=True)
class Manner:
    """How a policy is asked."""

    is_chat: bool
    """By the chat template; else it continues texts."""
    why: str
    """In brackets, for people; empty where it goes without saying."""


def manner_of(opened: Opened, wanted: bool | None) -> Manner:
    """How to ask a policy.

    Args:
        opened: the policy, and its run if it has one.
        wanted: whether as a chat; None: a run's policy as the prompts of its PPO were, and any other by what its
            tokenizer has.

    Raises:
        ConfigError: a chat is wanted, and there is no template for one.
    """
    has_template = has_chat_template(opened.policy.tokenizer)
    if wanted:
        if not has_template:
            raise ConfigError("--chat needs a chat template, and this model's tokenizer has none; leave --chat out")
        return Manner(True, " (--chat)")
    if wanted is not None:
        return Manner(False, " (--complete)")
    asked = None if opened.run is None else _as_in_training(opened.run.config)
    if not has_template or asked is None:
        return Manner(has_template, "")
    return asked


def _as_in_training(config: RunConfig) -> Manner | None:
    """By the prompts of PPO; None where the run has no PPO."""
    if config.ppo is None:
        return None
    names = list(dict.fromkeys(config.ppo.data))
    chats = [name for name in names if _is_asked_as_chat(config.data[name])]
    if chats:
        return Manner(True, f" (ppo.data writes {', '.join(chats)} as a chat; --complete: not)")
    return Manner(False, f" (as PPO did: ppo.data has no chats, but {', '.join(names)}; --chat: by the template)")


def _is_asked_as_chat(source: DataSource) -> bool:
    return isinstance(source.rows, DemonstrationRows) and source.rows.use_chat_template
