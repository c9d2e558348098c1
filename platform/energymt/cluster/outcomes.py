"""What the trials of a sweep came to, read from their folders."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energymt import runs
from energymt.search_space import Cell

OUTCOME = "outcome.json"
FINISHED, DIVERGED, STOPPED, FAILED, UNFINISHED = "finished", "diverged", "stopped early", "failed", "unfinished"


@dataclass(frozen=True)
class Row:
    """What one cell came to; `value` is its best so far, NaN if it has none."""

    cell: str
    values: dict[str, Any]
    status: str
    step: int
    value: float
    folder: Path
    reason: str = ""


def rows(plan: list[Cell], folder: Path, metric: str, mode: str, ended: Mapping[str, str]) -> list[Row]:
    """One row a cell, best first; `ended` holds the cells that Tune ended and their errors."""
    sign = 1 if mode == "min" else -1
    found = [_row(cell, folder / cell.name, metric, sign, ended) for cell in plan]
    return sorted(found, key=lambda row: sign * row.value if math.isfinite(row.value) else math.inf)


def _row(cell: Cell, folder: Path, metric: str, sign: int, ended: Mapping[str, str]) -> Row:
    outcome = read_outcome(folder)
    if outcome is not None:
        value = math.nan if outcome["value"] is None else outcome["value"]
        return Row(cell.name, cell.values, outcome["status"], outcome["step"], value, folder, outcome["reason"])
    step, value = _best_in_log(folder / runs.LOG, metric, sign)
    if cell.name not in ended:
        return Row(cell.name, cell.values, UNFINISHED, step, value, folder)
    error = ended[cell.name]
    return Row(cell.name, cell.values, FAILED if error else STOPPED, step, value, folder, error)


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """What a trial came to: status, value, step, reason; None if it has not ended."""
    path = folder / OUTCOME
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _best_in_log(path: Path, metric: str, sign: int) -> tuple[int, float]:
    if not path.is_file():
        return 0, math.nan
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    values = [line[metric] for line in lines if math.isfinite(line.get(metric, math.nan))]
    best = min(values, key=lambda value: sign * value, default=math.nan)
    return max((int(line["step"]) for line in lines), default=0), best


def table(found: list[Row], metric: str) -> str:
    """The rows for a terminal."""
    keys = list(found[0].values)
    head = [*keys, metric, "step", "status"]
    body = [[*(str(row.values[key]) for key in keys), f"{row.value:.4g}", str(row.step), row.status] for row in found]
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in [head, *body])
