"""Whether driver and learner read and write the same run folder and checkpoints, and all others can read them.

Rollout workers, reward replicas and the learner load models from the run folder; the learner writes there too. So a
note is left in each place, and a process on every node where some role may run looks for it.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fsspec.implementations.memory import MemoryFileSystem

from common.config import RunConfig
from common.errors import ConfigError
from common.run_place import shared
from common.storage import STORE_ERRORS
from deploy.preflight.finding import Finding
from deploy.preflight.packing import NodeFacts
from deploy.preflight.placements import demand, demands
from deploy.preflight.runtime_facts import RuntimeFacts
from deploy.preflight.storage_probe import Probe, ProbeAnswer, clear_notes, is_local, leave_note, open_place, read_note

Room = Mapping[str, int]
"""Least free bytes that other nodes see, by local place."""


def places(config: RunConfig, folder: Path) -> dict[str, str]:
    """Where the run writes: names of places to absolute paths or URLs.

    Raises:
        ConfigError: nobody here knows this kind of URL.
    """
    found = {"the run folder": shared(folder.absolute())}
    if config.ppo is not None and config.ppo.checkpoint_url is not None:
        fs, path = open_place(config.ppo.checkpoint_url)
        found["ppo.checkpoint_url"] = path if is_local(fs) else config.ppo.checkpoint_url.rstrip("/")
    return found


def check_storage(
    config: RunConfig, folder: Path, facts: RuntimeFacts, inputs: Sequence[str]
) -> tuple[list[Finding], Room]:
    """Exchange notes between the driver and every node where the run may work.

    Args:
        config: the run.
        folder: of the run; left as it was found.
        facts: the cluster.
        inputs: paths that must be there on every node.

    Returns:
        What was found, and the least room that other nodes see.
    """
    try:
        where = places(config, folder)
    except ConfigError as error:
        return [Finding("storage", failure=f"ppo.checkpoint_url: {error}")], {}
    nonce = secrets.token_hex(8)
    probed = [node for node in facts.nodes or () if _is_of_use(node, config)]
    authors = ["driver", *(node.node_id for node in probed)]
    with _left_as_found(folder, list(where.values()), nonce, authors):
        found = [_driver(name, url, nonce, shared=facts.nodes is not None) for name, url in where.items()]
        good = {finding.check: where[finding.check] for finding in found if not finding.failure}
        learner = demand("learner", config.learner)
        learners = {node.node_id for node in probed if learner.fits(node)}
        answers = facts.ask(
            {
                node.node_id: Probe(nonce, tuple(good.values()), node.node_id in learners, node.node_id, tuple(inputs))
                for node in probed
            }
        )
        found += _nodes(probed, answers, good, nonce, learners)
    if config.cluster.autoscaling and facts.nodes is not None:
        found.append(_not_there_yet(config, probed))
    given = [answer for answer in answers.values() if isinstance(answer, ProbeAnswer)]
    urls = {url for answer in given for url in answer.free_bytes}
    return found, {url: min(a.free_bytes[url] for a in given if url in a.free_bytes) for url in urls}


def _not_there_yet(config: RunConfig, probed: Sequence[NodeFacts]) -> Finding:
    """Nodes that are still to come cannot be asked."""
    waiting = [one.role for one in demands(config) if not any(one.fits(node) for node in probed)]
    if not waiting:
        return Finding("nodes to come", "their storage is not probed; it must be as on those that are there")
    return Finding(
        "nodes to come",
        caution=f"storage was probed on the nodes that are there, and none of them is for {', '.join(waiting)}: see to "
        "it that those which the autoscaler adds have the run folder too",
    )


def _is_of_use(node: NodeFacts, config: RunConfig) -> bool:
    return not node.is_draining and any(one.fits(node) for one in demands(config))


@contextmanager
def _left_as_found(folder: Path, urls: Sequence[str], nonce: str, authors: Sequence[str]) -> Iterator[None]:
    """Remove the notes, and the run folder if it was made for them."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for url in urls:
            try:
                clear_notes(url, nonce, authors)
            except STORE_ERRORS:  # said already where it was written
                continue
        for path in made:
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _driver(name: str, url: str, nonce: str, *, shared: bool) -> Finding:
    """The driver writes and reads."""
    fs, _ = open_place(url)
    if shared and isinstance(fs, MemoryFileSystem):
        return Finding(
            name,
            failure=f"{name} is {url}, the memory of one process: driver and learner are two and would not see each "
            "other's files. Give a path or URL that both reach, or run with --local",
        )
    try:
        leave_note(url, nonce, "driver")
        is_there = read_note(url, nonce, "driver")
    except STORE_ERRORS as error:
        return Finding(
            name,
            failure=f"{name} {url} cannot be written and read by the driver: {type(error).__name__}: {error}. Check "
            "its rights, or choose another place",
        )
    if not is_there:
        return Finding(name, failure=f"{name} {url} does not give back what the driver wrote; choose another place")
    return Finding(name, f"{url}: written and read by the driver")


def _nodes(
    probed: Sequence[NodeFacts],
    answers: Mapping[str, ProbeAnswer | str],
    good: Mapping[str, str],
    nonce: str,
    learners: set[str],
) -> list[Finding]:
    """One failure for all nodes with the same trouble."""
    troubles: dict[str, list[NodeFacts]] = {}
    for node in probed:
        for trouble in _troubles(answers[node.node_id], good, nonce, node.node_id, writes=node.node_id in learners):
            troubles.setdefault(trouble, []).append(node)
    found = [
        Finding("other nodes", failure=f"on node{'s' * (len(nodes) > 1)} {', '.join(map(str, nodes))}: {trouble}")
        for trouble, nodes in troubles.items()
    ]
    if probed and not found:
        count = f"{len(probed)} node{'s' * (len(probed) > 1)}"
        found.append(Finding("other nodes", f"{count} read what the driver wrote; {len(learners)} wrote back"))
    return found


def _troubles(
    answer: ProbeAnswer | str, good: Mapping[str, str], nonce: str, node_id: str, *, writes: bool
) -> Iterator[str]:
    if isinstance(answer, str):
        yield f"{answer}; is minichatgpt installed there, as it is here?"
        return
    share = "put it on storage that all nodes share, or keep the roles off these nodes by custom resources"
    for name, url in good.items():
        if url in answer.problems:
            yield f"{name} {url}: {answer.problems[url]}; {share}"
        elif writes and not _came_back(url, nonce, node_id):
            yield f"{name} {url}: what the learner would write there does not reach the driver; {share}"
    for path in answer.missing:
        yield f"{path} is not there (looked up from {answer.folder}); copy it, give an absolute path, or {share}"


def _came_back(url: str, nonce: str, author: str) -> bool:
    try:
        return read_note(url, nonce, author)
    except STORE_ERRORS:
        return False
