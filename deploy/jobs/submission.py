"""What a run is as a Ray job: its entry point, the folder that travels with it, its environment. Pure but for files.

The configuration travels in a working directory made for it, beside a script that finds the node's Python. Not in an
environment variable: those are shown in the dashboard and have a limit of 128 KiB, which inline data may pass. Never
the user's own directory: it is slow, and nobody knows afterwards what ran. The program is the nodes' own installation,
or a wheel, which is unpacked into the same folder (Ray puts it first on the path of all processes). Ray could install a
wheel by itself, but does so by the `pip` of the node's PATH and from the network, with all that it depends on.
"""

import math
import shlex
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from common.config import RunConfig
from common.config_file import to_toml
from common.errors import ConfigError
from deploy.jobs.node_python import FILE, PYTHON, SCRIPT

STOP_MARGIN_S: Final = 60
"""Beyond the running update: writing the checkpoint, the summary and the report, and leaving Ray."""
RUNS: Final = "minichatgpt_runs"
"""Key of a job's metadata: where run folders are."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A job, as Ray takes it."""

    name: str
    """The run's, and the job's submission id."""
    entrypoint: str
    """Command of a shell on the head node."""
    runtime_env: dict[str, Any]
    """What travels along."""
    metadata: dict[str, str]
    """What is shown with the job."""

    def authenticate(self, mode: str) -> None:
        """Tell the job how its cluster authenticates: a head may have left it to Ray's default."""
        self.runtime_env["env_vars"]["RAY_AUTH_MODE"] = mode


def make_submission(
    config: RunConfig, runs: str, folder: Path, *, wheel: Path | None, again: Sequence[str], insecure: bool
) -> Submission:
    """The job of a run.

    Args:
        config: what to run.
        runs: where its folder is to be, as all nodes see it.
        folder: empty; filled with what travels along, and needed until the job has been submitted.
        wheel: this project, to be used instead of the nodes' installation.
        again: stages to run even if they are done.
        insecure: accept a cluster that asks for no token.

    Raises:
        ConfigError: `runs` or `wheel` is of no use there.
    """
    runs = checked_runs(runs)
    if wheel is not None:
        unpack(wheel, folder)
    file = f"{config.name}.toml"
    (folder / file).write_text(to_toml(config), encoding="utf-8")
    (folder / FILE).write_text(SCRIPT, encoding="utf-8")
    words = ["-m", "deploy", "run", file, "--address", "auto", "--runs", runs]
    words += [word for stage in again for word in ("--again", stage)] + ["--insecure"] * insecure
    variables = {
        # Ray kills a job 3 s after it has asked it to stop: too soon for the update that runs, and its checkpoint.
        "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(config.stop_timeout_s) + STOP_MARGIN_S),
        "COLUMNS": "120",
    }
    return Submission(
        name=config.name,
        # `exec`: the signal that stops the job reaches the run, and the shell cannot end before it.
        entrypoint=f'{announce_driver(config.name)}exec "{PYTHON}" {shlex.join(words)}',
        runtime_env={"working_dir": str(folder), "env_vars": variables},
        metadata={RUNS: runs},
    )


def announce_driver(name: str) -> str:
    """Commands that leave the driver's process id where whoever stops the node looks for it, if the node says where.

    The shell's id is the driver's: it becomes the driver. deploy/kubernetes/shared/stop-job reads it.
    """
    folder, file = '"$MINICHATGPT_DRIVERS"', f'"$MINICHATGPT_DRIVERS"/{shlex.quote(name)}'
    return f"[ -z {folder} ] || {{ mkdir -p {folder} && echo $$ >{file}; }}; "


def checked_runs(runs: str) -> str:
    """A place that means the same on every machine; raises ConfigError if it does not."""
    if "://" in runs or PurePosixPath(runs).is_absolute():
        return runs
    raise ConfigError(
        f"--runs {runs}: relative to what? The run works in a temporary folder of Ray on the head node; give an "
        "absolute path that all nodes share, as /shared/runs, or a URL, as s3://bucket/runs"
    )


def unpack(wheel: Path, folder: Path) -> None:
    """Put the packages of a wheel of this project into a folder; raises ConfigError if it is none."""
    how = "build one by `pip wheel . --no-deps` in the project's folder"
    try:
        with zipfile.ZipFile(wheel) as archive:
            if wheel.suffix != ".whl" or "deploy/jobs/node_python.py" not in archive.namelist():
                raise ConfigError(f"--wheel {wheel} is no wheel of minichatgpt that knows `launch`; {how}")
            archive.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise ConfigError(f"--wheel {wheel} cannot be read ({error}); {how}") from error
