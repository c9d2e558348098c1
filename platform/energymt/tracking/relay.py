"""Brings what workers wrote to the log of a run to the tracker of the driver: one writer, and no worker waits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from energymt.tracking import Tracker

Echo = Callable[[int, dict[str, float]], None]


class LogRelay:
    """Follows `log.jsonl`, one report a line: `step`, then values. Call it now and then; it never waits.

    The first `known` bytes are of an earlier start (None: all that is there now): they go to the tracker, which knows
    what it has, but are not echoed again.
    """

    def __init__(self, path: Path, tracker: Tracker, echo: Echo | None = None, known: int | None = None):
        self._path, self._tracker, self._echo = path, tracker, echo
        self._offset = 0
        self._known = size(path) if known is None else known

    def __call__(self) -> None:
        """Bring what is new."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
            self._offset += len(line)
            values = _values(line)
            step = int(values.pop("step", 0))
            if values:
                self._tracker.metrics(values, step)
            if values and self._echo is not None and self._offset > self._known:
                self._echo(step, values)


def size(path: Path) -> int:
    """Bytes of a file, 0 if there is none."""
    return path.stat().st_size if path.exists() else 0


def _values(line: bytes) -> dict[str, float]:
    """The numbers of a line; none of a line that a killed writer left in pieces."""
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return {name: float(value) for name, value in content.items()} if isinstance(content, dict) else {}
