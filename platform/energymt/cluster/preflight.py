"""Arithmetic before a sweep starts: how many trials fit at once, or a sentence with the numbers if none does."""

from __future__ import annotations

import math
from collections.abc import Mapping

from energymt.errors import ResourceError


def concurrent_trials(
    cluster: Mapping[str, float],
    per_trial: Mapping[str, float],
    *,
    pool: Mapping[str, float] | None = None,
    reserve: Mapping[str, float] | None = None,
) -> int:
    """How many trials fit at once: the least floor((cluster − pool − reserve) / per trial) over all resources.

    Resources are Ray's: CPU and GPU in devices, others by their own name. Raises ResourceError if no trial fits.
    """
    pool, reserve = pool or {}, reserve or {}
    needed = {name: amount for name, amount in per_trial.items() if amount > 0}
    if not needed:
        raise ResourceError("A trial must ask for at least one resource (CPU, GPU or another); it asks for none.")
    limit = math.inf
    for name, amount in needed.items():
        total, taken, kept = cluster.get(name, 0.0), pool.get(name, 0.0), reserve.get(name, 0.0)
        fits = math.floor((total - taken - kept) / amount + 1e-9)
        if fits < 1:
            raise ResourceError(
                f"No trial fits: each needs {amount:g} {name}, and of {total:g} in the cluster the energy pool holds "
                f"{taken:g} and {kept:g} are reserved, so {total - taken - kept:g} are left. "
                "Ask for less per trial, make the pool smaller, or add a node."
            )
        limit = min(limit, fits)
    return int(limit)


def worker_bundle(workers: int, cpus_per_worker: float = 1.0, gpus_per_worker: float = 0.0) -> dict[str, float]:
    """What a training run of so many workers takes from the cluster; its driver takes nothing."""
    bundle = {"CPU": workers * cpus_per_worker}
    return bundle | ({"GPU": workers * gpus_per_worker} if gpus_per_worker > 0 else {})
