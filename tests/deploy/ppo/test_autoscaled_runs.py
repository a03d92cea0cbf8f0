"""A run with the autoscaler enabled leaves the same bytes; in one process it rests."""

from prometheus_client import generate_latest


def test_in_one_process_it_rests_and_says_so(train, once):
    run = train("autoscaler.enabled=true").ok()
    assert run.events()[0] == ("autoscale", "the autoscaler rests: with --local all rollout workers share one thread")
    assert "scale" not in {event for event, _ in run.events()}
    run.assert_same_as(once())


def test_where_it_is_off_it_has_no_series(once):
    run = once()
    assert "autoscale" not in {event for event, _ in run.events()}
    scraped = generate_latest(run.registry).decode()
    assert "minichatgpt_updates_total" in scraped
    assert not [line for line in scraped.splitlines() if line.startswith("minichatgpt_autoscaler")]
