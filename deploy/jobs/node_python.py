"""Lets the shell of a job's entry point find the Python that Ray itself runs in on that node.

Ray starts an entry point by `sh -c`, with the PATH of whoever typed `ray start`. Where Ray lives in a virtual
environment that was called by its path, `python` there is another one, or none. Ray calls `offer` in every worker
process of the job, its supervisor among them (`worker_process_setup_hook`), and the supervisor's environment is that of
the entry point. Runs before anything is set up, so it imports nothing.
"""

import os
import sys
from typing import Final

PYTHON_VARIABLE: Final = "MINICHATGPT_NODE_PYTHON"
"""Where the entry point finds the path of that Python."""
HOOK: Final = "deploy.jobs.node_python.offer"
"""As Ray's runtime environment names it."""


def offer() -> None:
    """Put the path of this process's Python into its environment."""
    os.environ[PYTHON_VARIABLE] = sys.executable
