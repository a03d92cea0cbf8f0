"""How `minichatgpt status` and `minichatgpt workers` show a run in the terminal."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.console import one_line
from deploy.control.models import Workers
from deploy.control.run_status import AutoscalerStatus, MemberStatus, PoolStatus, RunStatus, StageProgress, WaitStatus
from deploy.report.words import duration

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
WORDS: Final = ("slot", "state", "node", "process")
WEIGHTS: Final = ("weights", "age", "tokens/s")
"""Columns of rollout workers."""
NUMBERS: Final = ("busy", "memory", "held", "restarts", "beat")
"""Columns of every member; `beat` is the age of its last sign of life."""
LEAST_NEEDED: Final = ("node", "process", "beat", "memory", "held", "age")
"""Columns that a narrow console does without, the first one first; --json has all."""
MAX_WIDTH: Final = 1000
"""Wider than any table, to measure one unbroken."""

T = TypeVar("T")


def print_status(status: RunStatus, console: Console) -> None:
    """Print the run, its progress, its ledger, its newest checkpoint and its processes."""
    console.print(_facts(status))
    if status.pools:
        console.print()
        _print_pools(status.pools, console)


def print_workers(workers: Workers, console: Console) -> None:
    """Print the processes of both pools."""
    if not workers.pools:
        console.print("no workers: the stage that runs has no pools; `minichatgpt status` names it", markup=False)
    _print_pools(workers.pools, console)


def _print_pools(pools: Mapping[str, PoolStatus], console: Console) -> None:
    for number, (role, pool) in enumerate(pools.items()):
        if number:
            console.print()
        console.print(_members(role, pool, console))
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


def stage_progress(progress: StageProgress) -> str:
    """How far a stage without updates is, in a line."""
    left = "" if progress.left_s is None else f"about {duration(progress.left_s)} left"
    share = f"{progress.step / progress.total:.0%}" if progress.total else ""
    parts = (f"{progress.step:,} of {progress.total:,} steps", share, one_line(progress.message), left)
    return " · ".join(part for part in parts if part)


def _others(pool: PoolStatus) -> str:
    others = [f"{member.slot} {state_of(member)}" for member in pool.members if member.state != "active"]
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
    if status.progress is not None:
        grid.add_row("progress", Text(stage_progress(status.progress)))
    if status.step is not None and status.updates:
        grid.add_row("updates", _progress(status.step, status.updates, status.lineage))
    if status.pause != "none":
        stands = "it stands still; `minichatgpt resume` lets it go on"
        grid.add_row("pause", Text(stands if status.pause == "paused" else "after this update", "bold yellow"))
    for alarm in status.alarms:
        grid.add_row("alarm", Text(f"since update {alarm.since_step}: {one_line(alarm.text)}", "bold red"))
    if status.phase is not None:
        grid.add_row("phase", Text(f"{one_line(status.phase)}, for {duration(status.phase_s)}"))
    if status.settings is not None:
        present = status.settings.model_dump(exclude_none=True)
        grid.add_row("settings", Text(" · ".join(f"{name.replace('_', ' ')} {v:g}" for name, v in present.items())))
    if status.waits is not None:
        grid.add_row("last update", Text(_waits(status.waits, status.tokens_per_s)))
    if status.autoscaler is not None:
        grid.add_row("autoscaler", Text(autoscaler_line(status.autoscaler)))
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


def _waits(waits: WaitStatus, tokens_per_s: float | None) -> str:
    """How long it took, how fast that was, and who waited for whom."""
    speed = "" if tokens_per_s is None else f" · {tokens_per_s:,.0f} tokens/s"
    return (
        f"{duration(waits.update_s)}{speed} · learner waits {waits.learner_wait_fraction:.0%} of it, workers idle "
        f"{waits.worker_idle_fraction:.0%}, replicas {waits.reward_idle_fraction:.0%}"
    )


def autoscaler_line(autoscaler: AutoscalerStatus) -> str:
    """Its bounds, and what it decided last."""
    bounds = f"{autoscaler.min_workers} to {autoscaler.max_workers} workers"
    return one_line(f"{bounds} · {autoscaler.direction}: {autoscaler.reason}")


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


def _members(role: str, pool: PoolStatus, console: Console) -> Table:
    """Less of the columns in LEAST_NEEDED where the console is too narrow for all."""
    rows = [_row(role, member) for member in pool.members]
    table = _table(role, pool, rows, left_out=())
    for number in range(len(LEAST_NEEDED)):
        if console.measure(table, options=console.options.update(width=MAX_WIDTH)).maximum <= console.width:
            break
        table = _table(role, pool, rows, left_out=LEAST_NEEDED[: number + 1])
    return table


def _table(role: str, pool: PoolStatus, rows: Sequence[Mapping[str, Text]], *, left_out: Sequence[str]) -> Table:
    waiting = "1 request waits" if pool.queued == 1 else f"{pool.queued} requests wait"
    queued = f", {waiting}, {duration(pool.queue_age_s)}" if pool.queued else ""
    queued += f", queue wait p95 {duration(pool.queue_wait_p95_s)}" if pool.queue_wait_p95_s else ""
    table = Table(
        title=f"{TITLES.get(role, role)}: {pool.active} of {pool.target} active{queued}",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    all_names = (*WORDS, *(WEIGHTS if role == "rollout" else ()), *NUMBERS)
    names = [name for name in all_names if name not in left_out]
    for name in names:
        justify: Literal["left", "right"] = "left" if name in WORDS else "right"
        table.add_column(Text(name, "dim"), overflow="fold", justify=justify)
    for row in rows:
        table.add_row(*(row[name] for name in names))
    return table


def _row(role: str, member: MemberStatus) -> dict[str, Text]:
    """Cells by column."""
    weights = {
        "weights": Text(_or_dash(member.weights)),
        "age": Text(_or_dash(member.weights_age_s, duration)),
        "tokens/s": Text(_or_dash(member.tokens_per_s, "{:,.0f}".format)),
    }
    return {
        "slot": Text(member.slot),
        "state": Text(state_of(member), STYLES[member.state]),
        "node": Text(one_line(_or_dash(member.node and member.node[:8]))),
        "process": Text(_or_dash(member.pid)),
        **(weights if role == "rollout" else {}),
        "busy": Text(_or_dash(member.busy_fraction, "{:.0%}".format)),
        "memory": Text(_or_dash(member.rss_bytes, _memory)),
        "held": Text(str(member.calls_held)),
        "restarts": Text(str(member.restarts)),
        "beat": Text(_or_dash(member.heartbeat_age_s, duration)),
    }


def state_of(member: MemberStatus) -> str:
    """In words."""
    return "starting: no node yet" if member.is_waiting else member.state.replace("_", " ")


def _memory(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size < 10e9 else f"{size / 1e9:.0f} GB"


def _or_dash(value: T | None, shown: Callable[[T], str] = str) -> str:
    return "–" if value is None else shown(value)
