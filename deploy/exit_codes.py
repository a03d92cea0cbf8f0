"""What the exit code of `minichatgpt` says. `minichatgpt run --help` lists the same."""

from typing import Final

FINISHED: Final = 0
"""All stages are done."""
FAILED: Final = 1
"""An error; the message names it."""
DIFFERENT: Final = 1
"""`minichatgpt replay`: an update, recomputed, differs from what was recorded."""
STOPPED: Final = 3
"""`minichatgpt stop`."""
GUARDED: Final = 4
"""A guard rail of learning has stopped the run: look at what it says before going on."""
INTERRUPTED: Final = 130
"""Ctrl-C, as shells count: 128 + SIGINT."""
TERMINATED: Final = 143
"""SIGTERM, as shells count: 128 + SIGTERM."""
