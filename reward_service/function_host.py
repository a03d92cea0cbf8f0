"""The process in which a user's scoring function runs: `python function_host.py package.module:function PARENT_PID`.

It is a program, run by `host_process.py`, which speaks with it in lines of JSON over stdin and stdout. It imports the
standard library only, so that it starts fast and needs nothing of ours on its path. What the function prints goes to
stderr. It ends with its parent, even while the function hangs: the main thread waits for the end of stdin, and Linux is
asked for a signal.

    {"path": [...], "arguments": {...}}        ─▶ {"ready": true}    or {"error": "..."} or {"misfit": "..."}
    {"prompts": [...], "responses": [...]}     ─▶ {"scores": [...]}  or {"error": "..."} or {"shape": "..."}
"""

import ctypes
import faulthandler
import inspect
import io
import json
import os
import pkgutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, SupportsFloat

PR_SET_PDEATHSIG = 1
MAX_ERROR_CHARACTERS = 500


def main() -> None:
    """Import the function, then answer calls until stdin ends."""
    import_path, parent = sys.argv[1], int(sys.argv[2])
    die_with(parent)
    requests, replies = take_over_stdio()
    faulthandler.register(signal.SIGTERM, chain=True)  # whoever ends a call that hangs is told where it hung
    loaded: list[Callable[..., Any]] = []
    with ThreadPoolExecutor(max_workers=1) as executor:  # a future keeps whatever a function raises, SystemExit too
        for line in requests:
            request = json.loads(line)
            if "path" in request:
                sys.path[:] = request["path"]
                future = executor.submit(load, import_path, request["arguments"], loaded)
            else:
                future = executor.submit(call, loaded[0], request["prompts"], request["responses"])
            future.add_done_callback(partial(reply, replies))
        os._exit(0)  # the parent is gone, or has no more to ask; a call that hangs would keep the executor


def die_with(parent: int) -> None:
    """Let Linux kill this process when the thread that started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before
        os._exit(1)


def take_over_stdio() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """The pipes under numbers that nobody else knows; stdin is empty for the function, and its stdout is stderr."""
    requests, replies = os.fdopen(os.dup(0), "r", encoding="utf-8"), os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return requests, replies


def load(import_path: str, arguments: Mapping[str, Any], loaded: list[Callable[..., Any]]) -> dict[str, Any]:
    """Import the function and keep it in `loaded`, with its keyword arguments."""
    function = pkgutil.resolve_name(import_path)
    if not callable(function):
        return {"error": f"it is of type {type(function).__name__}, which cannot be called"}
    loaded.append(partial(function, **arguments))
    misfit = find_misfit(function, arguments)
    return {"misfit": misfit} if misfit else {"ready": True}


def find_misfit(function: Callable[..., Any], arguments: Mapping[str, Any]) -> str:
    """Why a function cannot be called with texts and these arguments; empty if it can, or says nothing of itself."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # of a compiled one nothing is known
        return ""
    try:
        signature.bind([], [], **arguments)
    except TypeError as error:
        return f"{error}; it takes {signature}"
    return ""


def call(function: Callable[..., Any], prompts: list[str], responses: list[str]) -> dict[str, Any]:
    """Numbers of any library as floats; None stays None."""
    result = function(prompts, responses)
    if isinstance(result, str | bytes | Mapping) or not isinstance(result, Iterable):
        return {"shape": f"it returned {type(result).__name__}, not a list of {len(responses)} numbers"}
    scores: list[float | None] = []
    for item in result:
        if item is not None and not isinstance(item, SupportsFloat):
            return {"shape": f"it returned {type(item).__name__} where a number belongs"}
        scores.append(None if item is None else float(item))
    return {"scores": scores}


def reply(replies: io.TextIOWrapper, future: Future[dict[str, Any]]) -> None:
    """Write the result, or what was raised instead."""
    error = future.exception()
    if error is not None:
        traceback.print_exception(error)
    replies.write(json.dumps(future.result() if error is None else {"error": described(error)}) + "\n")
    replies.flush()


def described(error: BaseException) -> str:
    """Type, message, and the line that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
    return traceback.format_exception_only(error)[-1].strip()[:MAX_ERROR_CHARACTERS] + place


if __name__ == "__main__":
    main()
