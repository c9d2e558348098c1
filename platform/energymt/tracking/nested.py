"""A sweep in MLflow: one parent run and a child run for each trial, all written by this one process."""

from __future__ import annotations

import math
import threading
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from energymt import console, runs
from energymt.cluster.outcomes import FAILED, UNFINISHED, Row
from energymt.search_space import Cell
from energymt.tracking import NO_TRACKING, NullTracker, Tracker, tracking_uri
from energymt.tracking.relay import LogRelay, size

EXPERIMENT = "energymt"
POLL_SECONDS = 1.0
FLUSH_SECONDS = 60.0


class NestedTracking(AbstractContextManager["NestedTracking"]):
    """Follows the logs of the cells from a thread; a cell's run is opened when its log begins, and goes on later."""

    def __init__(
        self,
        name: str,
        folder: Path,
        space: types.ModuleType,
        plan: list[Cell],
        uri: str | None,
        echo: Callable[[str], None],
    ):
        self._name, self._folder, self._space, self._plan = name, folder, space, plan
        self._uri, self._echo = uri, echo
        self._known = {cell.name: size(folder / cell.name / runs.LOG) for cell in plan}
        self._open: dict[str, tuple[Tracker, LogRelay]] = {}
        self._parent = self._tracker(name, folder, None)
        self._parent.tags({"kind": "sweep", "space": space.__name__, "metric": space.METRIC, "mode": space.MODE})
        self._parent.params({"trainable": space.TRAINABLE, "cells": len(plan), **vars(space.BUDGET)})
        self._polling = threading.Lock()  # `end` polls while the thread may: a cell must not be opened twice
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="sweep-tracking", daemon=True)

    def __enter__(self) -> NestedTracking:
        """Start to follow."""
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        """Bring what is left and close every run, within a bound."""
        self._stop.set()
        self._thread.join()
        self._poll()
        for tracker in [*(tracker for tracker, _ in self._open.values()), self._parent]:
            left = self._close(tracker)
            if left:
                self._echo(left)

    def end(self, rows: list[Row]) -> None:
        """Say in MLflow what each cell came to."""
        self._poll()
        for row in rows:
            if row.cell in self._open:
                tracker = self._open[row.cell][0]
                tracker.tags({"outcome": row.status, **({"reason": row.reason} if row.reason else {})})
                self._end(tracker, _status(row.status))
        best = rows[0]
        if math.isfinite(best.value):
            self._parent.tags({"best": best.cell})
            self._parent.metrics({f"best/{self._space.METRIC}": best.value}, max(row.step for row in rows))
        self._end(self._parent, "KILLED" if any(row.status == UNFINISHED for row in rows) else "FINISHED")

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._poll()

    def _poll(self) -> None:
        with self._polling:
            for cell in self._plan:
                folder = self._folder / cell.name
                if cell.name not in self._open and (folder / runs.LOG).exists():
                    self._open[cell.name] = self._begin(cell, folder)
                if cell.name in self._open:
                    self._open[cell.name][1]()

    def _begin(self, cell: Cell, folder: Path) -> tuple[Tracker, LogRelay]:
        tracker = self._tracker(cell.name, folder, self._folder)
        if not isinstance(tracker, NullTracker):
            from energymt.tracking.provenance import describe_run

            describe_run(tracker, self._space.TRAINABLE, cell.config.model_dump(mode="json"), folder)
            tracker.tags({"sweep": self._name, **{f"cell.{key}": str(value) for key, value in cell.values.items()}})

        def echo(step: int, values: dict[str, float]) -> None:
            if self._space.METRIC in values:
                self._echo(f"{cell.name}  {console.line(step, cell.config.steps, values)}")

        return tracker, LogRelay(folder / runs.LOG, tracker, echo, self._known[cell.name])

    def _tracker(self, name: str, folder: Path, parent: Path | None) -> Tracker:
        if self._uri == NO_TRACKING:
            return NullTracker()
        from energymt.tracking.mlflow import MlflowTracker

        return MlflowTracker(tracking_uri(self._uri), EXPERIMENT, name, folder, parent=parent)

    def _end(self, tracker: Tracker, status: str) -> None:
        if not isinstance(tracker, NullTracker):
            tracker.end(status)  # type: ignore[attr-defined]

    def _close(self, tracker: Tracker) -> str:
        return "" if isinstance(tracker, NullTracker) else str(tracker.close(FLUSH_SECONDS))  # type: ignore[attr-defined]


def _status(outcome: str) -> str:
    return {FAILED: "FAILED", UNFINISHED: "KILLED"}.get(outcome, "FINISHED")
