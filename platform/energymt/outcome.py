"""What a run came to, in plain numbers that travel between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from energymt.training import Result

CHOICE = "dev/choice"  # beside the value that chose the checkpoint, the same by one name for every configuration


@dataclass(frozen=True)
class Outcome:
    """`metric` chose the checkpoint, `best` is its best value on dev, `metrics` are the dev values of the model."""

    step: int
    best: float | None
    best_step: int
    metrics: dict[str, float] = field(default_factory=dict)
    interrupted: bool = False
    metric: str = ""
    higher_is_better: bool = True

    @classmethod
    def of(cls, result: Result) -> Outcome:
        """Of a training in this process."""
        progress = result.progress
        return cls(
            progress.step,
            progress.best,
            progress.best_step,
            result.metrics,
            result.interrupted,
            result.metric,
            result.higher_is_better,
        )
