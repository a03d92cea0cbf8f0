"""Members that sleep for as long as their work would take, and answer with records of the real kind.

What is between them is that of real runs: conductor, pools, supervisor thread, loop. Used by `bench overlap`, which
looks at how long steps take, without what depends on models.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from common.ports import WORK, Call, MemberKey, Reply
from common.records import WeightsHandle
from deploy.bench.made_up import generated, judged
from deploy.local import OneProcess

THREADS = 32
"""That sleep; more calls than that would wait for each other."""


class SleepingTransport(OneProcess):
    """Members that are names: each carries out one call at a time, in the order in which they came.

    Args:
        generate_s: seconds that a chunk takes, by its index.
        score_s: seconds that judging it takes.
    """

    def __init__(self, *, generate_s: Callable[[int], float], score_s: float) -> None:
        self._generate_s = generate_s
        self._score_s = score_s
        self._turns: defaultdict[MemberKey, threading.Lock] = defaultdict(threading.Lock)
        self._receiver: Callable[[Reply], None] = lambda reply: None
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="sleepers")

    def receive(self, receiver: Callable[[Reply], None]) -> None:
        """Name who gets the replies."""
        self._receiver = receiver

    def start(self, member: MemberKey, *, avoid: str) -> None:
        """A name needs no start."""

    def send(self, call: Call) -> None:
        """Sleep for it in the background."""
        self._executor.submit(self._carry_out, call)

    def _carry_out(self, call: Call) -> None:
        if call.method not in WORK:
            held = call.argument.identity if isinstance(call.argument, WeightsHandle) else ""
            self._receiver(Reply(call.call_id, {"node": "here", "identity": str(held)}))
            return
        with self._turns[call.member]:
            reply = self._generate(call) if call.method == "generate" else self._score(call)
        self._receiver(reply)

    def _generate(self, call: Call) -> Reply:
        seconds = self._generate_s(call.argument.chunk_index)
        time.sleep(seconds)
        return Reply(call.call_id, *generated(call.argument, seconds))

    def _score(self, call: Call) -> Reply:
        time.sleep(self._score_s)
        return Reply(call.call_id, *judged(call.argument, self._score_s))

    def kill(self, member: MemberKey, *, dump: bool) -> None:
        """What it is at runs out."""

    def close(self) -> None:
        """Once all have woken up."""
        self._executor.shutdown(wait=True, cancel_futures=True)
