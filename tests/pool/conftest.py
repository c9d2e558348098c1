"""A tiny estimator behind a gate, requests for it, and an event loop."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from energymt.models.estimator import QualityEstimator
from energymt.pool.wire import Request
from tests import estimators
from tests.pool.gated import Gated
from tests.pool.pools import mixed, request_of, rows_of


@pytest.fixture(scope="module")
def model() -> QualityEstimator:
    return estimators.estimator("kiwi")


@pytest.fixture
def ask(model: QualityEstimator) -> Callable[..., Request]:
    """A request of one sentence."""
    batch = mixed(model)
    return lambda name, row=0, **more: request_of(name, *rows_of(*batch, [row]), **more)


@pytest.fixture
def server(model: QualityEstimator) -> Iterator[Gated]:
    found = Gated(model)
    yield found
    found.gate.set()


@pytest.fixture
def run() -> Iterator[Callable[[Awaitable[Any]], Any]]:
    """Run something in the event loop of this test; what is left over is cancelled in the end."""

    async def bounded(scenario: Awaitable[Any]) -> Any:
        return await asyncio.wait_for(scenario, 60.0)

    with asyncio.Runner() as runner:
        yield lambda scenario: runner.run(bounded(scenario))
