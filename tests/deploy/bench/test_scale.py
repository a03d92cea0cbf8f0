"""The benchmark of the control plane: figures by hand, the schedule in simulated time, the clock around a transport."""

import threading
import time

import pytest

from common.ports import Call, MemberKey, Reply
from deploy.bench.free_control import FreeControl
from deploy.bench.latency import Latency, Worked, busy_share
from deploy.bench.made_up import generated
from deploy.bench.own_cost import own_cost
from deploy.bench.scale import config_of
from deploy.bench.simulated import DispatchTimes


class Even(Latency):
    """All chunks take the same time."""

    def generate_s(self, chunk_index):
        return self.median_s


def free(workers, latency, seconds, *changes, update_s=0.0):
    control = FreeControl(config_of(workers, *changes), latency, update_s=update_s)
    return control, control.run(seconds)


def test_work_counts_where_it_lies_in_the_window_and_as_long_as_it_was_planned():
    worked = [Worked(0.0, 4.0), Worked(5.0, 2.0), Worked(9.0, 3.0), Worked(20.0, 1.0), Worked(1.0, 1.0)]
    # Between 2 and 10: 2 of the first, 2, 1 of the third, nothing of the others; two workers.
    assert busy_share(worked, 2, 2.0, 10.0) == pytest.approx(5 / 16)


def test_latencies_are_log_normal_and_the_same_in_every_run():
    times = sorted(Latency(seed=3).generate_s(index) for index in range(2000))
    assert times[1000] == pytest.approx(10.0, rel=0.1)
    assert times[1683] / times[1000] == pytest.approx(2.718281828**0.8, rel=0.1), "one standard deviation"
    assert Latency(seed=3).generate_s(7) == Latency(seed=3).generate_s(7) != Latency(seed=4).generate_s(7)


def test_without_staleness_workers_wait_for_the_slowest_and_for_the_learner():
    control, worked = free(4, Even(median_s=8.0, judge_s=0.5), 30.0, "ppo.max_staleness=0", update_s=1.0)
    # 8 s of generating, 0.5 s of each of two judgements by two replicas of their own, 1 s of learning; 4 chunks.
    assert {round(work.start_s, 6) for work in worked} == {0.0, 11.0, 22.0}
    assert control.step == 2


def test_at_staleness_1_with_a_chunk_for_each_worker_nobody_waits_where_latencies_vary():
    _, worked = free(32, Latency(), 100.0, update_s=0.5)
    assert busy_share(worked, 32, 10.0, 100.0) > 0.97
    _, strict = free(32, Latency(), 100.0, "ppo.max_staleness=0", update_s=0.5)
    assert busy_share(strict, 32, 10.0, 100.0) < 0.5


def test_answers_have_the_size_of_real_ones():
    seen = []
    control = FreeControl(config_of(2), Even(median_s=1.0), update_s=0.0)
    carry_out = control._carry_out
    control._carry_out = lambda call: (seen.append(call), carry_out(call))
    control.run(0.5)
    request = next(call.argument for call in seen if call.method == "generate")
    chunk, stats = generated(request, 1.0)
    assert len(chunk.rollouts) == stats.samples == request.num_samples == 16
    assert [r.draw_index for r in chunk.rollouts] == [p.draw_index for p in request.prompts]
    assert [len(r.response_ids) for r in chunk.rollouts] == [p.max_new_tokens for p in request.prompts]
    assert stats.response_tokens == sum(len(r.logprobs) for r in chunk.rollouts)


class Wire:
    """Remembers calls; answers when told."""

    def receive(self, receiver):
        self.answer = receiver

    def send(self, call):
        self.sent = call


def test_the_time_from_an_answer_to_the_next_request_is_that_of_the_same_worker():
    wire, heard = Wire(), []
    times = DispatchTimes(wire)
    times.receive(heard.append)
    one, other = (MemberKey("rollout", f"worker-{i}", 0) for i in range(2))
    times.send(Call(1, one, "generate"))
    times.send(Call(2, one, "heartbeat"))
    wire.answer(Reply(2))
    times.send(Call(3, other, "generate"))
    assert (times.answered, times.waits_s) == (0, [])
    wire.answer(Reply(1))
    before = time.monotonic()
    times.send(Call(4, other, "generate"))
    assert not times.waits_s
    times.queued_at_s = lambda call: before  # work came after the answer: the wait for it is none of the dispatch's
    times.send(Call(5, one, "generate"))
    assert times.answered == 1
    assert 0 <= times.waits_s[0] <= time.monotonic() - before
    assert len(heard) == 2


def test_the_time_of_a_thread_is_found_under_its_name():
    done = threading.Event()

    def work():
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass
        done.wait()

    before = own_cost()
    thread = threading.Thread(target=work, name="busy-thread-3")
    thread.start()
    end = time.monotonic() + 30
    while own_cost().by_thread.get("busy-thread", 0.0) < 0.05 and time.monotonic() < end:
        time.sleep(0.01)
    after = own_cost()
    done.set()
    thread.join()
    assert after.by_thread["busy-thread"] >= 0.05
    assert after.cpu_s - before.cpu_s >= 0.05
