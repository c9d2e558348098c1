"""The Tune driver: every cell of a search space a trial, every trial a child run of one MLflow run.

    <runs>/sweeps/<name>/sweep.json      what is swept
    <runs>/sweeps/<name>/<cell>/         a run folder for each cell: config, log, checkpoints, model, outcome
    <runs>/sweeps/<name>/tune/           Tune's own state

Trials only write files; this process brings them to MLflow. A sweep that was stopped goes on by `--resume`: Tune's
trials where it left them, each training from its checkpoint, in the same MLflow run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from energymt import runs
from energymt.cluster.outcomes import UNFINISHED, Row, read_outcome, rows, table
from energymt.errors import INTERRUPTED, ConfigurationError
from energymt.folders import write_atomically
from energymt.launch import start_ray
from energymt.outcome import CHOICE
from energymt.search_space import Budget, Cell, cells, load_space
from energymt.storage import runs_root
from energymt.tracking import NO_TRACKING
from energymt.tracking.nested import NestedTracking

DESCRIPTION = "sweep.json"


@dataclass(frozen=True)
class SweepResult:
    """The rows, best first; `registered` says what became of the best model."""

    rows: list[Row]
    metric: str
    folder: Path
    registered: str = ""

    @property
    def interrupted(self) -> bool:
        """Whether `--resume` would go on."""
        return any(row.status == UNFINISHED for row in self.rows)


def run_sweep(
    space: str,
    settings: Sequence[str] = (),
    *,
    config: Path | None = None,
    name: str | None = None,
    resume: bool = False,
    tracking: str | None = None,
    register: str | None = None,
    echo: Callable[[str], None] = print,
) -> SweepResult:
    """Train every cell of a search space and rank them; `register` names the best one in the model registry.

    Raises ConfigurationError before anything starts if a cell is impossible, ResourceError if no trial fits.
    """
    if register and tracking == NO_TRACKING:
        raise ConfigurationError("--register needs a store to register in; leave out --tracking none.")
    module = load_space(space)
    plan = cells(module, config, settings)
    name = name or space.rsplit(".", 1)[-1]
    folder = runs_root() / "sweeps" / name
    with runs.owned(folder):
        _describe(folder, module, plan, resume)
        start_ray(cell.config for cell in plan)
        from energymt.cluster.tuning import tune_cells

        with NestedTracking(name, folder, module, plan, tracking, echo) as nested:
            ended = tune_cells(module, plan, folder, resume, echo)
            found = rows(plan, folder, module.METRIC, module.MODE, ended)
            nested.end(found)
        registered = _register(found, module, register, tracking) if register else ""
    return SweepResult(found, module.METRIC, folder, registered)


def command(
    space: str,
    *,
    config: Path | None = None,
    settings: Sequence[str] = (),
    name: str | None = None,
    resume: bool = False,
    dry_run: bool = False,
    tracking: str | None = None,
    register: str | None = None,
    echo: Callable[[str], None] = print,
) -> int:
    """`energymt sweep`: returns the exit code."""
    if dry_run:
        echo(describe(space, config, settings))
        return 0
    result = run_sweep(
        space, settings, config=config, name=name, resume=resume, tracking=tracking, register=register, echo=echo
    )
    echo(table(result.rows, result.metric))
    if result.interrupted:
        echo(f"Some trials are unfinished; --resume goes on with them. Everything lies in {result.folder}.")
        return INTERRUPTED
    echo(" ".join([result.registered, f"Everything lies in {result.folder}."]).strip())
    return 0 if any(math.isfinite(row.value) for row in result.rows) else 1


def describe(space: str, config: Path | None = None, settings: Sequence[str] = ()) -> str:
    """What a sweep would do: every cell, checked, and what one trial takes; nothing is started."""
    module = load_space(space)
    plan = cells(module, config, settings)
    budget: Budget = module.BUDGET
    lines = [
        f"{len(plan)} trials of {module.TRAINABLE}, {plan[0].config.steps} steps each",
        f"ranked by {module.METRIC} ({module.MODE})",
        f"scheduler {budget.scheduler}; a trial is {budget.workers} worker(s) of {budget.cpus_per_worker:g} CPU and "
        f"{budget.gpus_per_worker:g} GPU",
    ]
    return "\n".join([*lines, *(f"  {cell.name}" for cell in plan)])


def _register(found: list[Row], module: Any, name: str, tracking: str | None) -> str:
    """Register the best cell that has a model; says what became of it."""
    from energymt.tracking.outbox import run_id_of
    from energymt.tracking.registry import register_model

    best = next((row for row in found if math.isfinite(row.value) and (row.folder / runs.MODEL).is_dir()), None)
    if best is None:
        return "No trial left a model to register."
    outcome = read_outcome(best.folder)
    metric = outcome["metric"] if outcome is not None and module.METRIC == CHOICE else module.METRIC
    version = register_model(
        best.folder / runs.MODEL,
        name,
        metric=metric,
        value=best.value,
        mode=module.MODE,
        run_id=run_id_of(best.folder),
        uri=tracking,
        tags={"sweep": best.folder.parent.name, "cell": best.cell},
    )
    return (
        f"{best.cell} is registered as {version.address}{' (champion)' if version.champion else ''}: {version.reason}."
    )


def _describe(folder: Path, module: Any, plan: list[Cell], resume: bool) -> None:
    """Write down what is swept; going on with another space or configuration is refused."""
    path = folder / DESCRIPTION
    now = {
        "trainable": module.TRAINABLE,
        "metric": module.METRIC,
        "mode": module.MODE,
        "cells": {cell.name: cell.config.model_dump(mode="json") for cell in plan},
    }
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if before is not None and not resume:
        raise ConfigurationError(f"There is a sweep in {folder}: go on with it by --resume, or choose another --name.")
    if before is not None and before != json.loads(json.dumps(now)):
        raise ConfigurationError(f"The sweep in {folder} has other cells or settings; choose another --name.")
    write_atomically(path, json.dumps(now, indent=1))
