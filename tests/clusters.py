"""A Ray of a test module alone, and pools in it: trainings, pools and workers live together there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from energymt.cluster import runtime
from energymt.pool.settings import PoolConfig

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def wide_ray(runs: Path) -> Iterator[Path]:
    """A Ray that counts four CPUs; gives the folder of its runs."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENERGYMT_RUNS", str(runs))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_worker_niceness", "0")  # workers would give way to anything else on a busy machine
        runtime.start("local", num_cpus=4, object_store_memory=150_000_000)
        yield runs
        ray.shutdown()


@contextmanager
def two_pools(world: Path) -> Iterator[None]:
    """`default` is static and has two replicas; the one of `school` learns: two would add up in another order."""
    from energymt.pool import lifecycle

    shared: dict[str, Any] = {"estimator": str(world / "estimator"), "cpus": 0.25, "ping_seconds": 0.5}
    lifecycle.up("default", PoolConfig(**shared, replicas=2), wait=240.0)
    lifecycle.up("school", PoolConfig(**shared, learns="head"), wait=240.0)
    yield
    for name in ("default", "school"):
        lifecycle.down(name)
