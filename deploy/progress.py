"""Progress bars of the terminal, one look for all stages."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Show = Callable[[int, int, str], None]


def progress(console: Console) -> Progress:
    """A bar that disappears when its stage is done; the stage's last line stays."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description:<13}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,  # in a file it would leave nothing but empty lines
    )


@contextmanager
def stage_bar(console: Console, stage: str, tell: Show = lambda step, total, message: None) -> Iterator[Show]:
    """A bar for a stage; the yielded function takes steps done, steps in all, and a message, and passes them on."""
    with progress(console) as bar:
        task = bar.add_task(stage, total=None, message="")

        def show(step: int, total: int, message: str) -> None:
            tell(step, total, message)
            bar.update(task, completed=step, total=total, message=message)

        yield show
