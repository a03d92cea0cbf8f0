"""Token buckets, on a clock that the test moves."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.control.limits import Buckets, Rate, client_of, whole_seconds


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_a_bucket_holds_a_burst_and_says_when_there_is_more():
    clock = Clock()
    buckets = Buckets(Rate(per_s=0.5, burst=3), clock, 10)
    assert [buckets.take("a") for _ in range(3)] == [0.0, 0.0, 0.0]
    assert buckets.take("a") == pytest.approx(2.0)
    clock.now += 1.5
    assert buckets.take("a") == pytest.approx(0.5)
    clock.now += 0.5
    assert buckets.take("a") == 0.0


def test_a_bucket_never_holds_more_than_its_burst():
    clock = Clock()
    buckets = Buckets(Rate(per_s=1.0, burst=2), clock, 10)
    buckets.take("a")
    clock.now += 1e6
    assert [buckets.take("a") > 0 for _ in range(3)] == [False, False, True]


def test_clients_do_not_take_from_each_other():
    buckets = Buckets(Rate(per_s=1.0, burst=1), Clock(), 10)
    assert buckets.take("a") == 0.0
    assert buckets.take("b") == 0.0
    assert buckets.take("a") > 0


def test_of_too_many_clients_the_one_that_asked_longest_ago_is_forgotten():
    buckets = Buckets(Rate(per_s=1.0, burst=1), Clock(), 2)
    for client in ("a", "b", "a", "c"):
        buckets.take(client)
    assert len(buckets) == 2
    assert buckets.take("a") > 0, "it had asked again, and is remembered"
    assert buckets.take("b") == 0.0


@given(st.lists(st.floats(0, 20), max_size=60), st.integers(1, 5), st.floats(0.1, 3))
def test_no_more_pass_than_the_burst_and_what_time_has_added(pauses, burst, per_s):
    clock = Clock()
    buckets = Buckets(Rate(per_s, burst), clock, 1)
    passed = 0
    for pause in pauses:
        clock.now += pause
        passed += buckets.take("a") == 0.0
    assert passed <= burst + sum(pauses) * per_s + 1e-6


@given(st.floats(0.05, 5), st.integers(0, 20))
def test_who_waits_as_long_as_told_is_let_in(per_s, early):
    clock = Clock()
    buckets = Buckets(Rate(per_s, 1), clock, 1)
    buckets.take("a")
    for _ in range(early):
        buckets.take("a")
    clock.now += whole_seconds(buckets.take("a"))
    assert buckets.take("a") == 0.0


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::1", "::1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("unknown", "unknown"),
    ],
)
def test_who_can_choose_among_many_addresses_is_one_client(address, client):
    assert client_of(address) == client
