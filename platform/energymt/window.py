"""What a run reports between two lines of its log."""

from __future__ import annotations

import statistics
import time

NORM = "train/norm_"  # of the norms of a mixture's parts


class Window:
    """Means of the values since the last line of the log, and target tokens a second.

    Of the norm of each part's gradient also the standard deviation over the steps (`..._spread`), divided by the mean.
    """

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.seconds = 0.0
        self.mark = time.perf_counter()

    def add(self, values: dict[str, float]) -> None:
        """One optimizer step."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        passed, self.mark = now - self.mark, now
        self.seconds += passed
        return passed

    def means(self) -> dict[str, float]:
        """Means, then start again."""
        tokens = sum(self.values.pop("time/tokens", []))
        means = {name: sum(values) / len(values) for name, values in self.values.items()}
        for name, values in self.values.items():
            if name.startswith(NORM) and len(values) > 1 and means[name] > 0:
                means[f"{name}_spread"] = statistics.stdev(values) / means[name]
        means["time/tokens_per_s"] = tokens / max(self.seconds, 1e-9)
        self.values, self.seconds = {}, 0.0
        return means
