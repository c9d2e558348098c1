"""A sweep inside Tune: how many trials at once, what each takes, which end early, and how it goes on after a stop."""

from __future__ import annotations

import logging
import math
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
import ray.tune.schedulers
from ray import tune

from energymt.cluster import runtime
from energymt.cluster.launch import Workers
from energymt.cluster.preflight import concurrent_trials
from energymt.cluster.trial import TrialJob, trial
from energymt.errors import ResourceError
from energymt.search_space import Budget, Cell

TUNE = "tune"
# A trial that trains in Ray Train is only a driver: it takes no CPU, but Tune wants it to take something. The head node
# of cluster.yaml offers drivers; every other head node has the second one.
DRIVER, HEAD = "driver", "node:__internal_head__"


def tune_cells(
    space: types.ModuleType, plan: list[Cell], folder: Path, resume: bool, echo: Callable[[str], None]
) -> dict[str, str]:
    """Run Tune to its end; returns the cells that Tune ended: their error, or an empty word.

    Raises ResourceError if no trial fits into the cluster, before any is started.
    """
    budget: Budget = space.BUDGET
    workers = Workers(budget.workers, budget.cpus_per_worker, budget.gpus_per_worker)
    in_process = runtime.is_local() and budget.workers == 1
    cluster = ray.cluster_resources()  # type: ignore[no-untyped-call]
    limit = min(concurrent_trials(cluster, workers.together()), budget.at_once or len(plan), len(plan))
    echo(f"{len(plan)} trials, {limit} at a time; each takes {workers.together()} of {_known(cluster)}.")
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the result files that nobody reads here
    own: dict[str, float] = workers.each() if in_process else {DRIVER: 1} if DRIVER in cluster else {HEAD: 0.001}
    configs = {cell.name: cell.config.model_dump(mode="json") for cell in plan}
    job = TrialJob(space.TRAINABLE, space.METRIC, folder, configs, workers, in_process)
    trainable = tune.with_resources(tune.with_parameters(trial, job=job), own)
    points = {"cell": tune.grid_search([cell.name for cell in plan])}
    state = str(folder / TUNE)
    if resume and tune.Tuner.can_restore(state):
        tuner = tune.Tuner.restore(state, trainable=trainable, resume_errored=True, param_space=points)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=points,
            tune_config=tune.TuneConfig(
                metric=space.METRIC,
                mode=space.MODE,
                scheduler=_scheduler(budget, plan),
                max_concurrent_trials=limit,
                reuse_actors=in_process,  # the next trial of a process need not import torch again
            ),
            run_config=tune.RunConfig(
                name=TUNE,
                storage_path=str(folder),
                stop=_NotFinite(space.METRIC),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=1),
            ),
        )
    try:
        results = tuner.fit()
    except (tune.TuneError, ray.exceptions.RayError) as error:
        raise ResourceError(f"The sweep in {folder} broke off ({error}); --resume goes on with it.") from error
    return {
        result.config["cell"]: str(result.error).strip().splitlines()[-1] if result.error is not None else ""
        for result in (results[index] for index in range(len(results)))
        if result.config and (result.error is not None or (result.metrics or {}).get("done"))
    }


def _scheduler(budget: Budget, plan: list[Cell]) -> Any:
    if budget.scheduler == "fifo":
        return tune.schedulers.FIFOScheduler()  # type: ignore[no-untyped-call]
    most = max(cell.config.steps for cell in plan)
    # One more than the steps: at its limit ASHA ends a trial, and the best ones must come to save their models.
    return tune.schedulers.ASHAScheduler(
        time_attr="step", max_t=most + 1, grace_period=budget.grace_steps, reduction_factor=budget.reduction
    )


def _known(resources: dict[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in resources.items() if name in ("CPU", "GPU", DRIVER)}


class _NotFinite:
    """Ends a trial whose metric is no number: the scheduler would only ignore it."""

    def __init__(self, metric: str):
        self.metric = metric

    def __call__(self, trial_id: str, result: Mapping[Any, Any]) -> bool:
        return not math.isfinite(result.get(self.metric, 0.0))
