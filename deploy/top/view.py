"""What `minichatgpt top` shows: a view of a run as lines that fit a terminal. Draws; asks nothing.

Model text passes `one_line`, so that it cannot steer the terminal.
"""

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Final

from rich.text import Text

from deploy.console import one_line
from deploy.control.run_status import MemberStatus, PoolStatus, RunStatus, WaitStatus
from deploy.control.view import STYLES, TITLES, autoscaler_line, stage_progress
from deploy.preflight.finding import show_bytes
from deploy.report.words import NONE, duration, gap_between, number
from deploy.run_folder.history import EventRow, UpdateRow
from deploy.top.watching import View

BLOCKS: Final = "▁▂▃▄▅▆▇█"
BAR: Final = 24
NUM_EVENTS: Final = 12
"""Where the height does not matter."""
LEAST_EVENTS: Final = 2
"""Lines that events have, however many members there are."""
MOST_ALARMS: Final = 3
ROOMY: Final = 30
"""Lines from which on there are empty ones between the parts."""
KEYS: Final = "q quit   p pause or resume   + − rollout workers"
WORRYING: Final = frozenset(
    {"lost", "restart", "given_up", "learner_lost", "error", "guard_alarm", "guard_stop", "rolled_back"}
)
HEAD: Final = (
    f"{'slot':<11}{'state':<10}{'weights':<9}{'age':>9}{'busy':>6}{'tokens/s':>10}{'memory':>9}{'restarts':>10}"
)


def lines(view: View, *, width: int, height: int | None = None, note: Text | None = None) -> list[Text]:
    """The view, top to bottom, no line wider than `width`; where there is a height, at most so many.

    Args:
        view: of the run.
        width: of the terminal, in columns.
        height: of the terminal, in lines; None: as long as it takes.
        note: the last line; the keys where there is none.
    """
    status = view.status
    gap = [Text()] if height is None or height >= ROOMY else []
    above = [*_head(view), *_alarms(status), *gap, *_curves(view.updates, status, width)]
    if status.waits is not None:
        above += [*gap, *_waits(status, status.waits, width)]
    above += gap
    samples = [sample for kind in ("best", "worst") if (sample := _sample(view, kind)) is not None]
    last = [] if note is None else [note]
    room = None if height is None else height - len(above) - len(samples) - len(last)
    members = [*_members(status.pools, None if room is None else max(0, room - LEAST_EVENTS)), *gap]
    left = NUM_EVENTS if room is None else max(0, room - len(members))
    shown = [*above, *members, *samples, *(_event(event) for event in reversed(view.events[-left:] if left else ()))]
    if height is not None:
        shown = shown[: height - len(last)]
        shown += [Text()] * (height - len(last) - len(shown))
    for line in (shown := [*shown, *last]):
        line.no_wrap = True
        line.truncate(width, overflow="ellipsis")
    return shown


def state_of(status: RunStatus) -> tuple[str, str]:
    """How the run is in a word, and its style."""
    if status.stopping is not None:
        return f"stopping: {one_line(status.stopping)}", "bold yellow"
    if status.pause != "none":
        return ("paused" if status.pause == "paused" else "pausing"), "bold yellow"
    return ("running", "green") if status.stage else ("between stages", "yellow")


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The last `width` values as blocks from the lowest to the highest; blank where there is none."""
    shown = [None if value is None or not math.isfinite(value) else value for value in values[-width:]]
    known = [value for value in shown if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    size = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(" " if value is None else BLOCKS[round((value - low) * size)] for value in shown)


def _head(view: View) -> list[Text]:
    status = view.status
    word, style = state_of(status)
    first = Text.assemble((status.run, "bold cyan"), f"  {status.stage or ''}  ", (word, style))
    if status.step is None or not status.updates:
        if status.progress is not None:
            first.append(f"  {stage_progress(status.progress)}")
        first.append("" if view.updates else "  curves and workers come with PPO", "dim")
        return [first]
    share = min(1.0, status.step / status.updates)
    first.append(f"  update {status.step} of {status.updates} ")
    first.append_text(_bar(share, "green", BAR))
    first.append(f" {share:.0%}")
    newest = status.newest_checkpoint
    facts = [
        f"{one_line(status.phase or 'idle')} {duration(status.phase_s)}",
        f"left about {duration(view.remaining_s)}" if view.remaining_s is not None else "",
        f"checkpoint of update {newest.step}, {duration(newest.age_s)} old" if newest else "no checkpoint yet",
    ]
    return [first, Text(" · ".join(fact for fact in facts if fact), "dim")]


def _alarms(status: RunStatus) -> list[Text]:
    return [
        Text(f"! {alarm.guard} since update {alarm.since_step}: {one_line(alarm.text)}", "bold red")
        for alarm in status.alarms[:MOST_ALARMS]
    ]


def _bar(share: float, style: str, size: int) -> Text:
    done = round(size * min(1.0, max(0.0, share)))
    return Text.assemble(("━" * done, style), ("─" * (size - done), "dim"))


def _curves(updates: Sequence[UpdateRow], status: RunStatus, width: int) -> list[Text]:
    if not updates:
        return [Text("the first update is not done yet", "dim")] if status.step is not None else []
    measure = status.kl_measure
    target = status.settings.kl_target if status.settings is not None else None
    newest = updates[-1].metrics
    unit = "nats/response" if measure == "kl_seq_sum" else "nats/token"
    curves: list[tuple[str, Callable[[UpdateRow], float | None], str, str]] = [
        ("reward", lambda row: row.metrics.get("score_mean"), "blue", f"± {number(newest.get('score_std'))}"),
        ("KL", lambda row: row.metrics.get(measure), "yellow", f"target {target:g} {unit}" if target else unit),
        ("tokens/s", _tokens_per_s, "green", ""),
    ]
    room = max(10, width - 46)
    return [
        Text.assemble(
            (f"{name:<9}", "dim"),
            (f"{_short(values[-1]):>7}  ", "bold"),
            (f"{sparkline(values, room):<{min(room, len(updates))}}", style),
            (f"  {said}", "dim"),
        )
        for name, read, style, said in curves
        if (values := [read(row) for row in updates])
    ]


def _short(value: float | None) -> str:
    return f"{value:,.0f}" if value is not None and abs(value) >= 100 else number(value)


def _tokens_per_s(row: UpdateRow) -> float | None:
    tokens, seconds = row.metrics.get("response_tokens"), row.seconds.get("total")
    return tokens / seconds if tokens and seconds else None


def _waits(status: RunStatus, waits: WaitStatus, width: int) -> list[Text]:
    shares = (
        ("learner", waits.learner_wait_fraction, "blue", "waits"),
        ("workers", waits.worker_idle_fraction, "green", "idle"),
        ("reward", waits.reward_idle_fraction, "yellow", "idle"),
    )
    queue = status.pools["reward"] if "reward" in status.pools else PoolStatus(target=0, active=0)
    queued = f", {queue.queued} queued for {duration(queue.queue_age_s)}" if queue.queued else ""
    queued += f", queue wait p95 {duration(queue.queue_wait_p95_s)}" if queue.queue_wait_p95_s else ""
    shown = [Text(line, "bold") for line in textwrap.wrap(waits.advice, width)]
    if status.autoscaler is not None:
        said = f"autoscaler, {autoscaler_line(status.autoscaler)}"
        shown += [Text(line, "dim") for line in textwrap.wrap(said, width)]
    for name, idle, style, verb in shares:
        bar = _bar(1.0 - idle, style, BAR)
        more = queued if name == "reward" else ""
        shown.append(Text.assemble((f"{name:<9}", "dim"), bar, f"  {verb} {100 * idle:.0f} %{more}"))
    return shown


def _members(pools: dict[str, PoolStatus], room: int | None) -> list[Text]:
    """A head and a line each; where there is no room for all, those that need a look come first."""
    members = [member for pool in pools.values() for member in pool.members]
    if not members or (room is not None and room < 2):
        return []
    sizes = " · ".join(
        f"{TITLES.get(role, role).lower()} {pool.active} of {pool.target}" for role, pool in pools.items()
    )
    shown = [Text(sizes, "bold"), Text(HEAD, "dim")]
    most = len(members) if room is None else max(1, room - len(shown))
    if len(members) <= most:
        return [*shown, *map(_member, members)]
    first = sorted(members, key=lambda member: member.state == "active")[: most - 1]
    return [*shown, *map(_member, first), Text(f"… {len(members) - len(first)} more; make the window higher", "dim")]


def _member(member: MemberStatus) -> Text:
    busy = NONE if member.busy_fraction is None else f"{100 * member.busy_fraction:.0f} %"
    speed = NONE if member.tokens_per_s is None else f"{member.tokens_per_s:,.0f}"
    memory = NONE if member.rss_bytes is None else show_bytes(member.rss_bytes)
    age = duration(member.weights_age_s)
    return Text.assemble(
        f"{member.slot:<11}",
        (f"{'no node' if member.is_waiting else member.state.replace('_', ' '):<10}", STYLES[member.state]),
        f"{member.weights or NONE:<9}{age:>9}{busy:>6}{speed:>10}{memory:>9}",
        (f"{member.restarts:>10}", "red" if member.restarts else ""),
    )


def _sample(view: View, kind: str) -> Text | None:
    row = view.extreme(kind)
    if row is None:
        return None
    style = "green" if kind == "best" else "red"
    prompt, response = one_line(row.prompt), one_line(row.response)
    return Text.assemble(
        (f"{kind:<6}", style),
        f"{number(row.score, 'signed'):>6}  ",
        (prompt, "dim"),
        gap_between(prompt, response),
        response,
    )


def _event(event: EventRow) -> Text:
    style = "yellow" if event.event in WORRYING else ""
    when = event.time.astimezone().strftime("%H:%M:%S")
    return Text.assemble((f"{when}  ", "dim"), (one_line(event.text), style))
