"""The checkpoints of a run: where the next one goes, when it counts, which ones stay, and which one to resume from.

    place ─▶ the learner writes its shard there ─▶ commit: state.json, manifest.json, rename, prune

A checkpoint never replaces another in place: it gets a name that is free, and an older one of the same step goes once
the new one is whole. What is written to comes from `place` and has a name that is never used again, so that a learner
that was given up and writes on can harm nobody. Then there are two small strategies:

    local path      step_000012.1f3a9c07.partial becomes step_000012, or step_000012-1f3a9c07 where that is taken
    object store    step_000012-1f3a9c07 from the start; it is no checkpoint until its manifest is there

Used by the driver alone, by one thread at a time. What one checkpoint holds is told in `checkpoint.py`.
"""

import re
import secrets
import time
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from common.checkpoint import (
    FORMAT,
    LEARNER,
    MANIFEST,
    STATE,
    TENSORS,
    Checkpoint,
    Manifest,
    ShardFiles,
    encode_json,
    open_checkpoint,
    read_json,
    verify,
    write_manifest,
)
from common.errors import CheckpointError
from common.storage import Folder, StoredFile

_WHOLE = re.compile(r"step_\d{6,}(-[0-9a-f]{8})?")
_PARTIAL = re.compile(r"step_\d{6,}\.[0-9a-f]{8}\.partial")


class CheckpointStore:
    """The folder of a run's checkpoints.

    Args:
        url: a path or any fsspec URL; it need not exist.
        keep_last: newest checkpoints that stay.
        keep_best: checkpoints that stay for their score.
    """

    def __init__(self, url: str, *, keep_last: int, keep_best: int) -> None:
        self._root = Folder.at(url)
        self._keep_last = keep_last
        self._keep_best = keep_best
        self._begun: tuple[int, Folder] | None = None
        self._damaged: set[str] = set()

    @property
    def url(self) -> str:
        """Where the checkpoints are: the absolute path of a local folder."""
        return self._root.url

    def place(self, step: int) -> str:
        """Where the learner is to write its shard; clears what earlier attempts left, also one that is still going on.

        Raises:
            CheckpointError: the folder cannot be written to.
        """
        self._begun = None
        self._root.make()
        for name in self._root.names():
            if self._is_unfinished(name):
                self._root.remove(name)
        token = secrets.token_hex(4)
        is_local = self._root.is_local
        place = self._root.child(f"step_{step:06d}.{token}.partial" if is_local else f"step_{step:06d}-{token}")
        place.make()
        self._begun = (step, place)
        return place.url

    def _is_unfinished(self, name: str) -> bool:
        """Whether it never became a checkpoint, or is half removed."""
        if _PARTIAL.fullmatch(name):
            return True
        return bool(_WHOLE.fullmatch(name)) and MANIFEST not in self._root.child(name).names()

    def commit(self, step: int, shard: ShardFiles, state: Mapping[str, JsonValue], score: float | None) -> Checkpoint:
        """Make a checkpoint of what the learner wrote to `place(step)`, then remove those that need not stay.

        Args:
            step: updates done.
            shard: what the learner says it wrote.
            state: the driver's own part, JSON-able.
            score: the higher the better; None: it stays only as one of the newest.

        Raises:
            CheckpointError: the shard is not there, or a file cannot be written; older checkpoints are as they were.
        """
        begun = self._begun
        if begun is None or begun[0] != step:
            raise CheckpointError(f"step {step} was not begun, or another one was begun since")
        place = begun[1]
        try:
            lineage = self._lineage_of(place, step, shard)
            data = encode_json(state)
            place.write(STATE, data)
            files = {**shard.files, STATE: StoredFile.of(data)}
            place.verify(STATE, files[STATE])
            manifest = Manifest(
                format=FORMAT, step=step, lineage=lineage, score=score, written_at=time.time(), files=files
            )
            write_manifest(place, manifest)
            final = self._publish(place, step)
        except CheckpointError:
            self._remove(place.name)
            raise
        finally:
            if self._begun is begun:
                self._begun = None
        checkpoint = open_checkpoint(final)
        self._prune(checkpoint)
        return checkpoint

    @staticmethod
    def _lineage_of(place: Folder, step: int, shard: ShardFiles) -> int:
        """The lineage that the learner wrote; raises CheckpointError unless this process sees what it wrote."""
        if unseen := sorted(shard.files.keys() - set(place.names())):
            raise CheckpointError(
                f"{place.url}/{unseen[0]} was written by the learner and is not seen by the driver; set "
                "ppo.checkpoint_url to a path or URL that both reach"
            )
        found, expected = place.size(TENSORS), shard.files[TENSORS].size_bytes
        if found != expected:
            raise CheckpointError(f"{place.url}/{TENSORS} has {found} bytes; the learner wrote {expected}")
        state = read_json(place, LEARNER, shard.files[LEARNER])
        lineage = state.get("lineage")
        if state.get("step") != step or not isinstance(lineage, int):
            raise CheckpointError(
                f"{place.url}/{LEARNER} is of step {state.get('step')} and lineage {lineage}; step {step} was asked for"
            )
        return lineage

    def _publish(self, place: Folder, step: int) -> Folder:
        """Give it the name under which it counts."""
        if not self._root.is_local:
            return place
        place.sync()
        name = f"step_{step:06d}"
        if name in self._root.names():
            name = f"{name}-{place.name.split('.')[1]}"
        self._root.rename(place.name, name)
        self._root.sync()
        return self._root.child(name)

    def discard(self, step: int) -> None:
        """Remove what was begun for a step and not committed; nothing where nothing was."""
        if self._begun is not None and self._begun[0] == step:
            place, self._begun = self._begun[1], None
            self._remove(place.name)

    def checkpoints(self) -> list[Checkpoint]:
        """Those with a manifest that can be read, oldest first: by lineage, then by step."""
        return self._look()[0]

    def _look(self) -> tuple[list[Checkpoint], dict[str, CheckpointError]]:
        """Checkpoints, oldest first; and by name what is wrong with folders that look like one and are none."""
        found, wrong = [], dict[str, CheckpointError]()
        for name in self._root.names():
            if not _WHOLE.fullmatch(name) or (self._begun is not None and self._begun[1].name == name):
                continue
            try:
                found.append(open_checkpoint(self._root.child(name)))
            except CheckpointError as error:
                wrong[name] = error
        return sorted(found, key=_age), wrong

    def newest_verified(self, *, before_step: int | None = None) -> tuple[Checkpoint | None, list[str]]:
        """The newest checkpoint of which every byte is as it was written.

        Args:
            before_step: the newest of fewer updates than these, and where there is none the oldest of all.

        Returns:
            It, or None; and a message for each newer one that is damaged and was passed over, naming the file; those
            go with the next commit. With None and messages there were checkpoints, and none of them can be used.
        """
        found, wrong = self._look()
        if before_step is not None:
            early = [checkpoint for checkpoint in found if checkpoint.step < before_step]
            late = [checkpoint for checkpoint in found if checkpoint.step >= before_step]
            found = [*reversed(late), *early]
        newest, passed_over = None, dict[str, CheckpointError]()
        for checkpoint in reversed(found):
            try:
                verify(checkpoint)
            except CheckpointError as error:
                passed_over[checkpoint.name] = error
            else:
                newest = checkpoint
                break
        oldest = newest.step if newest is not None else 0
        passed_over = {name: error for name, error in wrong.items() if _step_of(name) >= oldest} | passed_over
        self._damaged |= passed_over.keys()
        return newest, [str(error) for error in passed_over.values()]

    def read_state(self, checkpoint: Checkpoint) -> dict[str, JsonValue]:
        """What the driver gave to `commit`; raises CheckpointError if it is damaged."""
        return read_json(Folder.at(checkpoint.url), STATE, checkpoint.files[STATE])

    def next_lineage(self) -> int:
        """A lineage later than that of every checkpoint; 0 where there is none."""
        return max((checkpoint.lineage + 1 for checkpoint in self.checkpoints()), default=0)

    def remove_after(self, step: int) -> None:
        """Remove the checkpoints of more updates than these, damaged ones too; raises CheckpointError if it cannot.

        The newest goes first: whoever is interrupted leaves those from which it would have come here again.
        """
        found, wrong = self._look()
        names = {checkpoint.name for checkpoint in found} | wrong.keys()
        for name in sorted((name for name in names if _step_of(name) > step), key=_step_of, reverse=True):
            self._remove(name)
            self._damaged.discard(name)

    def clear(self) -> None:
        """Remove all checkpoints, and what was begun and not finished; what else lies in the folder stays."""
        self._begun = None
        for name in self._root.names():
            if _WHOLE.fullmatch(name) or _PARTIAL.fullmatch(name):
                self._remove(name)

    def _prune(self, newest: Checkpoint) -> None:
        damaged = frozenset(self._damaged)
        going = superfluous(
            self.checkpoints(), newest, damaged=damaged, keep_last=self._keep_last, keep_best=self._keep_best
        )
        for name in sorted({checkpoint.name for checkpoint in going} | damaged):
            self._remove(name)
        self._damaged.clear()

    def _remove(self, name: str) -> None:
        """The manifest first: half removed it is no checkpoint."""
        folder = self._root.child(name)
        if MANIFEST in folder.names():
            folder.remove(MANIFEST)
            folder.sync()
        self._root.remove(name)


def _step_of(name: str) -> int:
    return int(name.removeprefix("step_").partition("-")[0])


def _age(checkpoint: Checkpoint) -> tuple[int, int, str]:
    return checkpoint.lineage, checkpoint.step, checkpoint.name


def superfluous(
    found: Sequence[Checkpoint], newest: Checkpoint, *, damaged: frozenset[str], keep_last: int, keep_best: int
) -> list[Checkpoint]:
    """Which checkpoints need not stay.

    Args:
        found: all there are, oldest first.
        newest: the one that was just committed, and so is whole: it always stays.
        damaged: names of those known to be damaged: they neither stay nor count.
        keep_last: newest that stay, `newest` included.
        keep_best: that stay for their score, of those that have one; of equal scores the newer ones.
    """
    by_step = {c.step: c for c in found if c.name not in damaged and c.step != newest.step}
    live = sorted(by_step.values(), key=_age)
    scored = [c for c in [*live, newest] if c.score is not None]
    best = sorted(scored, key=lambda c: (c.score, *_age(c)))[max(0, len(scored) - keep_best) :]
    last = live[max(0, len(live) - keep_last + 1) :]
    staying = {c.name for c in (*last, *best, newest)}
    return [c for c in found if c.name not in staying]
