"""The supervisor thread: owns all pool state, so that dispatching, replacing and resizing go on while an update runs.

    loop, control channel ── commands ──▶ ┌────────────┐ ── actions ──▶ transport ──▶ members
                                          │ conductor  │
    transport ─────────────── replies ──▶ └────────────┘ ── metrics, notes

One queue brings commands and replies; the thread takes one at a time, so that the conductor needs no lock. Whoever
sends a command waits for its result with a bound. Time enters as ticks.
"""

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Any, TypeVar

from common.errors import MiniChatGPTError, PhaseTimeoutError, StageEndedError
from common.metrics import RunMetrics
from common.pool_actions import Action, Done, Kill, Note, Send, Start
from common.ports import Reply, Transport
from common.records import ChunkHandle, Prompt, UpdateReport, WeightsHandle
from common.run_settings import RunSettings
from common.supervision import Ledger
from deploy.ppo.conductor import Conductor
from deploy.ppo.lookout import Lookout
from deploy.stop_signal import StopSignal
from deploy.stopwatch import Stopwatch
from deploy.trace.run_trace import RunTrace

TICK_S = 0.2
"""Longest time between two looks at the deadlines."""
COMMAND_TIMEOUT_S = 60.0
"""Longest time in which the thread answers a command; it only computes, so this is a sign of a bug."""
NODES_EVERY_S = 2.0
"""Time between two looks for nodes that are about to go, and for members that wait for one."""

Result = TypeVar("Result")
Command = Callable[[float], Result]


class Supervisor:
    """Source of judged samples: implements `common.ports.Rollouts`.

    Args:
        conductor: the machine; nobody else may touch it while the thread runs.
        transport: carries out its actions.
        metrics: told of every reply and of the ledger.
        watch: told the driver's wall time of collecting, and the members' own seconds by phase, summed.
        stop: whether somebody wants the run to end.
        note: told what an operator wants to read.
        keep: told the ledger before samples are dispatched, and once they are there, booked or rolled back; called in
            the supervisor's thread.
        learner: what the learner says of itself: its memory, where it has a process of its own.
        clock: seconds, for deadlines.
        trace: draws calls, updates and queues.
    """

    def __init__(
        self,
        conductor: Conductor,
        transport: Transport,
        *,
        metrics: RunMetrics,
        watch: Stopwatch,
        stop: StopSignal,
        note: Callable[[Note], None],
        keep: Callable[[Ledger], None] = lambda ledger: None,
        learner: Callable[[], Mapping[str, Any]] = dict,
        clock: Callable[[], float] = time.monotonic,
        trace: RunTrace | None = None,
    ) -> None:
        self.conductor = conductor
        self.transport = transport
        self.metrics = metrics
        self.watch = watch
        self.stop = stop
        self.clock = clock
        self._trace = trace
        self._note = note
        self._keep = keep
        self._inbox: queue.SimpleQueue[Reply | tuple[Command[Any], Future[Any]]] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._waiting: Future[list[ChunkHandle]] | None = None
        self._told = conductor.ledger.dispatched
        self._ticked_at = self._nodes_seen_at = clock()
        self.lookout = Lookout(conductor, metrics.members, learner, self._ticked_at)
        """Sees what pools and members do, for metrics and status."""
        transport.receive(self._inbox.put)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="supervisor")
        self._thread: Future[None] = self._executor.submit(self._run)

    def close(self) -> None:
        """End the thread; members are ended by whoever started the transport."""
        self._closing.set()
        self._executor.shutdown(wait=True)
        self.metrics.members.closed()

    # --- for the loop

    def publish(self, weights: WeightsHandle) -> None:
        """All that is generated from now on comes from these weights."""

        def publish(now: float) -> None:
            self.lookout.published(weights, now)
            self._perform(self.conductor.publish(weights, now))

        self.command(publish)

    def weights(self) -> WeightsHandle:
        """Those that were published last."""
        return self.command(lambda now: self.conductor.current())

    def collect(self, num_samples: int, settings: RunSettings | None = None) -> list[ChunkHandle]:
        """Exactly `num_samples` samples, generated and judged, in draw order of their chunks; None: at the temperature
        of the configuration.

        Raises:
            LedgerError: more is asked for than staleness allows.
            MemberFailedError, TooManyDropsError: the pools cannot go on; names the cause.
            RunStopped: somebody wants the run to end.
        """
        with self.watch.phase("collect"):
            return self._wait_for_batch(lambda now: self.conductor.begin(num_samples, now, settings))

    def regenerate(self, chunks: Sequence[ChunkHandle], lost: Sequence[int]) -> list[ChunkHandle]:
        """The same samples once more, where payloads went with their node; `lost` are positions in `chunks`."""
        with self.watch.phase("collect"):
            return self._wait_for_batch(lambda now: self.conductor.begin_again(chunks, lost, now))

    def sample(
        self, prompts: Sequence[Prompt], *, top_p: float = 1.0, weights: WeightsHandle | None = None
    ) -> list[ChunkHandle]:
        """One response to each given prompt outside of training, evaluated; what cannot be judged is missing. By
        `weights`; None: by the published ones.
        """
        return self._wait_for_batch(lambda now: self.conductor.begin_given(prompts, now, top_p=top_p, weights=weights))

    def account(self, report: UpdateReport) -> None:
        """Book the samples that an update trained on."""
        self.lookout.trained(report)
        if self._trace is not None:
            self._trace.updated(report)
        try:
            self.command(lambda now: self.conductor.account(report))
        finally:
            self._show_ledger()  # also where it was one update too many without a finite step

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps; it can be had even where the thread has died, for it is replaced, never changed."""
        return self.conductor.state_dict()

    # --- for the stage and the control channel

    def resize(self, *, workers: int | None = None, replicas: int | None = None) -> None:
        """Change how many members the pools have."""
        self.command(lambda now: self._perform(self.conductor.resize(workers, replicas, now)))

    def roll_back(self, state: dict[str, Any]) -> None:
        """Go back to a checkpoint's prompt cursor; later work counts as rolled back."""
        self.command(lambda now: self._perform(self.conductor.roll_back(state, now)))
        self._show_ledger()

    def abandon(self) -> None:
        """Give up the batch that is on its way; nothing where the thread has died."""
        if not self._thread.done():
            self.command(lambda now: self.conductor.abandon())

    def ledger(self) -> Ledger:
        """A copy of the ledger as it is now."""
        return self.command(lambda now: self._copy_of_ledger())

    def describe(self) -> dict[str, dict[str, Any]]:
        """The pools as they are now, for status: by role, see Lookout.describe."""
        return self.command(self.lookout.describe)

    def command(self, work: Command[Result]) -> Result:
        """Run something in the thread that owns the pools; raises what it raises.

        Raises:
            StageEndedError: the thread has ended.
            PhaseTimeoutError: it does not answer.
        """
        future: Future[Result] = Future()
        self._inbox.put((work, future))
        return self._result(future, COMMAND_TIMEOUT_S)

    def _result(self, future: Future[Result], timeout_s: float) -> Result:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if wait_for([future], timeout=TICK_S).done:
                return future.result()
            self._raise_if_dead()
        raise PhaseTimeoutError(f"the supervisor thread has not answered within {timeout_s:g} s; this is a bug of ours")

    def _raise_if_dead(self) -> None:
        if self._thread.done():
            self._thread.result()
            raise StageEndedError("the stage with these pools has ended; nothing can be asked of them any more")

    def _wait_for_batch(self, begin: Callable[[float], list[Action]]) -> list[ChunkHandle]:
        """Bounded by the deadlines and restart budgets of the pools."""
        self.stop.raise_if_requested()  # also where batches come faster than anybody looks below
        future: Future[list[ChunkHandle]] = Future()

        def start(now: float) -> None:
            self._waiting = future
            self._perform(begin(now))

        self.command(start)
        while not wait_for([future], timeout=TICK_S).done:
            self._raise_if_dead()
            self.stop.raise_if_requested()
        self._show_ledger()
        handles = future.result()
        self.lookout.handed_out(handles)
        return handles

    def _show_ledger(self) -> None:
        def show(now: float) -> None:
            self._tell_ledger()
            self.lookout.look(now)

        self.command(show)

    # --- the thread

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                item = self._inbox.get(timeout=TICK_S)
            except queue.Empty:
                item = None
            now = self.clock()
            if isinstance(item, Reply):
                if self._trace is not None:
                    self._trace.replied(item)
                self._perform(self.conductor.on_reply(item, now))
            elif item is not None:
                self._obey(*item, now)
            if now - self._ticked_at >= TICK_S or item is None:
                self._ticked_at = now
                self._perform(self.conductor.tick(now))
                self._look_at_nodes(now)
                self.lookout.look_if_due(now)
            if self._trace is not None:
                self._trace.look(self.conductor)
            self._hand_out()

    def _obey(self, work: Command[Any], future: Future[Any], now: float) -> None:
        """A command's own errors are its sender's; anything else ends the thread, and so the run."""
        try:
            future.set_result(work(now))
        except (MiniChatGPTError, RuntimeError, ValueError) as error:
            future.set_exception(error)

    def _look_at_nodes(self, now: float) -> None:
        if now - self._nodes_seen_at >= NODES_EVERY_S:
            self._nodes_seen_at = now
            if nodes := self.transport.draining_nodes():
                self._perform(self.conductor.leave_nodes(nodes, now))
            self._perform(self.conductor.place(self.transport.unplaced(), now))

    def _hand_out(self) -> None:
        """The batch is complete, or never will be."""
        if self._waiting is None:
            return
        if self.conductor.failure is not None:
            self._waiting.set_exception(self.conductor.failure)
        elif (handles := self.conductor.finished()) is not None:
            self._waiting.set_result(handles)
        else:
            return
        self._waiting = None

    def _copy_of_ledger(self) -> Ledger:
        return Ledger.of(self.conductor.ledger.as_dict())

    def _tell_ledger(self) -> None:
        self.metrics.ledger(self.conductor.ledger)  # before it is checked, so that a mismatch is seen
        ledger = self._copy_of_ledger()
        self._told = ledger.dispatched
        self._keep(ledger)

    def _perform(self, actions: Sequence[Action]) -> None:
        if self.conductor.ledger.dispatched != self._told:
            self._tell_ledger()  # before anything is sent, so that even after kill -9 nothing is uncounted
        for action in actions:
            self.lookout.see(action)
            if self._trace is not None:
                self._trace.see(action)
            match action:
                case Start(member, avoid):
                    self.transport.start(member, avoid=avoid)
                case Send(call):
                    self.transport.send(call)
                case Kill(member, dump):
                    self.transport.kill(member, dump=dump)
                case Done(stats=stats):
                    self.watch.add(stats.seconds)
                case Note():
                    self._note(action)
                case _:
                    pass  # the conductor has acted on it
