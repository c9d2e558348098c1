"""A server that computes when it may, and requests that are on their way to it."""

import asyncio
import threading
from collections.abc import Callable, Sequence

from energymt.models.estimator import QualityEstimator
from energymt.pool.replica import Replica
from energymt.pool.server import Server
from energymt.pool.wire import Refusal, Reply, Request


class Gated(Server):
    """Computes when the gate is open; every batch is noted, with the clock of whoever asks."""

    def __init__(self, model: QualityEstimator, fault: Callable[[Sequence[Request]], None] | None = None) -> None:
        super().__init__(model)
        self.gate, self.batches, self.fault = threading.Event(), [], fault
        self.gate.set()

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        assert self.gate.wait(60.0)
        self.batches.append([request.id for request in requests])
        if self.fault is not None:
            self.fault(requests)
        return super().answer(requests)


async def begin(served: Replica, *requests: Request) -> list["asyncio.Task[Reply | Refusal]"]:
    """Requests on their way, and as far as they get without a batch that ends."""
    tasks = [asyncio.create_task(served.serve(request)) for request in requests]
    for _ in range(20):
        await asyncio.sleep(0)
    return tasks


def refusal(answer: Reply | Refusal, reason: str) -> Refusal:
    assert isinstance(answer, Refusal), answer
    assert answer.reason == reason
    return answer
