"""What can be done to a job: launch, follow, status, logs, stop. `deploy/jobs/cli.py` and the verbs of a live run
(`deploy/control/cli.py`, `deploy/history/cli.py`) call it once `--address` is given.
"""

import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import typer
from ray.job_submission import JobDetails, JobSubmissionClient
from rich.console import Console

from common.config import RunConfig
from common.errors import ConfigError, ControlError
from deploy.exit_codes import FINISHED, INTERRUPTED
from deploy.jobs.dashboard import open_dashboard
from deploy.jobs.follow import POLL_S, TROUBLE, details, ending, exit_code, follow, names, printed
from deploy.jobs.submission import RUNS, Submission, make_submission

CONTROL_AT: Final = re.compile(r"page, control and metrics at (\S+)")
"""What a run says when it can be asked."""
BEGINS: Final = "Running entrypoint for job"
"""What Ray writes when a job begins; before it are earlier jobs of the same name."""
NO_AGENT: Final = "No available agent"
"""What Ray answers while nobody on the head takes jobs; nothing has been submitted then."""
AGENT_WAIT_S: Final = 120.0
"""A head that takes no jobs for so long is not waited for."""


def launch(
    config: RunConfig,
    address: str,
    runs: str,
    *,
    wheel: Path | None,
    again: Sequence[str],
    detach: bool,
    insecure: bool,
    console: Console,
) -> int:
    """Submit a run as a job and follow it; returns the exit code that its end means, 0 at once if detached."""
    with tempfile.TemporaryDirectory(prefix="minichatgpt-launch-") as folder:
        wanted = make_submission(config, runs, Path(folder), wheel=wheel, again=again, insecure=insecure)
        client, mode = open_dashboard(address, insecure=insecure)
        wanted.authenticate(mode)
        known = _submit(client, wanted, address, console)
    _say(console, f"✓ {config.name} is submitted to {address}, and goes on if this command ends:")
    _say(console, how_to(config.name, address))
    if detach:
        return FINISHED
    return follow_to_end(client, config.name, address, console, skip=known)


def _submit(client: JobSubmissionClient, wanted: Submission, address: str, console: Console) -> int:
    """Returns how many letters the log of an earlier job of that name holds."""
    known, name = 0, wanted.name
    if (before := details(client, name)) is not None:
        if not before.status.is_terminal():
            raise ControlError(
                f"a job {name} is there and {before.status.value}; nothing was submitted\n{how_to(name, address)}"
            )
        known = len(printed(client, name)) if before.driver_agent_http_address else 0
        _say(console, f"{name} ended {before.status.value} before; it goes on from its run folder")
    try:
        if before is not None:
            client.delete_job(name)
        submit(client, wanted, lambda text: _say(console, text))
    except TROUBLE as error:
        raise ControlError(f"{address} does not take the job: {error}") from error
    return known


def submit(client: JobSubmissionClient, wanted: Submission, say: Callable[[str], None]) -> None:
    """Submit, once the head has the process that takes jobs: the dashboard answers some time before that.

    Raises:
        RuntimeError: Ray's, if the job is not taken, or that process is not there within AGENT_WAIT_S.
    """
    end, is_told = time.monotonic() + AGENT_WAIT_S, False
    while True:
        try:
            client.submit_job(
                entrypoint=wanted.entrypoint,
                submission_id=wanted.name,
                runtime_env=wanted.runtime_env,
                metadata=wanted.metadata,
            )
        except RuntimeError as error:
            if NO_AGENT not in str(error) or time.monotonic() > end:
                raise
        else:
            return
        if not is_told:
            say("the head has only just started, and does not take jobs yet; waiting for it")
            is_told = True
        time.sleep(POLL_S)


def how_to(name: str, address: str) -> str:
    """Commands that go on with a job."""
    return "\n".join(
        f"  minichatgpt {verb} {name} --address {address}" for verb in ("status", "logs", "logs --follow", "stop")
    )


def follow_to_end(client: JobSubmissionClient, name: str, address: str, console: Console, *, skip: int) -> int:
    """Show the log until the end; Ctrl-C ends the showing alone."""
    try:
        job = follow(client, name, _show, skip=skip)
    except KeyboardInterrupt:
        _say(console, f"\n{name} goes on; this only ends the showing of its log.\n{how_to(name, address)}")
        return INTERRUPTED
    if not job.driver_agent_http_address:  # it never began, so that its log says nothing
        _say(console, job.message or "")
    _say(console, f"{name} {ending(job)}")
    return exit_code(job)


def show_status(run: str | None, address: str, *, url: str | None, as_json: bool, insecure: bool) -> None:
    """Print a job's state, times, node, and where the run itself can be asked."""
    client, job, name = _job(run, address, url=url, insecure=insecure)
    if as_json:
        typer.echo(job.model_dump_json(indent=1))
        return
    console = Console()
    rows = [
        ("job", name),
        ("state", job.status.value),
        ("started", _time(job.start_time)),
        ("ended", _time(job.end_time)),
    ]
    rows += [("exit code", str(job.driver_exit_code))] if job.driver_exit_code is not None else []
    address_of_driver = job.driver_info.node_ip_address if job.driver_info is not None else "–"
    rows += [("node of the driver", address_of_driver), ("runs", (job.metadata or {}).get(RUNS, "–"))]
    if job.driver_agent_http_address and not job.status.is_terminal():
        found = CONTROL_AT.findall(printed(client, name).rpartition(BEGINS)[2])
        rows += [("control", f"{found[-1] if found else 'not there yet'} (as its node sees it)")]
    for title, value in rows:
        _say(console, f"{title:<19} {value}")
    _say(console, (job.message or "").strip())


def show_logs(run: str | None, address: str, *, url: str | None, follow_on: bool, limit: int, insecure: bool) -> int:
    """Print what the job prints; returns the exit code."""
    client, _, name = _job(run, address, url=url, insecure=insecure)
    text = printed(client, name)
    _show("".join(text.splitlines(keepends=True)[-limit:]))
    if not follow_on:
        return FINISHED
    return follow_to_end(client, name, address, Console(stderr=True), skip=len(text))


def stop_job(run: str | None, address: str, *, url: str | None, wait: bool, timeout_s: float, insecure: bool) -> None:
    """Ask a job to end as SIGTERM does: it finishes or abandons its update and writes a checkpoint."""
    client, job, name = _job(run, address, url=url, insecure=insecure)
    if job.status.is_terminal():
        raise ControlError(f"{name} does not run: it ended {job.status.value} at {_time(job.end_time)}")
    console = Console()
    try:
        client.stop_job(name)
    except TROUBLE as error:
        raise ControlError(f"{name} could not be asked to stop: {error}") from error
    if not wait:
        _say(console, f"{name} was asked to end; `minichatgpt status {name} --address {address}` shows whether it has")
        return
    end = time.monotonic() + timeout_s
    while (now := details(client, name)) is not None and not now.status.is_terminal():
        if time.monotonic() > end:
            raise ControlError(f"{name} has not ended within {timeout_s:g} s (--timeout); it was asked to")
        time.sleep(POLL_S)
    _say(console, f"✓ {name} has ended: {now.status.value if now else 'its record is deleted'}")


def _job(
    run: str | None, address: str, *, url: str | None, insecure: bool
) -> tuple[JobSubmissionClient, JobDetails, str]:
    """The job that a command line means."""
    if url is not None:
        raise ConfigError("--url asks the run itself, --address the cluster on which it is a job; leave one out")
    if run is None:
        raise ConfigError("no run is named; with --address give the name under which it was launched")
    client = open_dashboard(address, insecure=insecure).client
    job = details(client, run)
    if job is None:
        raise ControlError(f"{address} has no job {run}; there are: {', '.join(names(client)) or 'none'}")
    return client, job, run


def _time(milliseconds: int | None) -> str:
    if not milliseconds:
        return "–"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _show(text: str) -> None:
    """Text of the job, as it is."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _say(console: Console, text: str) -> None:
    if text:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
