"""A pool grows while requests wait too long, and gives back what it took when they have ended."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from energymt.models.estimator import QualityEstimator
from energymt.pool.settings import PoolConfig
from energymt.records import SoftTarget, Source
from tests import estimators
from tests.faults.pool_estimators import brake

pytestmark = pytest.mark.ray
NAME = "elastic"
IN_FLIGHT = 8  # requests, each a batch of its own
SLOW = 0.5  # seconds that one takes at a replica with a brake: the last of them waits for most of four
AIM, LINGER = 1.0, 4.0  # seconds


@pytest.fixture
def ask(local_ray: Path) -> Iterator[Callable[[], Any]]:
    """Send two sentences to a pool of one replica, or two."""
    from energymt.pool import lifecycle
    from energymt.pool.connection import Connection
    from energymt.pool.estimator import PooledEstimator

    config = PoolConfig(
        estimator="tests.faults.pool_estimators:braked",
        most_replicas=2,
        cpus=0.5,
        ping_seconds=0.5,
        aim_wait_ms=AIM * 1e3,
        linger_seconds=LINGER,
    )
    lifecycle.up(NAME, config, wait=180.0)
    local = estimators.estimator("kiwi")
    with Connection(NAME, deadline=120.0, attempt=60.0, alone=True) as connection:
        pooled = PooledEstimator(connection.client, local.table_VD, local.vocabulary)
        yield lambda: pooled.submit(*sentences(local))
    lifecycle.down(NAME)


def sentences(local: QualityEstimator) -> tuple[Source, SoftTarget]:
    return (
        estimators.source_of(local, estimators.SOURCES[:2]),
        estimators.target_of(local, estimators.TRANSLATIONS[:2]),
    )


def replicas() -> list[dict[str, Any]]:
    from energymt.pool import lifecycle

    return list(lifecycle.status(NAME)["replicas"])


def is_left(process: int) -> bool:
    """Whether it still runs after the moment that a killed one takes to go."""
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.wait_procs([psutil.Process(process)], timeout=10.0)[1])
    return False


def is_free(cpus: float) -> bool:
    """Whether so many CPUs come free: Ray hears of it a moment after the process is gone, or there."""
    until = time.monotonic() + 30.0
    while ray.available_resources().get("CPU", 0.0) != cpus and time.monotonic() < until:
        time.sleep(0.1)
    return bool(ray.available_resources().get("CPU", 0.0) == cpus)


def keep_asking(ask: Callable[[], Any], enough: Callable[[str], bool], seconds: float) -> bool:
    """Keep requests in flight until a reply is enough, by the name of its replica; whether one was in time."""
    local = estimators.estimator("kiwi")
    wanted_B = local(*sentences(local))
    tickets, until = deque(ask() for _ in range(IN_FLIGHT)), time.monotonic() + seconds
    found = False
    while tickets:
        ticket = tickets.popleft()
        torch.testing.assert_close(ticket.result(), wanted_B, rtol=0, atol=1e-5)
        found = found or enough(ticket.reply().replica)
        if not found and time.monotonic() < until:
            tickets.append(ask())
    return found


def test_a_pool_grows_and_shrinks_with_the_time_that_requests_wait(ask: Callable[[], Any]) -> None:
    [first] = replicas()
    assert not keep_asking(ask, lambda _: len(replicas()) > 1, 3.0), "it grew for requests that do not wait"
    free = ray.available_resources()["CPU"]

    brake(first["process"]).write_text(str(SLOW))
    assert keep_asking(ask, lambda replica: replica != "replica-0", 120.0), "no second replica has answered"
    stopped = time.monotonic()
    _, second = replicas()
    assert second["state"] == "healthy" and is_free(free - 0.5)

    while len(rows := replicas()) > 1:
        assert time.monotonic() < stopped + 40.0, f"it is still there: {rows}"
        time.sleep(0.1)
    assert time.monotonic() - stopped > LINGER - 1.0, "it was given back too soon"  # the last ping may be older
    assert [row["process"] for row in rows] == [first["process"]]
    assert not is_left(second["process"])
    assert is_free(free)
    brake(first["process"]).unlink()
    assert keep_asking(ask, lambda replica: replica == "replica-0", 20.0)
