"""Settings that did not exist yet when a checkpoint was written: where they are at their default, nothing has changed.

A default leaves results as they were before there was the setting, which is a rule of this project; so a checkpoint
that does not know it is of the same run. Called by `deploy/ppo/beginning.py`; what differs in other ways is for
`deploy/ppo/resume.py` to refuse. Not looked at: items of lists, as scorers, which are compared as a whole.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from common.config import RunConfig
from common.config_base import Config, settings_that_matter
from deploy.ppo.resume import flatten


def at_their_default(
    config: RunConfig, saved: Mapping[str, JsonValue], now: Mapping[str, JsonValue]
) -> dict[str, JsonValue]:
    """Settings of now that the checkpoint does not have, and that stand at today's default, by dotted name.

    Args:
        config: the run as it is configured now.
        saved: `run_settings` when the checkpoint was written.
        now: `run_settings` of `config`.
    """
    found: dict[str, JsonValue] = {}
    for key in sorted(now.keys() - saved.keys()):
        defaults = _defaults(config, _first_unknown(key, saved))
        if key in defaults and defaults[key] == now[key]:
            found[key] = now[key]
    return found


def _first_unknown(key: str, saved: Mapping[str, JsonValue]) -> str:
    """The table that is new as a whole, or the key itself where its table was there: `ppo.new` of `ppo.new.size`."""
    parts = key.split(".")
    for number in range(1, len(parts)):
        prefix = ".".join(parts[:number])
        if prefix not in saved and not any(known.startswith(f"{prefix}.") for known in saved):
            return prefix
    return key


def _defaults(config: RunConfig, name: str) -> dict[str, JsonValue]:
    """Of a field, flat, by dotted names; empty where it has none, or is no setting, as the hash of a model."""
    *tables, last = name.split(".")
    owner: Any = config
    for table in tables:
        if not isinstance(owner, Config) or table not in type(owner).model_fields:
            return {}
        owner = getattr(owner, table)
    field = type(owner).model_fields.get(last) if isinstance(owner, Config) else None
    if field is None or field.is_required():
        return {}
    as_declared = owner.model_copy(update={last: field.get_default(call_default_factory=True, validated_data={})})
    return dict(flatten(name, settings_that_matter(as_declared).get(last)))
