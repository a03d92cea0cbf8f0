"""The log of a job, from a client that is made to lose its connection; and what the end of a job means."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from ray.job_submission import JobDetails, JobStatus

from common.errors import ControlError
from deploy.jobs import follow as following
from deploy.jobs.follow import ending, exit_code, follow


class Dashboard:
    """Answers as Ray's client does: each tail of the log begins at its beginning."""

    def __init__(self, *tails, states):
        self.tails, self.states = list(tails), list(states)

    def get_address(self):
        return "http://head:8265"

    def list_jobs(self):
        state = self.states.pop(0)
        return [] if state is None else [job(state)]

    async def tail_job_logs(self, name):
        for text in self.tails.pop(0):
            if text is None:
                raise RuntimeError("closed unexpectedly")
            yield text


def job(state, code=None):
    return JobDetails(type="SUBMISSION", submission_id="run", entrypoint="", status=state, driver_exit_code=code)


def in_a_thread(dashboard, run, show, *, skip):
    """Playwright leaves an event loop in the thread of the tests, and there can be one in a thread."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(follow, dashboard, run, show, skip=skip).result()


@pytest.fixture
def seen(monkeypatch):
    monkeypatch.setattr(following, "POLL_S", 0.0)
    return []


def test_a_connection_that_breaks_loses_and_repeats_nothing(seen):
    dashboard = Dashboard(["one\n", "two\n", None], ["one\ntwo\nthr", "ee\n"], states=[JobStatus.SUCCEEDED])
    assert in_a_thread(dashboard, "run", seen.append, skip=0).status == JobStatus.SUCCEEDED
    assert "".join(seen) == "one\ntwo\nthree\n"


def test_the_log_of_an_earlier_job_of_that_name_is_skipped(seen):
    dashboard = Dashboard(["old\nne", "w\n"], ["old\nnew\nend"], states=[JobStatus.RUNNING, JobStatus.FAILED])
    assert in_a_thread(dashboard, "run", seen.append, skip=4).status == JobStatus.FAILED
    assert "".join(seen) == "new\nend"


def test_a_record_that_is_deleted_ends_the_showing(seen):
    with pytest.raises(ControlError, match="has been deleted"):
        in_a_thread(Dashboard([], states=[None]), "run", seen.append, skip=0)


def test_a_dashboard_that_is_gone_is_not_waited_for_for_ever(seen, monkeypatch):
    monkeypatch.setattr(following, "SILENCE_S", -1.0)
    with pytest.raises(ControlError, match=r"has not answered for .* closed unexpectedly"):
        in_a_thread(Dashboard([None], states=[]), "run", seen.append, skip=0)


@pytest.mark.parametrize(
    ("state", "code", "means"),
    [("SUCCEEDED", 0, 0), ("FAILED", 1, 1), ("FAILED", 3, 3), ("FAILED", 4, 4), ("FAILED", -9, 1), ("FAILED", None, 1),
     ("FAILED", 0, 1), ("STOPPED", None, 3)],
)  # fmt: skip
def test_the_end_of_a_job_means_what_run_would_have_said(state, code, means):
    assert exit_code(job(JobStatus(state), code)) == means


def test_a_driver_that_was_killed_names_the_signal_of_which_its_log_cannot_tell():
    assert ending(job(JobStatus.FAILED, -9)) == "FAILED (exit code 1): its driver was ended by signal 9 (Killed)"
    assert ending(job(JobStatus.FAILED, 4)) == "FAILED (exit code 4)"
