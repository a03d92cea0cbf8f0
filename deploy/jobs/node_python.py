"""Lets the shell of a job's entry point find the Python that Ray itself runs in on that node. A piece of shell.

Ray starts an entry point by `sh -c`, with the PATH of whoever typed `ray start`. Where Ray lives in a virtual
environment that was called by its path, `python3` there is another one, or none, and nothing in the environment names
the right one. But the shell's parent is the job's supervisor, its parent is the raylet, and the raylet's command line
says by which Python it starts workers. (Ray's `worker_process_setup_hook` would be the official way to tell: it is not
called in the supervisor, only in the workers of a driver.) Needs Linux's /proc; elsewhere it is `python3` of the PATH.
"""

from typing import Final

PYTHON: Final = (
    r"$(raylet=$(sed -n 's/^PPid:[[:space:]]*//p' /proc/$PPID/status);"
    r" tr '\0' '\n' </proc/$raylet/cmdline | sed -n 's/^--python_worker_command=\([^ ]*\) .*/\1/p' | grep ."
    r" || command -v python3)"
)
"""As a word of the shell that Ray starts; quote it."""
