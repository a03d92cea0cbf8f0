"""How `minichatgpt status` shows a run in the terminal."""

from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.console import one_line
from deploy.report_words import duration
from deploy.run_status import MemberStatus, PoolStatus, RunStatus

BAR_CHARACTERS: Final = 24
STYLES: Final = {
    "starting": "yellow",
    "syncing": "yellow",
    "active": "green",
    "draining": "cyan",
    "given_up": "bold red",
}
TITLES: Final = {"rollout": "Rollout workers", "reward": "Reward replicas"}
"""By role."""


def print_status(status: RunStatus, console: Console) -> None:
    """Print the run, its progress, its ledger, its newest checkpoint and its processes."""
    console.print(_facts(status))
    for role, pool in status.pools.items():
        console.print()
        console.print(_members(TITLES.get(role, role), pool))
        for member in pool.members:
            if member.last_error:
                console.print(Text(f"{member.slot}: {one_line(member.last_error)}", "red"), soft_wrap=True)


def progress_line(status: RunStatus) -> str:
    """The run in one line, for who waits for it."""
    pools = [
        f"{TITLES.get(role, role).lower()} {pool.active} of {pool.target} active" + _others(pool)
        for role, pool in status.pools.items()
    ]
    phase = f"{status.phase} for {duration(status.phase_s)}" if status.phase else status.stage or "between stages"
    return " · ".join([phase, *pools])


def _others(pool: PoolStatus) -> str:
    others = [f"{member.slot} {member.state}" for member in pool.members if member.state != "active"]
    return f" ({', '.join(others)})" if others else ""


def _facts(status: RunStatus) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    since = (datetime.now(UTC) - status.started_at).total_seconds()
    grid.add_row("run", Text.assemble((status.run, "bold cyan"), f"  process {status.pid}, for {duration(since)}"))
    if status.stopping is not None:
        grid.add_row("ending", Text(one_line(status.stopping), "bold yellow"))
    grid.add_row("stage", Text(status.stage or "between stages"))
    if status.step is not None and status.updates:
        grid.add_row("updates", _progress(status.step, status.updates, status.lineage))
    if status.pause != "none":
        told = (
            "it stands still; `minichatgpt resume` lets it go on" if status.pause == "paused" else "after this update"
        )
        grid.add_row("pause", Text(told, "bold yellow"))
    if status.phase is not None:
        grid.add_row("phase", Text(f"{one_line(status.phase)}, for {duration(status.phase_s)}"))
    if status.settings is not None:
        present = status.settings.model_dump(exclude_none=True)
        grid.add_row("settings", Text(" · ".join(f"{name.replace('_', ' ')} {v:g}" for name, v in present.items())))
    if status.ledger:
        grid.add_row("samples", Text(_ledger(status.ledger)))
    if status.learner is not None:
        learner = status.learner
        grid.add_row("learner", Text(f"{learner.state}, process {_or_dash(learner.pid)}, {learner.restarts} restarts"))
    if status.step is not None:
        newest = status.newest_checkpoint
        text = "none yet"
        if newest is not None:
            text = f"update {newest.step}, {duration(newest.age_s)} old, {one_line(newest.url)}"
        grid.add_row("checkpoint", Text(text))
    return grid


def _progress(step: int, updates: int, lineage: int | None) -> Text:
    done = round(BAR_CHARACTERS * min(1.0, step / updates))
    return Text.assemble(
        f"{step} of {updates} ",
        ("━" * done, "green"),
        ("━" * (BAR_CHARACTERS - done), "dim"),
        f" {step / updates:.0%}" + ("" if lineage is None else f", lineage {lineage}"),
    )


def _ledger(ledger: dict[str, int | dict[str, int]]) -> str:
    parts = []
    for name, value in ledger.items():
        words = name.replace("_", " ")
        if isinstance(value, dict):
            reasons = ", ".join(f"{reason} {number}" for reason, number in value.items())
            parts.append(f"{words} {sum(value.values())}" + (f" ({reasons})" if reasons else ""))
        else:
            parts.append(f"{words} {value}")
    return one_line(" · ".join(parts))


def _members(title: str, pool: PoolStatus) -> Table:
    table = Table(
        title=f"{title}: {pool.active} of {pool.target} active",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for name in ("slot", "state", "node", "process", "weights"):
        table.add_column(Text(name, "dim"), overflow="fold")
    for name in ("held", "restarts", "heartbeat"):
        table.add_column(Text(name, "dim"), justify="right")
    for member in pool.members:
        table.add_row(*_row(member))
    return table


def _row(member: MemberStatus) -> list[Text]:
    return [
        Text(member.slot),
        Text(member.state.replace("_", " "), STYLES[member.state]),
        Text(one_line(_or_dash(member.node and member.node[:8]))),
        Text(_or_dash(member.pid)),
        Text(_or_dash(member.weights)),
        Text(str(member.calls_held)),
        Text(str(member.restarts)),
        Text("–" if member.heartbeat_age_s is None else duration(member.heartbeat_age_s)),
    ]


def _or_dash(value: str | int | None) -> str:
    return "–" if value is None else str(value)
