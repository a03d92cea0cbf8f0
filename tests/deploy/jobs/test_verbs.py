"""A job is handed to a head that has only just started, from a client that refuses as Ray's does."""

import pytest

from deploy.jobs import verbs
from deploy.jobs.submission import Submission
from deploy.jobs.verbs import submit

RUN = Submission(name="run", entrypoint="true", runtime_env={}, metadata={})
NOT_YET = "Request failed with status code 500: No available agent to submit job, please try again later."


class Head:
    """Refuses with each of these texts before it takes a job."""

    def __init__(self, *refusals):
        self.refusals, self.taken = list(refusals), []

    def submit_job(self, **job):
        if self.refusals:
            raise RuntimeError(self.refusals.pop(0))
        self.taken.append(job["submission_id"])


@pytest.fixture
def said(monkeypatch):
    monkeypatch.setattr(verbs, "POLL_S", 0.0)
    return []


def test_a_head_that_takes_no_jobs_yet_is_waited_for_and_this_is_said_once(said):
    head = Head(NOT_YET, NOT_YET)
    submit(head, RUN, said.append)
    assert head.taken == ["run"]
    assert len(said) == 1
    assert "does not take jobs yet" in said[0]


def test_a_head_that_never_takes_jobs_is_not_waited_for_for_ever(said, monkeypatch):
    monkeypatch.setattr(verbs, "AGENT_WAIT_S", -1.0)
    with pytest.raises(RuntimeError, match="No available agent"):
        submit(Head(NOT_YET), RUN, said.append)


def test_a_job_that_is_refused_for_another_reason_is_not_tried_again(said):
    head = Head("a job run is there")
    with pytest.raises(RuntimeError, match="is there"):
        submit(head, RUN, said.append)
    assert not head.taken
