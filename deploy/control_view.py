"""How `minichatgpt status` and `minichatgpt workers` show a run in the terminal."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.console import one_line
from deploy.control_models import Workers
from deploy.report_words import duration
from deploy.run_status import MemberStatus, PoolStatus, RunStatus, SettingsStatus, WaitStatus

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
PAUSES: Final = {"asked": "asked for, once the running update is done", "paused": "the run stands still"}
Columns = Mapping[str, Callable[[MemberStatus], Text]]


def print_status(status: RunStatus, console: Console) -> None:
    """Print the run, its progress, its ledger, its newest checkpoint and its processes."""
    console.print(_facts(status))
    for role, pool in status.pools.items():
        console.print()
        _print_pool(role, pool, console, COLUMNS)


def print_workers(workers: Workers, console: Console) -> None:
    """Print the processes of both pools, with what they do and hold."""
    if not workers.pools:
        console.print("no workers: the stage that runs has no pools; `minichatgpt status` names it", markup=False)
    for number, (role, pool) in enumerate(workers.pools.items()):
        if number:
            console.print()
        _print_pool(role, pool, console, {**COLUMNS, **LOAD})


def _print_pool(role: str, pool: PoolStatus, console: Console, columns: Columns) -> None:
    console.print(_members(TITLES.get(role, role), pool, columns))
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
    if status.pause != "none":
        grid.add_row("pause", Text(PAUSES[status.pause], "bold yellow"))
    for alarm in status.alarms:
        grid.add_row("alarm", Text(f"{one_line(alarm.text)}, since update {alarm.since_step}", "bold red"))
    if status.step is not None and status.updates:
        grid.add_row("updates", _progress(status.step, status.updates, status.lineage))
    if status.phase is not None:
        grid.add_row("phase", Text(f"{one_line(status.phase)}, for {duration(status.phase_s)}"))
    if status.waits is not None:
        speed = "" if status.tokens_per_s is None else f", {status.tokens_per_s:,.0f} tokens/s"
        grid.add_row("last update", Text(f"{duration(status.waits.update_s)}{speed}; {_waits(status.waits)}"))
    if status.settings is not None:
        grid.add_row("settings", Text(_settings(status.settings)))
    if status.ledger:
        grid.add_row("samples", Text(_ledger(status.ledger)))
    if status.learner is not None:
        learner = status.learner
        grid.add_row("learner", Text(f"{learner.state}, process {learner.pid or '–'}, {learner.restarts} restarts"))
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


def _waits(waits: WaitStatus) -> str:
    shares = {
        "learner": waits.learner_wait_fraction,
        "workers": waits.worker_idle_fraction,
        "replicas": waits.reward_idle_fraction,
    }
    return "waiting: " + ", ".join(f"{who} {share:.0%}" for who, share in shares.items())


def _settings(settings: SettingsStatus) -> str:
    return " · ".join(f"{name} {value:g}" for name, value in settings.model_dump(exclude_none=True).items())


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


def _members(title: str, pool: PoolStatus, columns: Columns) -> Table:
    queued = f", {pool.queued} requests wait, {duration(pool.queue_age_s)}" if pool.queued else ""
    table = Table(
        title=f"{title}: {pool.active} of {pool.target} active{queued}",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for name in columns:
        table.add_column(Text(name, "dim"), justify="left" if name in WORDS else "right", overflow="fold")
    for member in pool.members:
        table.add_row(*(show(member) for show in columns.values()))
    return table


def _or_dash(value: str | int | None) -> Text:
    return Text("–" if value is None else one_line(str(value)))


def _seconds(value: float | None) -> Text:
    return Text("–" if value is None else duration(value))


def _rate(value: float | None) -> Text:
    return Text("–" if value is None else f"{value:,.0f}")


def _share(value: float | None) -> Text:
    return Text("–" if value is None else f"{value:.0%}")


def _mebibytes(value: int | None) -> Text:
    return Text("–" if value is None else f"{value / 2**20:,.0f} MiB")


COLUMNS: Final[Columns] = {
    "slot": lambda member: Text(member.slot),
    "state": lambda member: Text(member.state.replace("_", " "), STYLES[member.state]),
    "node": lambda member: _or_dash(member.node and member.node[:8]),
    "process": lambda member: _or_dash(member.pid),
    "weights": lambda member: _or_dash(member.weights),
    "held": lambda member: Text(str(member.calls_held)),
    "restarts": lambda member: Text(str(member.restarts)),
    "heartbeat": lambda member: _seconds(member.heartbeat_age_s),
}
"""By heading: what a member's cell holds."""
LOAD: Final[Columns] = {
    "age": lambda member: _seconds(member.weights_age_s),
    "busy": lambda member: _share(member.busy_fraction),
    "tokens/s": lambda member: _rate(member.tokens_per_s),
    "memory": lambda member: _mebibytes(member.rss_bytes),
}
"""Further ones of `minichatgpt workers`; the age is that of the weights."""
WORDS: Final = frozenset({"slot", "state", "node", "process", "weights"})
"""Columns that are no amounts."""
