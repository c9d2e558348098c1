"""What one trial of a sweep does, in a process that Tune started: it trains, reports dev values, leaves an outcome."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.tune

from energymt import runs
from energymt.cluster.launch import Workers, train_on_ray
from energymt.cluster.outcomes import DIVERGED, FINISHED, OUTCOME, read_outcome
from energymt.cluster.worker import Reporting
from energymt.errors import DivergenceError
from energymt.folders import write_atomically
from energymt.outcome import Outcome


@dataclass(frozen=True)
class TrialJob:
    """What all trials of a sweep share."""

    trainable: str
    metric: str
    folder: Path
    configs: dict[str, dict[str, Any]]  # by the name of a cell
    workers: Workers
    in_process: bool  # one worker on this machine: no Ray Train


def trial(values: dict[str, Any], job: TrialJob) -> None:
    """Train the cell that Tune names, or report what it came to before.

    A trial that diverges ends with its reason; any other error is Tune's to count.
    """
    folder = job.folder / values["cell"]
    folder.mkdir(parents=True, exist_ok=True)
    known = read_outcome(folder)
    if known is None:
        known = _train(folder, job.configs[values["cell"]], job)
        if known is None:
            return
        write_atomically(folder / OUTCOME, json.dumps(known, indent=1))
    ray.tune.report({job.metric: known["value"], "step": known["step"]})


def _train(folder: Path, settings: dict[str, Any], job: TrialJob) -> dict[str, Any] | None:
    module = runs.load_trainable(job.trainable)
    config = module.Config.model_validate(settings)
    try:
        if job.in_process:
            tracker = Reporting(ray.tune.report)
            outcome = Outcome.of(runs.train(job.trainable, config, folder, tracker, lambda text: None))
        else:
            from ray.tune.integration.ray_train import TuneReportCallback

            forward = TuneReportCallback()  # type: ignore[no-untyped-call]
            outcome = train_on_ray(job.trainable, config, folder, workers=job.workers, callbacks=[forward])
    except DivergenceError as error:
        return {"status": DIVERGED, "value": math.nan, "step": 0, "reason": str(error)}
    if outcome.interrupted:
        return None
    value = outcome.metrics.get(job.metric, outcome.best)
    return {"status": FINISHED, "value": value, "reason": "", **asdict(outcome)}
