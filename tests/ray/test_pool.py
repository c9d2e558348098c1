"""The pool in Ray: as the local estimator, with one replica and three; found, looked at, ended without a trace."""

import math
import pickle
import re
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from energymt.errors import ConfigurationError, EnergyUnavailable, ResourceError, StorageError
from energymt.models.estimator import QualityEstimator
from energymt.pool import shared
from energymt.pool.estimator import ScoreTicket
from energymt.pool.settings import PoolConfig
from energymt.pool.telemetry import WORDS
from energymt.records import SoftTarget, Source
from tests import estimators

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def pool(local_ray: Path) -> Iterator[Any]:
    """`pool(replicas)` brings a pool up; all end."""
    from energymt.pool import lifecycle

    started = []

    def up(name: str, **settings: Any) -> dict[str, Any]:
        config = PoolConfig(
            **{"estimator": str(estimators.converted("kiwi")), "cpus": 0.15, "ping_seconds": 0.5, **settings}
        )
        found = lifecycle.up(name, config, wait=240.0)
        started.append(name)
        return found

    yield up
    for name in set(started) & set(lifecycle.names()):
        lifecycle.down(name)


@pytest.fixture(scope="module")
def local() -> QualityEstimator:
    return estimators.estimator("kiwi")


@pytest.fixture
def sentences(local: QualityEstimator) -> tuple[Source, SoftTarget]:
    """Five sentences of different lengths; the translations are mixtures of embeddings."""
    target = estimators.target_of(local, estimators.TRANSLATIONS)
    torch.manual_seed(1)
    mixed = target.emb_BTD + 0.1 * torch.randn_like(target.emb_BTD)
    return estimators.source_of(local, estimators.SOURCES), replace(target, ids_BT=None, emb_BTD=mixed)


def scored(estimator: Any, source: Source, target: SoftTarget) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, and the gradient of a weighted sum of them."""
    emb_BTD = target.emb_BTD.clone().requires_grad_()
    score_B = estimator(source, replace(target, emb_BTD=emb_BTD))
    (score_B * torch.arange(1.0, len(score_B) + 1)).sum().backward()
    assert emb_BTD.grad is not None
    return score_B.detach(), emb_BTD.grad


@pytest.mark.parametrize("replicas", [1, 3])
@pytest.mark.parametrize("smallest", [1, 1 << 40], ids=["memory", "wire"])
def test_pooled_is_local(
    smallest: int, replicas: int, pool: Any, local: QualityEstimator, sentences: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from energymt.pool.connection import Connection
    from energymt.pool.estimator import PooledEstimator

    monkeypatch.setattr(shared, "SMALLEST", smallest)
    found = pool(f"of-{replicas}", replicas=replicas)  # up already the second time
    assert [row["state"] for row in found["replicas"]] == ["healthy"] * replicas
    wanted = scored(local, *sentences)
    with Connection(f"of-{replicas}", alone=True) as connection:
        pooled = PooledEstimator(connection.client, local.table_VD, local.vocabulary)
        for _ in range(2 * replicas):
            for one, other in zip(scored(pooled, *sentences), wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
        replies = [pooled.submit(*sentences).reply() for _ in range(2 * replicas)]
    assert len({reply.replica for reply in replies}) == replicas
    assert all(reply.gradient is None and not reply.flags for reply in replies)


@pytest.mark.parametrize("alone", [False, True])
def test_dynamic_batches_of_several_callers(alone: bool, pool: Any, local: QualityEstimator, sentences: Any) -> None:
    """Three callers whose requests are one batch, and batches of their own where each is to be alone."""
    from energymt.pool.connection import Connection
    from energymt.pool.estimator import PooledEstimator

    pool("batched", wait_ms=5000.0)
    source, target = sentences
    parts = [torch.tensor(rows) for rows in ([0, 1], [2], [3, 4])]
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection("batched", alone=alone)) for _ in parts]
        callers = [PooledEstimator(c.client, local.table_VD, local.vocabulary) for c in connections]

        def asked() -> tuple[list[torch.Tensor], list[ScoreTicket]]:
            embs = [target.emb_BTD[rows].clone().requires_grad_() for rows in parts]
            softs = [SoftTarget(None, emb, target.mask_BT[rows]) for emb, rows in zip(embs, parts, strict=True)]
            pieces = zip(callers, parts, softs, strict=True)
            return embs, [caller.submit(source.select(rows), soft) for caller, rows, soft in pieces]

        for ticket in asked()[1]:  # a replica waits for whom it has heard of
            ticket.result()
        embs, tickets = asked()
        scores = torch.cat([ticket.result() for ticket in tickets])
        scores.sum().backward()
    wanted_emb = target.emb_BTD.clone().requires_grad_()
    wanted = local(source, replace(target, emb_BTD=wanted_emb))
    wanted.sum().backward()
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.cat([emb.grad for emb in embs]), wanted_emb.grad, rtol=0, atol=1e-5)
    # Every reply says how long its batch took: to the last bit the same for those of one batch.
    assert len({ticket.reply().computed for ticket in tickets}) == (3 if alone else 1)


def test_a_pool_that_is_not_there(local_ray: Path) -> None:
    from energymt.pool import lifecycle
    from energymt.pool.connection import Connection

    with pytest.raises(EnergyUnavailable, match=r"no energy pool nowhere .* `energymt pool up .* --name nowhere`"):
        Connection("nowhere")
    with pytest.raises(EnergyUnavailable, match="no energy pool nowhere"):
        lifecycle.status("nowhere")


@pytest.mark.parametrize(
    "asked, word",
    [
        (
            {"estimator": "tests.faults.pool_estimators:braked"},
            r"estimator is /.*/estimator and not tests.faults.pool_estimators:braked",
        ),
        ({"learns": "head"}, "learns is None and not head"),
        ({"precision": "bf16"}, "precision is fp32 and not bf16"),
        ({"replicas": 2}, "replicas is 1 and not 2"),
    ],
)
def test_a_pool_that_is_up_is_not_another(asked: dict[str, Any], word: str, pool: Any) -> None:
    [before] = pool("kept")["replicas"]
    with pytest.raises(ConfigurationError, match=rf"pool kept is up with other settings \({word}\): .*--name"):
        pool("kept", **asked)
    [after] = pool("kept")["replicas"]
    assert after["process"] == before["process"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, EnergyUnavailable])
def test_who_did_not_start_a_pool_does_not_end_it(
    error: type[BaseException], pool: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from energymt.pool import lifecycle

    [before] = pool("kept")["replicas"]
    with monkeypatch.context() as patch:

        def interrupted(name: str, until: float) -> dict[str, Any]:
            raise error

        patch.setattr(lifecycle, "_first_status", interrupted)
        with pytest.raises(error):
            pool("kept")
    [after] = lifecycle.status("kept")["replicas"]
    assert after["process"] == before["process"]


def test_two_terminals_start_one_pool(pool: Any) -> None:
    import ray

    from energymt.pool import actors

    estimators.converted("kiwi")  # which two threads must not make at once
    with ThreadPoolExecutor(2) as threads:
        [one, other] = threads.map(lambda _: pool("raced"), range(2))
    assert [row["process"] for row in one["replicas"]] == [row["process"] for row in other["replicas"]]
    groups = [
        entry["state"]
        for entry in ray.util.placement_group_table().values()
        if entry["name"] == actors.group_name("raced")
    ]
    assert groups.count("CREATED") == 1


def test_a_pool_too_large_for_the_cluster(pool: Any) -> None:
    with pytest.raises(
        ResourceError, match=r"needs 64 CPUs \(8 replicas of 8 CPUs and 0 GPUs\), and the cluster has 2"
    ):
        pool("huge", replicas=8, cpus=8.0)
    with pytest.raises(ResourceError, match=r"needs 1 GPUs .* has 0"):
        pool("huge", gpus=1.0)


def refuse() -> None:
    """An estimator that cannot be made."""
    raise RuntimeError("no weights today")


def test_an_estimator_that_does_not_load(pool: Any, tmp_path: Path) -> None:
    from energymt.pool import lifecycle

    with pytest.raises(StorageError, match="nothing"):
        pool("broken", estimator=str(tmp_path / "nothing"))
    with pytest.raises(EnergyUnavailable, match=r"does not start .*no weights today"):
        pool("broken", estimator="tests.ray.test_pool:refuse")
    assert "broken" not in lifecycle.names()


def test_its_numbers_are_metrics_of_ray(pool: Any) -> None:
    """As Prometheus reads them, from the port that Ray exports on loopback."""
    import ray

    pool("measured")
    [node] = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    assert node["NodeManagerAddress"] == "127.0.0.1"
    until, found = time.monotonic() + 60.0, {}
    while time.monotonic() < until and found.get("serving") != 1.0:
        time.sleep(1.0)
        with urllib.request.urlopen(address, timeout=10.0) as answer:
            lines = re.findall(r'^ray_energymt_pool_(\w+)\{.*pool="measured".*\} (\S+)$', answer.read().decode(), re.M)
        found = {name: float(value) for name, value in lines}
    assert found.keys() == WORDS.keys()
    assert (found["serving"], found["version"]) == (1.0, 0.0)


def test_what_ends_leaves_nothing(pool: Any, local_ray: Path) -> None:
    import ray

    from energymt.pool import actors, lifecycle

    before = set(lifecycle.names())
    pool("short")
    assert lifecycle.down("short") == 2
    assert set(lifecycle.names()) == before
    assert actors.replicas_of("short") == {}
    states = [
        entry["state"]
        for entry in ray.util.placement_group_table().values()
        if entry["name"] == actors.group_name("short")
    ]
    assert set(states) <= {"REMOVED"}


def test_a_status_is_plain(pool: Any) -> None:
    found = pool("plain")
    assert pickle.loads(pickle.dumps(found)) == found
    assert found["version"] == 0
    assert all(math.isfinite(row["latency_p95"]) for row in found["replicas"])
