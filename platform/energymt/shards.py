"""Work on numbered items that is done once: in shards, each whole or not there, shared by whoever asks for them.

A killed run goes on with the next missing shard; several processes, the workers of a training say, each take the next
that nobody works on. Nothing waits for a process that died: the system frees its claim.
"""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from energymt.folders import write_atomically

SHARD = 1000  # items: what a killed process loses at most
_pretended: ContextVar[list[str] | None] = ContextVar("pretended", default=None)


@contextmanager
def pretending() -> Iterator[list[str]]:
    """Inside the block nothing is translated (`--dry-run`): the list says what would be written, and where."""
    notes: list[str] = []
    token = _pretended.set(notes)
    try:
        yield notes
    finally:
        _pretended.reset(token)


def pretended() -> list[str] | None:
    """The list of the block that is `pretending`; None outside of one."""
    return _pretended.get()


def in_shards(folder: Path, count: int, compute: Callable[[range], Sequence[Any]]) -> list[Any]:
    """What `compute` gives for each of `count` items, JSON values, in their order; only missing shards are computed.

    Args:
        folder: of this work alone: a function of everything that the values depend on.
        count: items.
        compute: one value for each item of a range.

    Raises:
        StorageError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [range(start, min(start + SHARD, count)) for start in range(0, count, SHARD)]
    found = [_read(folder, part) for part in parts]
    while None in found:
        for number, part in enumerate(parts):
            if found[number] is not None:
                continue
            with claimed(folder / f"shard-{part.start:09d}.lock") as mine:
                found[number] = _read(folder, part)  # another process may have just written it
                if mine and found[number] is None:
                    values = compute(part)
                    assert len(values) == len(part)
                    write_atomically(_file(folder, part), "".join(json.dumps(value) + "\n" for value in values))
                    found[number] = _read(folder, part)
        if None in found:  # another process is at work on them
            time.sleep(0.5)
    return [value for values in found for value in values or ()]


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """True if this process has the lock; the system frees it when the process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _read(folder: Path, part: range) -> list[Any] | None:
    """The values of a shard; None where it is not there, or not whole: a machine that lost its power may cut a file."""
    try:
        text = _file(folder, part).read_text(encoding="utf-8")
        values = [json.loads(line) for line in text.splitlines()]
    except (FileNotFoundError, ValueError):
        return None
    # A number that lost its last digits is a number still; then the end of the line is lost, too.
    return values if len(values) == len(part) and text.endswith("\n") else None


def _file(folder: Path, part: range) -> Path:
    return folder / f"shard-{part.start:09d}.jsonl"
