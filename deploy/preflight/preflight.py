"""What can be known before anything starts: every failure at once, each with what is needed, what is there, what to
change.

    data, models ─────┐
    scorers, trackers ┤
    cluster ──────────┼─▶ findings ─▶ one ConfigError, or the table of `minichatgpt preflight`
    storage, room ────┘

Called once the place to run is there and before the first stage. Of Ray it knows what `runtime_facts.py` says.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from common.config import RunConfig
from common.errors import ConfigError
from deploy.explain.model import policy_size
from deploy.preflight.finding import Finding
from deploy.preflight.models import check_data, check_models, check_rivals, input_paths, policy_shape
from deploy.preflight.placements import check_placements
from deploy.preflight.room import check_room, room_needed
from deploy.preflight.runtime_facts import RuntimeFacts
from deploy.preflight.scorers import check_scorers
from deploy.preflight.storage import check_storage
from deploy.preflight.trackers import check_trackers


def preflight(config: RunConfig, folder: Path, facts: RuntimeFacts) -> None:
    """Check all that can be checked.

    Args:
        config: the run.
        folder: of the run.
        facts: of the place where it is to run.

    Raises:
        ConfigError: something is in the way; one message per failure.
    """
    raise_failures(config, examine(config, folder, facts))


def raise_failures(config: RunConfig, found: Sequence[Finding]) -> None:
    """Raise one ConfigError with all failures, if there are any."""
    failures = [finding.failure for finding in found if finding.failure]
    if len(failures) == 1:
        raise ConfigError(failures[0])
    if failures:
        listed = "\n".join(f"{number}. {failure}" for number, failure in enumerate(failures, start=1))
        raise ConfigError(f"{config.name} cannot start, for {len(failures)} reasons:\n{listed}")


def examine(config: RunConfig, folder: Path, facts: RuntimeFacts) -> list[Finding]:
    """All findings, good and bad, in the order in which they are best read; leaves nothing behind."""
    on_other_machines = facts.nodes is not None and len(facts.nodes) > 1
    found = [*check_data(config), *check_models(config), *check_scorers(config, may_differ=on_other_machines)]
    found += check_rivals(config, folder.absolute().parent)
    found += check_trackers(config, os.environ)
    if facts.unreachable:
        found.append(Finding("Ray", failure=facts.unreachable))
    if facts.nodes is not None:
        found += check_placements(config, facts.nodes, facts.growth)
    storage, room = check_storage(config, folder, facts, input_paths(config))
    found += storage
    if not any(finding.failure for finding in found if finding.check in ("model", "storage")):
        size = policy_size(policy_shape(config), config)
        found += check_room(room_needed(config, folder.absolute(), size), room)
    return found
