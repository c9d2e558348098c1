"""Requests that reach an actor through shared memory: as over the wire, and over the wire where need be."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from energymt.models.estimator import QualityEstimator
from energymt.pool import shared
from energymt.pool.client import Client, View
from energymt.pool.estimator import PooledEstimator
from energymt.pool.replica import Replica
from energymt.pool.settings import PoolConfig, ReplicaPlan
from energymt.pool.shared import Place
from energymt.records import SoftTarget, Source
from tests import estimators

pytestmark = pytest.mark.ray


class Far(Replica):
    """On another machine, for all that it sees."""

    def __init__(self, plan: ReplicaPlan) -> None:
        super().__init__(plan)
        self.views.open = lambda place, caller: None  # type: ignore[method-assign]
        self.posted = 0

    async def serve_posted(self, request: Any, place: Place) -> Any:
        self.posted += 1
        return await super().serve_posted(request, place)

    async def asked(self) -> int:
        return self.posted


class ToOne:
    """A transport to one actor; see `energymt.pool.client.Transport`."""

    name = "one"

    def __init__(self, actor: Any) -> None:
        from energymt.pool.post import Post

        self.actor, self.post = actor, Post()

    def view(self, fresh: bool, seconds: float) -> View:
        return View({0: 0})

    def send(self, replica: int, request: Any) -> Any:
        return self.post.send(self.actor, request)

    def report(self, replica: int) -> None:
        raise AssertionError("nobody is slow here")


@pytest.fixture(scope="module", params=[Replica, Far])
def transport(request: pytest.FixtureRequest, local_ray: Path) -> Iterator[ToOne]:
    import ray

    plan = ReplicaPlan(PoolConfig(estimator=str(estimators.converted("kiwi"))), 0, 0)
    actor = ray.remote(request.param).options(num_cpus=0, max_concurrency=10).remote(plan)
    yield ToOne(actor)
    ray.kill(actor)


@pytest.fixture(scope="module")
def local() -> QualityEstimator:
    return estimators.estimator("kiwi")


@pytest.fixture
def pooled(transport: ToOne, local: QualityEstimator, monkeypatch: pytest.MonkeyPatch) -> PooledEstimator:
    monkeypatch.setattr(shared, "SMALLEST", 1)
    return PooledEstimator(Client(transport, alone=True), local.table_VD, local.vocabulary)


def soft(local: QualityEstimator, seed: int) -> SoftTarget:
    target = estimators.target_of(local, estimators.TRANSLATIONS)
    draw = torch.Generator().manual_seed(seed)
    mixed_BTD = target.emb_BTD + 0.1 * torch.randn(target.emb_BTD.shape, generator=draw)
    return replace(target, ids_BT=None, emb_BTD=mixed_BTD.requires_grad_())


def scored(estimator: Any, source: Source, target: SoftTarget) -> tuple[torch.Tensor, torch.Tensor]:
    score_B = estimator(source, target)
    (gradient_BTD,) = torch.autograd.grad((score_B * torch.arange(1.0, len(score_B) + 1)).sum(), target.emb_BTD)
    return score_B.detach(), gradient_BTD


def test_as_in_this_process(transport: ToOne, pooled: PooledEstimator, local: QualityEstimator) -> None:
    source = estimators.source_of(local, estimators.SOURCES)
    for seed in range(4):
        target = soft(local, seed)
        for one, other in zip(scored(pooled, source, target), scored(local, source, target), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(pooled(source, soft(local, 9)), local(source, soft(local, 9)), rtol=0, atol=1e-6)


def test_one_slot_serves_one_call_after_the_other(transport: ToOne, pooled: PooledEstimator, local: Any) -> None:
    import ray

    source, slots = estimators.source_of(local, estimators.SOURCES), transport.post.slots
    for seed in range(4):
        scored(pooled, source, soft(local, seed))
    assert slots.size == 2 * sum(slot.room for slot in {*slots.free, *slots.back})  # all are free again
    assert len({*slots.free, *slots.back}) == 1
    if transport.post.far:  # asked once, and then written to over the wire
        assert ray.get(transport.actor.asked.remote()) == 1


def test_a_gradient_stays_as_it_is_while_somebody_has_it(pooled: PooledEstimator, local: QualityEstimator) -> None:
    source = estimators.source_of(local, estimators.SOURCES)
    first = pooled.submit(source, soft(local, 1)).reply().gradient
    assert first is not None
    kept = first.copy()
    tickets = [pooled.submit(source, soft(local, seed)) for seed in (2, 3)]
    others = [ticket.reply().gradient for ticket in tickets]
    assert (first == kept).all()
    assert not any((other == kept).all() for other in others if other is not None)


def test_what_nobody_waits_for_is_dropped(transport: ToOne, pooled: PooledEstimator, local: QualityEstimator) -> None:
    source, slots = estimators.source_of(local, estimators.SOURCES), transport.post.slots
    pooled.submit(source, soft(local, 1))
    wanted = scored(local, source, soft(local, 2))
    for one, other in zip(scored(pooled, source, soft(local, 2)), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    free = slots.take(torch.ones(4, 4).numpy())
    assert free is not None
    assert slots.size == 2 * sum(
        slot.room for slot in {*slots.free, *slots.back, free}
    )  # the dropped one is not counted


def test_embeddings_of_a_wrong_width_are_flagged(pooled: PooledEstimator, local: QualityEstimator) -> None:
    source, target = estimators.source_of(local, estimators.SOURCES), soft(local, 1)
    narrow = replace(target, emb_BTD=target.emb_BTD.detach()[..., :5].clone().requires_grad_())
    reply = pooled.submit(source, narrow).reply()
    assert all("5 wide" in reason for reason in reply.flags.values()) and len(reply.flags) == len(source)
    assert reply.gradient is not None and reply.gradient.shape[1] == local.table_VD.shape[1]
