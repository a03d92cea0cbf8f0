"""What is known of the rows of one call of the engine, finished or not: arrays, which both loops write to.

Legend: N rows of the call, M of them that are asked about, R most tokens of a response.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from common.records import Finish, Ids, Logprobs

RUNNING, STOPPED, FULL = 0, 1, 2
FINISH: Final[dict[int, Finish]] = {STOPPED: "stop", FULL: "length"}
Index = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Sampled:
    """One response."""

    ids: Ids
    """[R] sampled ids, EOS included."""
    logprobs: Logprobs
    """[R] logprobs under the distribution that was sampled from."""
    finish: Finish


@dataclass(frozen=True, slots=True)
class Drawing:
    """How tokens are drawn, and what ends a response."""

    temperature: float
    top_p: float
    eos_ids: npt.NDArray[np.int64]


class Rows:
    """Prompts, and the responses as they grow.

    Args:
        prompts: [P] ids each.
        max_new_tokens: most tokens of each response.
        seeds: 64 bits each.
        drawing: the same for all.
    """

    def __init__(
        self, prompts: Sequence[Ids], max_new_tokens: Sequence[int], seeds: Sequence[int], drawing: Drawing
    ) -> None:
        self.prompts = [np.asarray(p, dtype=np.int64) for p in prompts]
        self.prompt_lengths = np.array([len(p) for p in prompts], dtype=np.int64)
        self.limits = np.asarray(max_new_tokens, dtype=np.int64)
        self.seeds = np.asarray(seeds, dtype=np.uint64)
        self.drawing = drawing
        shape = (len(prompts), int(self.limits.max()))
        self.ids = np.zeros(shape, dtype=np.int32)
        self.logprobs = np.zeros(shape, dtype=np.float32)
        self.num_new = np.zeros(len(prompts), dtype=np.int64)
        self.state = np.full(len(prompts), RUNNING, dtype=np.int8)

    @property
    def longest(self) -> int:
        """Most tokens that a row feeds to the model: all but its last one."""
        return int((self.prompt_lengths + self.limits).max()) - 1

    def note(self, rows: Index, tokens: npt.NDArray[np.int64], logprobs: Logprobs) -> None:
        """Append one token to each of [M] distinct running rows, and see which of them are done."""
        slots = self.num_new[rows]
        self.ids[rows, slots] = tokens
        self.logprobs[rows, slots] = logprobs
        self.num_new[rows] = slots + 1
        ends = (tokens[:, None] == self.drawing.eos_ids).any(axis=1)
        self.state[rows] = np.where(ends, STOPPED, np.where(slots + 1 == self.limits[rows], FULL, RUNNING))

    def last_tokens(self, rows: Index) -> npt.NDArray[np.int64]:
        """[M] the last token of each row's response."""
        return self.ids[rows, self.num_new[rows] - 1].astype(np.int64)

    def last_positions(self, rows: Index) -> Index:
        """[M] where it stands in the row's text."""
        return self.prompt_lengths[rows] + self.num_new[rows] - 1

    def result(self) -> list[Sampled]:
        """Every row's response, in the order of the prompts."""
        return [
            Sampled(self.ids[i, :n].copy(), self.logprobs[i, :n].copy(), FINISH[int(self.state[i])])
            for i, n in enumerate(self.num_new)
        ]
