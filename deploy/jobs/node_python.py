"""Lets the shell of a job's entry point find the Python that Ray itself runs in on that node. A script of the shell.

Ray starts an entry point by `sh -c`, with the PATH of whoever typed `ray start`. Where Ray lives in a virtual
environment that was called by its path, `python3` there is another one, or none, and nothing in the environment names
the right one. But the shell's parent is the job's supervisor, its parent is the raylet, and the raylet's command line
says by which Python it starts workers. (Ray's `worker_process_setup_hook` would be the official way to tell: it is not
called in the supervisor, only in the workers of a driver.) Needs Linux's /proc; elsewhere it is `python3` of the PATH.
"""

from typing import Final

FILE: Final = "find_python.sh"
"""Its name in the working directory of the job: as part of the entry point it would be the first thing in every log."""
SCRIPT: Final = r"""# Prints the Python that Ray runs in on this node, given the process id of a job's supervisor.
raylet=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$1/status")
tr '\0' '\n' <"/proc/$raylet/cmdline" | sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p' | grep . ||
    command -v python3
"""
PYTHON: Final = f"$(sh {FILE} $PPID)"
"""As a word of the shell that Ray starts; quote it."""
