"""A replica: a queue in front of a server. An asyncio object that knows nothing of Ray; `actors.py` makes it an actor.

The model runs in one thread of its own, so pings are answered while it computes. Versions change between two batches.
A device that fails for good takes the process with it: another one takes its place.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any

from energymt.pool.batcher import Batcher, Entry
from energymt.pool.copy import LearningCopy
from energymt.pool.health import Health
from energymt.pool.server import DeviceError, Server
from energymt.pool.settings import ReplicaPlan, open_estimator
from energymt.pool.shared import Place, Views
from energymt.pool.wire import Ragged, Refusal, Reply, Request

logger = logging.getLogger(__name__)

REMEMBERED_BYTES = 64 * 2**20  # of the last replies, for callers that ask again
RECENT = 512  # requests that the percentiles are taken of


class Replica:
    """Serves until its process ends.

    Args:
        plan: what it is started with.
        server: instead of one that the plan describes.
    """

    def __init__(self, plan: ReplicaPlan, server: Server | None = None) -> None:
        config = plan.config
        if server is None:
            import torch

            torch.set_num_threads(config.threads)
            server = Server(open_estimator(config), plan.name, plan.version)
        self.plan, self.server = plan, server
        self.copy = LearningCopy(server, config) if config.learns is not None else None
        self.batcher = Batcher(config.tokens_per_batch, config.wait_ms / 1e3, config.room)
        self.futures: dict[str, asyncio.Future[Reply | Refusal]] = {}
        self.remembered: OrderedDict[str, tuple[str, Reply]] = OrderedDict()  # of each id: who asked, and the answer
        self.remembered_bytes = 0
        self.computing: Sequence[Entry] = ()
        self.abandoned: set[str] = set()  # ids of these that nobody will ask for again
        self.views = Views()
        self.thread = ThreadPoolExecutor(1, "model")
        self.wake = asyncio.Event()
        self.worker: asyncio.Task[None] | None = None
        self.draining = False
        self.served = self.sentences = self.flagged = self.refused = 0
        self.waits: deque[float] = deque(maxlen=RECENT)
        self.latencies: deque[float] = deque(maxlen=RECENT)
        self.fills: deque[float] = deque(maxlen=64)

    async def serve(self, request: Request) -> Reply | Refusal:
        """Answer when the batch of this request is computed; at once if it is refused."""
        if request.id in self.remembered:
            return self.remembered[request.id][1]
        future = self.futures.get(request.id)
        if future is None:
            if fault := request.fault():
                return self._refusal(request, "failed", detail=f"the request is damaged: {fault}")
            if self.draining:
                return self._refusal(request, "draining")
            if self.server.version < request.version:
                return self._refusal(request, "stale")
            if not self.batcher.add(Entry(request, time.monotonic())):
                return self._refusal(request, "busy", self._backlog())
            future = self.futures[request.id] = asyncio.get_running_loop().create_future()
            self._work()
        return await asyncio.shield(future)

    async def serve_posted(self, request: Request, place: Place) -> Reply | Refusal:
        """The same for a request whose embeddings, and the gradient that comes back, are in shared memory.

        Refused as "far" where that memory is not to be had. A gradient of another shape than the embeddings is in the
        reply itself.
        """
        opened = self.views.open(place, request.client)
        if opened is None:
            return Refusal(request.id, self.plan.name, "far", self.server.version)
        sent, returned = opened
        answer = await self.serve(replace(request, target=Ragged(sent, request.target.lengths)))
        if isinstance(answer, Refusal) or answer.gradient is None:
            return answer
        if (answer.gradient.shape, answer.gradient.dtype) != (returned.shape, returned.dtype):
            return answer
        returned[...] = answer.gradient
        return replace(answer, gradient=None)

    async def ping(self) -> Health:
        """Signs of life."""
        return Health(
            number=self.plan.number,
            version=self.server.version,
            process=os.getpid(),
            node=platform.node(),
            served=self.served,
            sentences=self.sentences,
            flagged=self.flagged,
            refused=self.refused,
            busy=len(self.futures),
            queued=len(self.batcher),
            fill=sum(self.fills) / max(1, len(self.fills)),
            waits=tuple(self.waits),
            latencies=tuple(self.latencies),
            last={} if self.copy is None else self.copy.learner.state.last,
        )

    async def learn(self, work: str, *arguments: Any) -> Any:
        """Do a part of a learning step, between two batches; `work` is a method of `LearningCopy`."""
        assert self.copy is not None, "this pool is static: start it with `learns`"
        return await asyncio.get_running_loop().run_in_executor(self.thread, getattr(self.copy, work), *arguments)

    async def forget(self, client: str) -> int:
        """Drop what a caller that is gone has queued, its answers and its memory; how many requests were queued."""
        dropped = self.batcher.drop(lambda entry: entry.request.client == client)
        for entry in dropped:
            self._resolve(entry, self._refusal(entry.request, "late"))
        self.abandoned |= {entry.request.id for entry in self.computing if entry.request.client == client}
        for name in [name for name, (asked, _) in self.remembered.items() if asked == client]:
            self.remembered_bytes -= _bytes(self.remembered.pop(name)[1])
        self.views.forget(client)
        return len(dropped)

    async def drain(self) -> None:
        """Take nothing more."""
        self.draining = True

    def _work(self) -> None:
        """See that the worker runs, and knows of a new request."""
        if self.worker is None or self.worker.done():
            self.worker = asyncio.get_running_loop().create_task(self._batches())
        self.wake.set()

    async def _batches(self) -> None:
        """Form and compute batches while there are requests."""
        while True:
            now = time.monotonic()
            for entry in self.batcher.late(now):
                self._resolve(entry, self._refusal(entry.request, "late"))
            due = self.batcher.due(now)
            if due is None:
                return
            if due > 0:
                self.wake.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.wake.wait(), due)
                continue
            self.computing = self.batcher.take()
            await self._compute(self.computing, now)
            self.computing = ()
            self.abandoned.clear()

    async def _compute(self, entries: Sequence[Entry], start: float) -> None:
        """Answer a batch. A request that raises has its callers told, and takes no other one with it."""
        requests = [entry.request for entry in entries]
        try:
            replies = await asyncio.get_running_loop().run_in_executor(self.thread, self.server.answer, requests)
            self._account(entries, replies, start)
        except DeviceError as error:
            logger.critical("%s ends: its device failed (%s).", self.plan.name, error)
            end_process()
        except Exception as error:  # a bug, or a caller of another version; nobody must wait for ever
            if len(entries) > 1:
                for entry in entries:
                    await self._compute([entry], start)
                return
            logger.exception("%s cannot answer request %s.", self.plan.name, requests[0].id)
            detail = f"{type(error).__name__}: {error}"
            self._resolve(entries[0], self._refusal(requests[0], "failed", detail=detail))

    def _account(self, entries: Sequence[Entry], replies: Sequence[Reply], start: float) -> None:
        """Hand replies out, and count."""
        now = time.monotonic()
        positions = sum(int(entry.request.lengths.sum()) for entry in entries)
        self.fills.append(min(1.0, positions / self.batcher.tokens))
        for entry, reply in zip(entries, replies, strict=True):
            waited = start - entry.arrived
            self.served += 1
            self.sentences += len(entry.request)
            self.flagged += len(reply.flags)
            self.waits.append(waited)
            self.latencies.append(now - entry.arrived)
            done = replace(reply, waited=waited)
            if entry.request.id not in self.abandoned:
                self._remember(entry.request.client, done)
            self._resolve(entry, done)

    def _remember(self, client: str, reply: Reply) -> None:
        """First in, first out: replies of one batch share its memory, and are forgotten together."""
        self.remembered[reply.id] = client, reply
        self.remembered_bytes += _bytes(reply)
        while self.remembered_bytes > REMEMBERED_BYTES:
            _, (_, oldest) = self.remembered.popitem(last=False)
            self.remembered_bytes -= _bytes(oldest)

    def _resolve(self, entry: Entry, answer: Reply | Refusal) -> None:
        future = self.futures.pop(entry.request.id, None)
        if future is not None and not future.done():
            future.set_result(answer)

    def _refusal(self, request: Request, reason: str, seconds: float = 0.0, detail: str = "") -> Refusal:
        self.refused += 1
        return Refusal(request.id, self.plan.name, reason, self.server.version, seconds, detail)

    def _backlog(self) -> float:
        """Seconds after which there may be room: the time that the last requests took."""
        recent = sorted(self.latencies)[len(self.latencies) // 2 :]
        return min(5.0, max(0.02, recent[0] if recent else 0.1))


def end_process() -> None:
    """At once, with nothing cleaned up: what there is to clean up hangs."""
    os._exit(1)


def _bytes(reply: Reply) -> int:
    arrays = reply.scores.nbytes + (0 if reply.gradient is None else reply.gradient.nbytes)
    return int(arrays) + 1024  # for the rest of it
