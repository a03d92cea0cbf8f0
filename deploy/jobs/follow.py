"""Follows a job to its end: what it prints, and what its end means. Called by `deploy/jobs/verbs.py`."""

import asyncio
import signal
import time
from collections.abc import Callable
from typing import Final

import aiohttp
import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from common.errors import ControlError
from deploy.exit_codes import FAILED, FINISHED, GUARDED, INTERRUPTED, STOPPED, TERMINATED

TROUBLE: Final = (RuntimeError, OSError, aiohttp.ClientError, requests.RequestException)
"""What Ray's client raises where a dashboard does not answer, or not as wanted."""
POLL_S: Final = 0.5
"""Time between two looks."""
SILENCE_S: Final = 120.0
"""A dashboard that is gone for so long is not waited for."""
OWN_CODES: Final = frozenset({FAILED, STOPPED, GUARDED, INTERRUPTED, TERMINATED})
"""Of a run that ended on its own terms; `run --help` says what they mean."""


def details(client: JobSubmissionClient, name: str) -> JobDetails | None:
    """The job; None if there is none of that name. Raises ControlError if the dashboard cannot say."""
    found = [job for job in _jobs(client) if job.submission_id == name]
    return found[0] if found else None


def names(client: JobSubmissionClient) -> list[str]:
    """Of all jobs that were submitted. Raises ControlError if the dashboard cannot say."""
    return sorted(job.submission_id for job in _jobs(client) if job.submission_id)


def _jobs(client: JobSubmissionClient) -> list[JobDetails]:
    try:
        return list(client.list_jobs())
    except TROUBLE as error:
        raise ControlError(
            f"the dashboard at {client.get_address()} does not say what jobs there are: {error}"
        ) from error


def printed(client: JobSubmissionClient, name: str) -> str:
    """All that the job has printed, earlier attempts of the same name included; empty where there is no log yet."""
    try:
        return str(client.get_job_logs(name))
    except TROUBLE as error:
        raise ControlError(f"the log of {name} cannot be read: {error}") from error


def follow(client: JobSubmissionClient, name: str, show: Callable[[str], None], *, skip: int) -> JobDetails:
    """Show what a job prints until it is over.

    Args:
        client: of the cluster.
        name: of the job.
        show: takes text as it comes.
        skip: so many letters of the log are known: Ray appends to that of an earlier job of the same name.

    Raises:
        ControlError: the dashboard is gone, or the job's record is.
    """
    log, alive_at = _Log(show, known=skip), time.monotonic()
    while True:
        trouble: BaseException | None = None
        before = log.known
        try:
            asyncio.run(log.tail(client, name))
            job = details(client, name)
        except (*TROUBLE, ControlError) as error:
            trouble, job = error, None
        if job is None and trouble is None:
            raise ControlError(f"the record of {name} has been deleted; its run folder says how it ended")
        if job is not None and job.status.is_terminal():
            return job
        if trouble is None or log.known > before:
            alive_at = time.monotonic()
        elif time.monotonic() - alive_at > SILENCE_S:
            raise ControlError(
                f"{client.get_address()} has not answered for {SILENCE_S:g} s: {trouble}; {name} may be running still"
            ) from trouble
        time.sleep(POLL_S)


class _Log:
    """What of a log has been shown, over connections that break: each begins at the log's beginning.

    Args:
        show: takes text as it comes.
        known: so many letters are not to be shown.
    """

    def __init__(self, show: Callable[[str], None], *, known: int) -> None:
        self._show = show
        self.known = known

    async def tail(self, client: JobSubmissionClient, name: str) -> None:
        """Show what is new until Ray closes the log."""
        seen = 0
        async for lines in client.tail_job_logs(name):
            if new := lines[max(0, self.known - seen) :]:
                self._show(new)
            seen += len(lines)
            self.known = max(self.known, seen)


def exit_code(job: JobDetails) -> int:
    """What the end of a job means, as `minichatgpt run` would have said it."""
    if job.status == JobStatus.SUCCEEDED:
        return FINISHED
    if job.status == JobStatus.STOPPED:
        return STOPPED
    return job.driver_exit_code if job.driver_exit_code in OWN_CODES else FAILED


def ending(job: JobDetails) -> str:
    """How a job ended, in words; names the signal that ended its driver, of which the log cannot tell."""
    code = job.driver_exit_code or 0
    why = f": its driver was ended by signal {-code} ({signal.strsignal(-code)})" if code < 0 else ""
    return f"{job.status.value} (exit code {exit_code(job)}){why}"
