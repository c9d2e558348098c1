"""Replicas, supervisor and callers of a pool are killed, frozen and slowed: nothing wrong comes back, nothing hangs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from energymt.errors import EnergyUnavailable
from energymt.models.estimator import QualityEstimator
from energymt.pool import shared
from energymt.pool.settings import PoolConfig
from energymt.records import SoftTarget, Source
from tests import estimators
from tests.clusters import ROOT
from tests.faults.pool_estimators import brake

pytestmark = pytest.mark.faults
NAME = "hit"


@pytest.fixture(scope="module")
def pool(cluster: Path) -> Iterator[None]:
    """Two replicas with brakes."""
    from energymt.pool import lifecycle

    config = PoolConfig(
        estimator="tests.faults.pool_estimators:braked", replicas=2, cpus=0.5, ping_seconds=1.0, lease_seconds=4.0
    )
    lifecycle.up(NAME, config, wait=180.0)
    yield
    lifecycle.down(NAME)


@pytest.fixture(autouse=True)
def smallest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings go through shared memory, small as they are here; "wire": none do."""
    monkeypatch.setattr(shared, "SMALLEST", 1 << 40 if getattr(request, "param", "") == "wire" else 1)


both_ways = pytest.mark.parametrize("smallest", ["memory", "wire"], indirect=True)


@pytest.fixture
def connection(pool: None) -> Iterator[Any]:
    """A caller; both replicas are healthy before, and have served."""
    from energymt.pool.connection import Connection
    from energymt.pool.estimator import PooledEstimator

    settled()
    with Connection(NAME, deadline=90.0, attempt=2.0, alone=True) as each:
        local = model()
        pooled = PooledEstimator(each.client, local.table_VD, local.vocabulary)
        for _ in range(2):  # who is killed before it has ever answered has failed to start, and is given up at last
            require_right(pooled.submit(*sentences(local)))
    wait_for(lambda: all(row["served"] for row in replicas()), "both have served")
    with Connection(NAME, deadline=90.0, attempt=2.0) as opened:
        yield opened
    for file in brake(0).parent.glob("brake-*"):
        file.unlink()


@pytest.fixture
def ask(connection: Any) -> Callable[[], Any]:
    """Send five sentences."""
    from energymt.pool.estimator import PooledEstimator

    local = model()
    pooled = PooledEstimator(connection.client, local.table_VD, local.vocabulary)
    return lambda: pooled.submit(*sentences(local))


def model() -> QualityEstimator:
    return estimators.estimator("kiwi")


def sentences(local: QualityEstimator) -> tuple[Source, SoftTarget]:
    target = estimators.target_of(local, estimators.TRANSLATIONS)
    emb_BTD = target.emb_BTD.clone().requires_grad_()
    return estimators.source_of(local, estimators.SOURCES), replace(target, ids_BT=None, emb_BTD=emb_BTD)


def require_right(ticket: Any) -> None:
    """Scores and gradient of the answer are the local ones."""
    local = model()
    source, target = sentences(local)
    wanted = local(source, target)
    wanted.sum().backward()
    found = ticket.result()
    found.sum().backward()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(ticket.target.emb_BTD.grad, target.emb_BTD.grad, rtol=0, atol=1e-5)


def replicas() -> list[dict[str, Any]]:
    from energymt.pool import lifecycle

    return list(lifecycle.status(NAME)["replicas"])


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what}: {replicas()}"
        time.sleep(0.2)


def settled() -> None:
    """Both replicas serve."""
    wait_for(
        lambda: [row["state"] for row in replicas()].count("healthy") == 2 and all("process" in r for r in replicas()),
        "two healthy replicas",
    )


def processes() -> list[int]:
    return [row["process"] for row in replicas()]


def is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def test_killed_while_idle(ask: Any) -> None:
    victim, other = processes()
    os.kill(victim, signal.SIGKILL)
    for _ in range(6):
        require_right(ask())
    settled()
    assert victim not in processes()
    assert other in processes()
    assert sum(row["restarts"] for row in replicas()) == 1


@both_ways
def test_killed_while_serving(ask: Any) -> None:
    for process in processes():
        brake(process).write_text("1.5")
    ticket = ask()
    [serving] = ticket.ticket.running
    victim = next(row["process"] for row in replicas() if row["number"] == serving)
    os.kill(victim, signal.SIGKILL)
    require_right(ticket)


def test_all_killed(ask: Any, connection: Any) -> None:
    for process in processes():
        os.kill(process, signal.SIGKILL)
    connection.client.deadline = 1.0
    with pytest.raises(EnergyUnavailable, match=r"no replica that could answer for 1 s.*`energymt pool up EST"):
        ask().result()
    connection.client.deadline = 120.0
    require_right(ask())


@both_ways
def test_frozen(ask: Any) -> None:
    victim, other = processes()
    os.kill(victim, signal.SIGSTOP)
    for _ in range(4):
        require_right(ask())
    wait_for(lambda: is_gone(victim), "the frozen process is ended")
    settled()
    assert other in processes()


@both_ways
def test_slow(ask: Any) -> None:
    victim, other = processes()
    brake(victim).write_text("6")
    for _ in range(4):
        ticket = ask()
        require_right(ticket)
        assert ticket.reply().computed < 5.0
    assert other in processes()


def test_a_caller_is_killed(ask: Any) -> None:
    import ray

    for process in processes():
        brake(process).write_text("1")
    command = [sys.executable, "-m", "tests.faults.pool_caller", ray.get_runtime_context().gcs_address]
    caller = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    assert caller.stdout.readline().strip() == "sent"
    from energymt.pool import lifecycle

    wait_for(lambda: len(lifecycle.status(NAME)["leases"]) == 2, "the caller has its lease")
    wait_for(lambda: sum(row["queued"] for row in replicas()) > 20, "its requests wait", 10.0)
    caller.kill()
    caller.wait()
    wait_for(lambda: len(lifecycle.status(NAME)["leases"]) == 1, "the lease of the dead returns", 30.0)
    wait_for(lambda: sum(row["queued"] for row in replicas()) == 0, "its requests return", 10.0)


def test_the_supervisor_is_killed(ask: Any) -> None:
    import ray

    from energymt.pool import actors

    before = processes()
    ray.kill(actors.find(actors.supervisor_name(NAME)), no_restart=False)
    for _ in range(3):
        require_right(ask())
    settled()
    assert sorted(processes()) == sorted(before)


def test_the_supervisor_is_frozen(ask: Any, connection: Any) -> None:
    """Callers go on with the replicas that they know; one that knows none is told so at its deadline."""
    from energymt.pool.connection import VIEW_SECONDS, Connection
    from energymt.pool.estimator import PooledEstimator

    processes = psutil.Process().children(recursive=True)
    [supervisor] = [each for each in processes if "ray::Supervisor" in " ".join(each.cmdline())]
    require_right(ask())
    local = model()
    with Connection(NAME, deadline=3.0) as stranger, ThreadPoolExecutor() as threads:
        pooled = PooledEstimator(stranger.client, local.table_VD, local.vocabulary)
        supervisor.suspend()
        try:
            time.sleep(VIEW_SECONDS + 0.5)  # what the caller knows is too old by now
            connection.client.deadline = 8.0
            tickets = [ask() for _ in range(4)]
            told = threads.submit(lambda: pooled.submit(*sentences(local)).result())
            for ticket in tickets:
                require_right(ticket)
            with pytest.raises(EnergyUnavailable, match=r"for 3 s \(its supervisor does not answer\)"):
                told.result(9.0)
        finally:
            supervisor.resume()
    settled()
