"""Carries calls to Ray actors. Nothing blocks: replies come through futures, on a thread of Ray's."""

import os
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from common.errors import MemberFailedError
from common.ports import WORK, Call, MemberKey, Reply, Role
from common.vitals import pid_namespace
from deploy.on_ray.calls import actor_id, cause_of, draining_nodes, unplaced_actors, wait_for
from deploy.on_ray.postmortem import MemberFacts, describe_death
from deploy.on_ray.waiting import describe_lack
from deploy.preflight.packing import Demand

STACKS_TIMEOUT_S = 5.0
"""Longest time in which a stuck process must say where it stands before it is killed."""


class RayTransport:
    """Starts, calls and kills the actors of both pools; a reply's payload is an object reference.

    Args:
        spawn: by role, asks Ray for an actor with the name of a slot, on another node than a given one.
        demands: by role, what a process needs.
        logs: folder where stacks of stuck processes go.
    """

    def __init__(
        self, spawn: Mapping[Role, Callable[[str, str], Any]], demands: Mapping[Role, Demand], logs: Path
    ) -> None:
        self._spawn = spawn
        self._demands = demands
        self._logs = logs
        self._actors: dict[MemberKey, Any] = {}
        self._facts: dict[MemberKey, dict[str, Any]] = {}
        self._receiver: Callable[[Reply], None] = lambda reply: None
        self._killers = ThreadPoolExecutor(4, thread_name_prefix="kill")

    def receive(self, receiver: Callable[[Reply], None]) -> None:
        """Name who gets the replies."""
        self._receiver = receiver

    def start(self, member: MemberKey, *, avoid: str) -> None:
        """Ask for an actor."""
        self._actors[member] = self._spawn[member.role](member.slot, avoid)

    def send(self, call: Call) -> None:
        """Start a remote call."""
        method = getattr(self._actors[call.member], call.method)
        if call.method in WORK:
            payload, answer = method.remote(call.argument)
        else:
            payload, answer = None, method.remote(*([] if call.argument is None else [call.argument]))
        answer.future().add_done_callback(lambda future: self._arrived(call, payload, future))

    def _arrived(self, call: Call, payload: Any, future: "Future[Any]") -> None:
        error = future.exception()
        if error is not None:
            cause, kind = cause_of(error)
            if kind == "died" and isinstance(cause, RayError):
                cause = MemberFailedError(describe_death(cause, self._member(call)))
            self._receiver(Reply(call.call_id, error=cause, cause=kind))
        elif call.method in WORK:
            self._receiver(Reply(call.call_id, payload, future.result()))
        else:
            if call.method in ("ready", "heartbeat") and call.member in self._actors:
                self._facts[call.member] = {
                    **self._facts.get(call.member, {}),
                    **future.result(),
                    "beat_at": time.monotonic(),
                }
            self._receiver(Reply(call.call_id, future.result()))

    def _member(self, call: Call) -> MemberFacts:
        return member_facts(call.member.role, call.member.slot, call.method, self._facts.get(call.member, {}))

    def kill(self, member: MemberKey, *, dump: bool) -> None:
        """End an actor; a stuck one first says where it stands, if it still can."""
        actor = self._actors.pop(member, None)
        if actor is not None:
            self._killers.submit(self._end, member, actor, dump)

    def _end(self, member: MemberKey, actor: Any, dump: bool) -> None:
        if dump:
            self._dump(member, actor)
        end_actor(actor, self._facts.pop(member, {}))

    def _dump(self, member: MemberKey, actor: Any) -> None:
        try:
            text = ray.get(actor.stacks.remote(), timeout=STACKS_TIMEOUT_S)
        except (GetTimeoutError, RayError) as error:
            text = f"no stacks: {type(error).__name__}: {error}"
        self._logs.mkdir(parents=True, exist_ok=True)
        path = self._logs / f"stuck-{member.slot}-{member.incarnation}.txt"
        path.write_text(text, encoding="utf-8")

    def draining_nodes(self) -> frozenset[str]:
        """Nodes that Ray is about to take away."""
        return draining_nodes()

    def unplaced(self) -> Mapping[MemberKey, str]:
        """Members that have not answered, and whose actors have no node."""
        silent = {member: actor for member, actor in self._actors.items() if member not in self._facts}
        ids = unplaced_actors() if silent else frozenset()
        without = [member for member, actor in silent.items() if actor_id(actor) in ids]
        lacks = {role: describe_lack(self._demands[role]) for role in {member.role for member in without}}
        return {member: lacks[member.role] for member in without}

    def fetch(self, ref: Any, timeout_s: float) -> Any:
        """The payload from the object store."""
        return wait_for(ref, role="driver", phase="fetch", timeout_s=timeout_s)

    def close(self) -> None:
        """End all actors."""
        for member in list(self._actors):
            self.kill(member, dump=False)
        self._killers.shutdown(wait=True)


def member_facts(role: str, name: str, phase: str, facts: Mapping[str, Any]) -> MemberFacts:
    """What is known of a process, from its answers to `ready` and to heartbeats."""
    return MemberFacts(
        role=role,
        name=name,
        phase=phase,
        pid=facts.get("pid"),
        node_id=facts.get("node", ""),
        node_ip=facts.get("node_ip", ""),
        rss_bytes=facts.get("rss_bytes"),
        rss_age_s=time.monotonic() - facts.get("beat_at", time.monotonic()),
    )


def end_actor(actor: Any, facts: Mapping[str, Any]) -> None:
    """Kill an actor; one that is stopped on this node goes at once, where Ray itself would wait for 5 s."""
    ray.kill(actor)
    here = {"node": ray.get_runtime_context().get_node_id(), "pid_namespace": pid_namespace()}
    pid = facts.get("pid")
    if pid is None or any(facts.get(key) != value for key, value in here.items()) or not _is_stopped_actor(pid):
        return
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _is_stopped_actor(pid: int) -> bool:
    """Whether this is an actor's process that is stopped (SIGSTOP): it does not obey, and others need its CPU.

    The number may have gone to another process meanwhile, so its title is looked at too.
    """
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes()
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return title.startswith(b"ray::") and state == "T"
