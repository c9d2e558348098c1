"""The queue of a replica: what is computed together, and when. No clock and no Ray in here; time is an argument.

A batch holds requests of one kind (with or without gradient, one precision), starts with the one that has waited
longest, and takes others of like length until the budget of padded tokens is full. It goes out when it is full, when
every caller that was heard of lately has a request in the queue, when its first request has waited `wait` seconds, or
when half of the time that some caller gives is over. What is past its deadline is handed back, and never computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from energymt.pool.wire import Request

HEARD = 10.0  # seconds for which a request of somebody who asked is to be expected


@dataclass(eq=False)
class Entry:
    """A request in the queue."""

    request: Request
    arrived: float

    @property
    def deadline(self) -> float:
        """When the caller has given up."""
        return self.arrived + self.request.seconds

    @property
    def kind(self) -> tuple[bool, str]:
        """What can be computed together."""
        return self.request.gradient, self.request.precision

    @cached_property
    def longest(self) -> int:
        """Positions of the longest sentence, at least 1."""
        return int(self.request.lengths.max(initial=1))


class Batcher:
    """A bounded queue that forms batches.

    Args:
        tokens: most padded positions of a batch; a single request may have more.
        wait: most seconds that a request waits for others.
        room: most sentences in the queue; a request without sentences takes the room of one.
    """

    def __init__(self, tokens: int, wait: float, room: int) -> None:
        self.tokens, self.wait, self.room = tokens, wait, room
        self.entries: list[Entry] = []
        self.heard: dict[str, float] = {}  # of each caller, when it asked last

    def __len__(self) -> int:
        """Sentences in the queue."""
        return sum(_room(entry) for entry in self.entries)

    def add(self, entry: Entry) -> bool:
        """Queue a request; False if there is no room for it (an empty queue has room for anything)."""
        self.heard[entry.request.client] = entry.arrived
        if self.entries and len(self) + _room(entry) > self.room:
            return False
        self.entries.append(entry)
        return True

    def drop(self, unwanted: Callable[[Entry], bool]) -> list[Entry]:
        """Take out what is unwanted."""
        dropped = [entry for entry in self.entries if unwanted(entry)]
        self._remove(dropped)
        return dropped

    def late(self, now: float) -> list[Entry]:
        """Take out what is past its deadline."""
        return self.drop(lambda entry: now >= entry.deadline)

    def due(self, now: float) -> float | None:
        """Seconds until a batch must go out, 0 if it can gain nothing by waiting; None with an empty queue."""
        if not self.entries:
            return None
        if self._fill()[1] or self._all_here(now):
            return 0.0
        latest = min(entry.arrived + min(self.wait, entry.request.seconds / 2) for entry in self.entries)
        return max(0.0, latest - now)

    def take(self) -> list[Entry]:
        """The next batch, out of the queue."""
        chosen, _ = self._fill()
        self._remove(chosen)
        return chosen

    def _all_here(self, now: float) -> bool:
        """Whether nobody is expected: one caller alone need not wait for others."""
        self.heard = {caller: asked for caller, asked in self.heard.items() if now - asked < HEARD}
        return self.heard.keys() <= {entry.request.client for entry in self.entries}

    def _fill(self) -> tuple[list[Entry], bool]:
        """The batch that starts with the oldest request, and whether nothing more would fit."""
        first = self.entries[0]
        if first.request.alone:
            return [first], True
        others = [entry for entry in self.entries[1:] if entry.kind == first.kind and not entry.request.alone]
        others.sort(key=lambda entry: abs(entry.longest - first.longest))  # stable: of equals, the oldest
        chosen, longest, sentences = [first], first.longest, len(first.request)
        for entry in others:
            wide, rows = max(longest, entry.longest), sentences + len(entry.request)
            if wide * rows > self.tokens:
                return chosen, True
            chosen.append(entry)
            longest, sentences = wide, rows
        return chosen, longest * (sentences + 1) > self.tokens

    def _remove(self, entries: list[Entry]) -> None:
        gone = set(entries)
        self.entries = [entry for entry in self.entries if entry not in gone]


def _room(entry: Entry) -> int:
    return max(1, len(entry.request))
