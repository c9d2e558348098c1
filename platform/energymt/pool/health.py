"""Signs of life of a replica."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Health:
    """What a replica says of itself."""

    number: int
    version: int
    process: int
    node: str
    served: int  # requests answered
    sentences: int  # scored
    flagged: int  # of them
    refused: int
    busy: int  # requests in the queue or computing
    queued: int  # sentences in the queue
    fill: float  # of the last batches' token budget, padding left out
    waits: tuple[float, ...]  # seconds in the queue of the last requests
    latencies: tuple[float, ...]  # seconds from arrival to reply
    last: dict[str, Any] = field(default_factory=dict)  # the step that its version came of
