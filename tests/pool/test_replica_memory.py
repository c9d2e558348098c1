"""What a replica holds of its callers: answers for who asks again, and their memory; all of it returns."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from energymt.models.estimator import QualityEstimator
from energymt.pool import replica as replica_room
from energymt.pool.shared import Slots
from energymt.pool.wire import Reply
from tests import estimators
from tests.pool.gated import Gated, begin
from tests.pool.pools import LINES, mixed, replica, request_of, rows_of, tensors

B = len(LINES)


def test_what_a_dead_caller_was_answered_is_dropped(server: Gated, ask: Any, run: Any) -> None:
    """Also where it dies while it is computed; and one that asks again behind that is answered again."""
    served = replica(server, tokens_per_batch=1)

    async def scenario() -> None:
        for name in "01":
            await served.serve(ask(name, client="dead"))
        await served.serve(ask("2", client="alive"))
        server.gate.clear()
        tasks = await begin(served, ask("3", client="dead"), ask("4", client="dead"), ask("5", client="alive"))
        assert await served.forget("dead") == 1
        server.gate.set()
        await asyncio.gather(*tasks)
        assert list(served.remembered) == ["2", "5"]
        assert served.remembered_bytes == sum(replica_room._bytes(reply) for _, reply in served.remembered.values())
        tensors(await served.serve(ask("3", client="dead")))
        assert list(served.remembered) == ["2", "5", "3"]

    run(scenario())


def mapped() -> int:
    """Slots that this process has open, its own ones counted too."""
    return sum("memfd:energymt-pool" in line for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
def test_the_memory_of_a_dead_caller_returns(server: Gated, model: QualityEstimator, run: Any) -> None:
    served, slots, before = replica(server), Slots(), mapped()
    whole = request_of("whole", *mixed(model, [LINES[0]] * 400))

    async def scenario() -> None:
        posted = []
        for client in ("dead", "dead", "alive"):
            slot = slots.take(whole.target.values)
            assert slot is not None
            posted.append((slot, slot.post(whole.target.values)))
            request = replace(whole, id=str(len(posted)), client=client)
            answer = await served.serve_posted(request, posted[-1][1])
            assert isinstance(answer, Reply) and answer.gradient is None
        del slot
        assert mapped() == before + 6
        posted[:2] = []
        await served.forget("dead")
        assert mapped() == before + 2
        opened = served.views.open(posted[-1][1], "alive")
        assert opened is not None and (opened[0] == whole.target.values).all()

    run(scenario())


def test_remembered_replies_are_bounded_by_bytes(
    server: Gated, ask: Any, model: QualityEstimator, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    size = replica_room._bytes(Reply("", "", 0, np.zeros(1, np.float32), np.zeros((9, estimators.WIDTH), np.float32)))
    monkeypatch.setattr(replica_room, "REMEMBERED_BYTES", 3 * size)
    served = replica(server)

    async def scenario() -> None:
        for n in range(40):
            await served.serve(ask(str(n), n % B))
            held = [replica_room._bytes(reply) for _, reply in served.remembered.values()]
            assert sum(held) == served.remembered_bytes <= 3 * size
        assert list(served.remembered)[-1] == "39"
        assert len(served.remembered) >= 2
        large = request_of("large", *rows_of(*mixed(model), [0, 1, 2, 4] * 10))
        tensors(await served.serve(large))
        assert served.remembered_bytes == len(served.remembered) == 0  # it alone is above the bound

    run(scenario())
