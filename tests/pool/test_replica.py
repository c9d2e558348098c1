"""A replica, as an asyncio object: batches, refusals, signs of life while it computes, one computation an id."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from energymt.models.estimator import QualityEstimator
from energymt.pool import replica as replica_room
from energymt.pool.server import DeviceError, Server
from energymt.pool.wire import Ragged, Refusal, Reply, Request
from tests.pool.gated import Gated, begin, refusal
from tests.pool.pools import LINES, locally, mixed, replica, request_of, require_close, rows_of, tensors

B = len(LINES)


def test_concurrent_requests_are_one_batch_and_each_gets_its_own(
    model: QualityEstimator, server: Gated, run: Any
) -> None:
    served, batch = replica(server, wait_ms=50.0), mixed(model)
    parts = [[0, 4], [2], [3], [1]]
    requests = [request_of(str(n), *rows_of(*batch, rows)) for n, rows in enumerate(parts)]

    async def scenario() -> list[Reply | Refusal]:
        return await asyncio.gather(*map(served.serve, requests))

    for rows, reply in zip(parts, run(scenario()), strict=True):
        require_close(tensors(reply), locally(model, *rows_of(*batch, rows)), atol=1e-5)
        assert reply.replica == "here"
    assert [sorted(ids) for ids in server.batches] == [["0", "1", "2", "3"]]


def test_requests_that_come_later_fill_the_batch(server: Gated, ask: Any, run: Any) -> None:
    """While another caller is expected. Else it would go when half of the time is over that a caller gives."""
    length = int(ask("0").lengths[0])
    served = replica(server, wait_ms=60_000.0, tokens_per_batch=3 * length)

    async def scenario() -> None:
        await served.serve(ask("another", client="you"))
        tasks = []
        for name in "012":
            assert server.batches == [["another"]]
            tasks += await begin(served, ask(name))
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)

    run(scenario())
    assert server.batches == [["another"], ["0", "1", "2"]]
    assert max(served.waits) < 25.0


def test_a_caller_alone_is_answered_at_once(server: Gated, ask: Any, run: Any) -> None:
    served = replica(server, wait_ms=60_000.0)
    run(served.serve(ask("0")))
    assert server.batches == [["0"]] and max(served.waits) < 25.0


def test_deterministic_requests_are_batches_of_their_own(server: Gated, ask: Any, run: Any) -> None:
    served = replica(server, wait_ms=50.0)

    async def scenario() -> Any:
        return await asyncio.gather(*(served.serve(ask(str(n), alone=True)) for n in range(3)))

    run(scenario())
    assert server.batches == [["0"], ["1"], ["2"]]


def test_kinds_are_not_mixed(server: Gated, ask: Any, run: Any) -> None:
    served = replica(server, wait_ms=20.0)
    requests = [ask("0"), ask("1", gradient=False), ask("2"), ask("3", precision="bf16"), ask("4", gradient=False)]

    async def scenario() -> Any:
        return await asyncio.gather(*map(served.serve, requests))

    replies = run(scenario())
    assert server.batches == [["0", "2"], ["1", "4"], ["3"]]
    assert [reply.gradient is None for reply in replies] == [False, True, False, False, True]


def test_one_computation_an_id(server: Gated, ask: Any, run: Any) -> None:
    """Asked twice at once, and again after the answer."""
    served = replica(server)

    async def scenario() -> list[Reply | Refusal]:
        server.gate.clear()
        tasks = await begin(served, ask("same"), ask("same"))
        server.gate.set()
        return [*await asyncio.gather(*tasks), await served.serve(ask("same"))]

    first, second, third = run(scenario())
    assert server.batches == [["same"]]
    assert first is second is third
    assert served.served == 1


def test_a_caller_that_goes_does_not_take_the_answer_along(server: Gated, ask: Any, run: Any) -> None:
    served = replica(server)

    async def scenario() -> Reply | Refusal:
        server.gate.clear()
        first, second = await begin(served, ask("same"), ask("same"))
        first.cancel()
        await asyncio.wait([first])
        server.gate.set()
        return await second

    tensors(run(scenario()))
    assert server.batches == [["same"]]


def test_signs_of_life_while_a_batch_computes(server: Gated, ask: Any, run: Any) -> None:
    served = replica(server)

    async def scenario() -> None:
        server.gate.clear()
        tasks = await begin(served, ask("0"), ask("1", gradient=False), ask("2", gradient=False))
        await asyncio.sleep(0.05)
        busy = await asyncio.wait_for(served.ping(), 30.0)
        assert (busy.busy, busy.queued, busy.served) == (3, 2, 0)
        server.gate.set()
        await asyncio.gather(*tasks)
        idle = await served.ping()
        assert (idle.busy, idle.queued, idle.served, idle.sentences, idle.flagged) == (0, 0, 3, 3, 0)
        assert len(idle.waits) == len(idle.latencies) == 3
        assert all(0 <= wait <= latency for wait, latency in zip(idle.waits, idle.latencies, strict=True))
        assert idle.waits[1] >= 0.05  # it stood behind the first batch

    run(scenario())


def test_late_requests_are_refused_and_never_computed(server: Gated, ask: Any, run: Any) -> None:
    served = replica(server)

    async def scenario() -> list[Reply | Refusal]:
        server.gate.clear()
        tasks = await begin(served, ask("slow"), ask("late", gradient=False, seconds=0.05), ask("in time"))
        await asyncio.sleep(0.1)
        server.gate.set()
        return [*await asyncio.gather(*tasks), await served.serve(ask("at once", seconds=0.0))]

    slow, late, in_time, at_once = run(scenario())
    refusal(late, "late")
    refusal(at_once, "late")
    tensors(slow)
    tensors(in_time)
    assert not {"late", "at once"} & {name for batch in server.batches for name in batch}
    assert served.refused == 2


def test_a_full_queue_says_when_to_come_again(server: Gated, ask: Any, model: QualityEstimator, run: Any) -> None:
    served = replica(server, room=2)

    async def scenario() -> None:
        server.gate.clear()
        tasks = await begin(served, ask("0"))
        tasks += await begin(served, ask("1"), ask("2"))
        again = refusal(await served.serve(ask("3")), "busy")
        assert 0.0 < again.seconds <= 5.0
        server.gate.set()
        await asyncio.gather(*tasks)
        tensors(await served.serve(ask("3")))  # there is room again, and the refusal was not remembered

    run(scenario())


def test_what_is_too_old_is_not_served(server: Gated, ask: Any, run: Any) -> None:
    served = replica(server)
    server.version = 4
    stale = refusal(run(served.serve(ask("a", version=5))), "stale")
    assert stale.version == 4
    [reply] = [run(served.serve(ask(name, version=version))) for name, version in [("b", 4)]]
    assert reply.version == 4
    assert server.batches == [["b"]]


def test_draining_finishes_what_is_there(server: Gated, ask: Any, run: Any) -> None:
    served = replica(server)

    async def scenario() -> None:
        server.gate.clear()
        tasks = await begin(served, ask("0"), ask("1", gradient=False))
        await served.drain()
        refusal(await served.serve(ask("2")), "draining")
        tasks += await begin(served, ask("1", gradient=False))  # not a new one
        server.gate.set()
        assert all(isinstance(answer, Reply) for answer in await asyncio.gather(*tasks))
        assert (await served.ping()).busy == 0

    run(scenario())


def test_what_a_dead_caller_left_is_dropped(server: Gated, ask: Any, run: Any) -> None:
    served = replica(server)

    async def scenario() -> list[Reply | Refusal]:
        server.gate.clear()
        tasks = await begin(served, ask("0", client="dead"))
        tasks += await begin(served, ask("1", client="dead"), ask("2", client="alive"), ask("3", client="dead"))
        assert await served.forget("dead") == 2  # the first one is being computed
        assert (await served.ping()).busy == 2
        server.gate.set()
        return await asyncio.gather(*tasks)

    answers = run(scenario())
    assert [isinstance(answer, Reply) for answer in answers] == [True, False, True, False]
    assert server.batches == [["0"], ["2"]]


def damaged(request: Request) -> Request:
    return replace(request, source=Ragged(request.source.values, np.array([99], dtype=np.int32)))


def test_a_damaged_request_stays_outside(server: Gated, ask: Any, run: Any) -> None:
    served = replica(server, wait_ms=20.0)

    async def scenario() -> list[Reply | Refusal]:
        return await asyncio.gather(*map(served.serve, [ask("0"), damaged(ask("1")), ask("2")]))

    first, second, third = run(scenario())
    assert "sum to 99" in refusal(second, "failed").detail
    tensors(first)
    tensors(third)
    assert server.batches == [["0", "2"]]


def test_an_error_reaches_its_caller_and_no_other_one(model: QualityEstimator, ask: Any, run: Any) -> None:
    def fault(requests: Sequence[Request]) -> None:
        if any(request.id == "bad" for request in requests):
            raise AssertionError("a bug that only this one meets")

    server = Gated(model, fault)
    served = replica(server, wait_ms=20.0)

    async def scenario() -> list[Reply | Refusal]:
        return await asyncio.gather(*map(served.serve, [ask("0"), ask("bad"), ask("2")]))

    first, second, third = run(scenario())
    assert refusal(second, "failed").detail == "AssertionError: a bug that only this one meets"
    tensors(first)
    tensors(third)
    assert [sorted(ids) for ids in server.batches] == [["0", "2", "bad"], ["0"], ["bad"], ["2"]]
    assert run(served.ping()).busy == 0


def test_an_error_that_all_meet_reaches_all(model: QualityEstimator, ask: Any, run: Any) -> None:
    def fault(requests: Sequence[Request]) -> None:
        raise OSError("no space")

    served = replica(Gated(model, fault), wait_ms=20.0)

    async def scenario() -> list[Reply | Refusal]:
        answers = await asyncio.gather(*(served.serve(ask(str(n))) for n in range(3)))
        served.server = Server(model)
        tensors(await served.serve(ask("0")))  # it goes on, and an error is not remembered
        return answers

    for answer in run(scenario()):
        assert refusal(answer, "failed").detail == "OSError: no space"


def test_a_device_that_fails_for_good_ends_the_process(
    model: QualityEstimator, ask: Any, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    ended = asyncio.Event()
    monkeypatch.setattr(replica_room, "end_process", ended.set)

    def fault(requests: Sequence[Request]) -> None:
        raise DeviceError("CUDA error: unspecified launch failure")

    async def scenario() -> None:
        tasks = await begin(replica(Gated(model, fault)), ask("0"))
        await ended.wait()
        assert not tasks[0].done()  # in a process that ends, its caller learns it from that

    run(scenario())


def test_fill_is_the_share_of_the_budget_that_is_real(server: Gated, model: QualityEstimator, run: Any) -> None:
    batch = mixed(model)
    request = request_of("0", *batch)
    positions = int(request.lengths.sum())
    served = replica(server, tokens_per_batch=2 * positions)
    run(served.serve(request))
    assert run(served.ping()).fill == pytest.approx(0.5)
    small = replica(server, tokens_per_batch=positions // 2)
    run(small.serve(replace(request, id="1")))
    assert run(small.ping()).fill == 1.0  # a request above the budget fills it, no more


def test_flags_are_counted(server: Gated, model: QualityEstimator, run: Any) -> None:
    source, target = mixed(model)
    target.emb_BTD[0, 0] = torch.nan
    served = replica(server)
    reply = run(served.serve(request_of("0", source, target)))
    assert list(reply.flags) == [0]
    assert run(served.ping()).flagged == 1


def test_busy_for_long_and_idle_in_between(server: Gated, ask: Any, run: Any) -> None:
    """The worker ends with an empty queue, and the next request finds another one."""
    served = replica(server)

    async def scenario() -> None:
        for n in range(5):
            tensors(await served.serve(ask(str(n))))
            await asyncio.sleep(0.01)
            assert served.worker is not None and served.worker.done()

    run(scenario())
    assert len(server.batches) == 5
