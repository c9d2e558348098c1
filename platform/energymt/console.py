"""What a person sees while a run trains: plain lines, with a progress bar below them on a terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

STEP = re.compile(r"step +(\d+)/(\d+)")


def line(step: int, steps: int, values: dict[str, float]) -> str:
    """One line of the log: `step 50/6000  train  nll 8.19 ...`; names as short as they are clear."""
    shown = [f"{_short(key, values)} {value:.4g}" for key, value in values.items() if key != "time/run_s"]
    kind = "dev  " if any(key.startswith("dev/") for key in values) else "train"
    return f"step {step:>6}/{steps}  {kind}  " + "  ".join(shown)


def _short(key: str, among: Iterable[str]) -> str:
    """The end of a name, from its last parts as many as no other name ends with."""
    parts = key.split("/")
    ends = ["/".join(parts[first:]) for first in reversed(range(len(parts)))]
    return next((end for end in ends if sum(f"/{name}".endswith(f"/{end}") for name in among) == 1), key)


def plain(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A function that shows lines; on a terminal it moves a bar by the steps that it reads in them."""
    if not sys.stderr.isatty():
        yield plain
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=None)

        def show(text: str) -> None:
            found = STEP.match(text)
            if found:
                bar.update(task, completed=int(found[1]), total=int(found[2]))
            bar.console.print(text, highlight=False, markup=False)

        yield show
