"""What is recorded, kept and dropped, by a recording that needs no GPU: a replay computes into the same memory."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.cuda_graphs import Compute, CUDAGraphs, Recorded
from actors.engine import SamplingEngine
from common.seeds import sample_seed


class Recorder:
    """Notes the sizes of the first input of all that is recorded."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, inputs: Sequence[Tensor], compute: Compute) -> Recorded:
        self.rows.append(len(inputs[0]))
        held = [given.clone() for given in inputs]
        result = torch.empty_like(compute(held)).zero_()
        return Recorded(lambda: result.copy_(compute(held)), held, result)


def doubled(inputs: Sequence[Tensor]) -> Tensor:
    return inputs[0] * 2


def test_a_replay_computes_with_the_inputs_of_its_own_run():
    recorder = Recorder()
    graphs = CUDAGraphs(record=recorder)
    for value in (1.0, 5.0):
        assert graphs.run((3, 64), [torch.full((3,), value)], doubled).tolist() == [2 * value] * 3
    assert recorder.rows == [3]


def test_beyond_the_most_that_are_kept_the_one_that_was_not_used_for_longest_is_recorded_anew():
    recorder = Recorder()
    graphs = CUDAGraphs(2, record=recorder)
    for rows in (1, 2, 1, 3, 1, 2):
        graphs.run((rows, 64), [torch.ones(rows)], doubled)
    assert recorder.rows == [1, 2, 3, 2]


def test_what_is_forgotten_is_recorded_anew():
    recorder = Recorder()
    graphs = CUDAGraphs(record=recorder)
    graphs.run((1, 64), [torch.ones(1)], doubled)
    graphs.forget()
    graphs.run((1, 64), [torch.ones(1)], doubled)
    assert recorder.rows == [1, 1]


@pytest.mark.parametrize("batch", [5, 7, 16])
def test_a_decoder_with_graphs_gives_the_same_tokens_and_records_whole_multiples_of_rows(llama, batch):
    model = llama(vocab_size=301)
    prompts = [np.arange(3, 3 + n, dtype=np.int32) for n in (2, 6, 4, 3, 9, 5, 2, 7, 8, 4)]
    seeds = [sample_seed(0, i, 0) for i in range(len(prompts))]
    found, recorder = [], Recorder()
    for is_graphed in (False, True):
        engine = SamplingEngine(model, frozenset(), batch_sequences=batch, continuous=True)
        if is_graphed:
            engine._decoder._graphs, engine._decoder.rounding = CUDAGraphs(2, record=recorder), (4, 8)
        limits = [3 + 2 * i for i in range(len(prompts))]
        done = engine.sample(prompts, max_new_tokens=limits, seeds=seeds, temperature=1.0)
        found.append([one.ids.tolist() for one in done])
    assert found[0] == found[1]
    assert recorder.rows
    assert all(rows % 4 == 0 for rows in recorder.rows)
