"""A pool in this process: replicas in a thread with an event loop of their own, and a transport to them. What travels
is pickled as Ray does it, so that its arrays cannot be written on the other side.
"""

import asyncio
import pickle
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from energymt.models.estimator import QualityEstimator
from energymt.pool.client import GoneError, View
from energymt.pool.replica import Replica
from energymt.pool.server import Server
from energymt.pool.settings import PoolConfig, ReplicaPlan
from energymt.pool.wire import Refusal, Reply, Request, pack
from energymt.records import SoftTarget, Source
from tests import estimators

LINES = list(zip(estimators.SOURCES, estimators.TRANSLATIONS, strict=True))


class Disturbed:
    """An estimator to which something happens before it computes."""

    def __init__(self, model: QualityEstimator, disturb: Callable[[Source, SoftTarget], None]) -> None:
        self.model, self.disturb = model, disturb

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def eval(self) -> "Disturbed":
        return self

    def requires_grad_(self, _: bool) -> "Disturbed":
        return self

    def __call__(self, source: Source, target: SoftTarget) -> Tensor:
        self.disturb(source, target)
        return self.model(source, target)


def mixed(model: QualityEstimator, lines: Sequence[tuple[str, str]] = LINES) -> tuple[Source, SoftTarget]:
    """Sources, and translations as mixtures that are no single rows; one of them is empty."""
    sources, translations = zip(*lines, strict=True)
    target = estimators.target_of(model, translations)
    draw = torch.Generator().manual_seed(1)
    noise = torch.randn(target.emb_BTD.shape, generator=draw, dtype=torch.float64).to(target.emb_BTD)
    return estimators.source_of(model, sources), SoftTarget(None, target.emb_BTD + 0.3 * noise, target.mask_BT)


def rows_of(source: Source, target: SoftTarget, rows: Sequence[int]) -> tuple[Source, SoftTarget]:
    """Some sentences of a batch, as wide as before."""
    chosen = torch.tensor(rows, dtype=torch.long)
    ids_BT = None if target.ids_BT is None else target.ids_BT[chosen]
    return source.select(chosen), SoftTarget(ids_BT, target.emb_BTD[chosen], target.mask_BT[chosen])


def request_of(
    name: str, source: Source, target: SoftTarget, *, gradient: bool = True, precision: str = "fp32", **more: Any
) -> Request:
    """As a client makes it."""
    return Request(name, more.pop("client", "me"), *pack(source, target, precision), gradient, precision, **more)


def locally(model: QualityEstimator, source: Source, target: SoftTarget) -> tuple[Tensor, Tensor]:
    """Scores, and their gradient at the real positions [N, D], without a pool."""
    emb_BTD = target.emb_BTD.detach().clone().requires_grad_()
    score_B = model(source, SoftTarget(target.ids_BT, emb_BTD, target.mask_BT))
    [gradient_BTD] = torch.autograd.grad(score_B.sum(), emb_BTD)
    return score_B.detach(), gradient_BTD[target.mask_BT]


def tensors(reply: Reply | Refusal) -> tuple[Tensor, Tensor]:
    """Scores and gradient of a reply that has both."""
    assert isinstance(reply, Reply), reply
    assert reply.gradient is not None
    return torch.tensor(reply.scores), torch.tensor(reply.gradient)


def require_close(found: Sequence[Tensor], wanted: Sequence[Tensor], atol: float) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=atol)


def shipped(value: Any) -> Any:
    """What comes out on the other side."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(head, buffers=[bytes(buffer.raw()) for buffer in buffers])


def replica(server: Server | None = None, number: int = 0, **settings: Any) -> Replica:
    """An asyncio object, as the actor holds it. It waits for nobody, unless it is told to."""
    config = PoolConfig(**{"estimator": "here", "wait_ms": 0.0, **settings})
    return Replica(ReplicaPlan(config, number, 0), server or Server(estimators.estimator("kiwi"), f"replica-{number}"))


class ThreadCall:
    """See `energymt.pool.client.Call`."""

    def __init__(self, future: "Future[Reply | Refusal]") -> None:
        self.future = future

    def wait(self, seconds: float) -> Reply | Refusal | None:
        try:
            return shipped(self.future.result(max(0.0, seconds)))
        except TimeoutError:
            return None
        except CancelledError:
            raise GoneError("its process ended") from None


class Threads:
    """See `energymt.pool.client.Transport`. `kill` ends a replica, `sent` lists what was asked of whom."""

    name = "here"

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self.replicas = dict(enumerate(replicas))
        self.calls: dict[int, list[Future[Reply | Refusal]]] = {number: [] for number in self.replicas}
        self.sent: list[tuple[int, Request]] = []
        self.reports: list[int] = []
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def view(self, fresh: bool, seconds: float) -> View:
        return View({number: len(replica.batcher) for number, replica in self.replicas.items()})

    def send(self, replica: int, request: Request) -> ThreadCall:
        if replica not in self.replicas:
            raise GoneError(f"replica {replica} is gone")
        self.sent.append((replica, request))
        future = asyncio.run_coroutine_threadsafe(self.replicas[replica].serve(shipped(request)), self.loop)
        self.calls[replica].append(future)
        return ThreadCall(future)

    def report(self, replica: int) -> None:
        self.reports.append(replica)

    def kill(self, replica: int) -> None:
        del self.replicas[replica]
        for future in self.calls[replica]:
            future.cancel()

    def close(self) -> None:
        async def end() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(end(), self.loop).result(5.0)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(5.0)
