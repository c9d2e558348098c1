"""A replica: a queue in front of a server. An asyncio object that knows nothing of Ray; `actors.py` makes it an actor.

The model runs in one thread of its own, so pings are answered while it computes. Versions change between two batches.
"""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

from energymt.pool.batcher import Batcher, Entry
from energymt.pool.health import Health
from energymt.pool.server import Server
from energymt.pool.settings import ReplicaPlan, open_estimator
from energymt.pool.wire import Refusal, Reply, Request

REMEMBERED_REPLIES = 8  # for a caller that asks again; each may hold megabytes
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
        self.batcher = Batcher(config.tokens_per_batch, config.wait_ms / 1e3, config.room)
        self.futures: dict[str, asyncio.Future[Reply | Refusal]] = {}
        self.remembered: OrderedDict[str, Reply] = OrderedDict()
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
            return self.remembered[request.id]
        future = self.futures.get(request.id)
        if future is None:
            if self.draining:
                return self._refusal(request, "draining")
            if self.server.version < request.version:
                return self._refusal(request, "stale")
            if not self.batcher.add(Entry(request, time.monotonic())):
                return self._refusal(request, "busy", self._backlog())
            future = self.futures[request.id] = asyncio.get_running_loop().create_future()
            self._work()
        return await asyncio.shield(future)

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
        )

    async def forget(self, client: str) -> int:
        """Drop what a dead caller has queued; how many requests that were."""
        dropped = self.batcher.drop(lambda entry: entry.request.client == client)
        for entry in dropped:
            self._resolve(entry, self._refusal(entry.request, "late"))
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
        loop = asyncio.get_running_loop()
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
            entries = self.batcher.take()
            requests = [entry.request for entry in entries]
            try:
                replies = await loop.run_in_executor(self.thread, self.server.answer, requests)
            except Exception as error:  # a bug; the callers must not wait for ever
                for entry in entries:
                    self._fail(entry, error)
                continue
            self._account(entries, replies, now)

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
            self.remembered[done.id] = done
            if len(self.remembered) > REMEMBERED_REPLIES:
                self.remembered.popitem(last=False)
            self._resolve(entry, done)

    def _resolve(self, entry: Entry, answer: Reply | Refusal) -> None:
        future = self.futures.pop(entry.request.id, None)
        if future is not None and not future.done():
            future.set_result(answer)

    def _fail(self, entry: Entry, error: Exception) -> None:
        future = self.futures.pop(entry.request.id, None)
        if future is not None and not future.done():
            future.set_exception(error)

    def _refusal(self, request: Request, reason: str, seconds: float = 0.0) -> Refusal:
        self.refused += 1
        return Refusal(request.id, self.plan.name, reason, self.server.version, seconds)

    def _backlog(self) -> float:
        """Seconds after which there may be room: the time that the last requests took."""
        recent = sorted(self.latencies)[len(self.latencies) // 2 :]
        return min(5.0, max(0.02, recent[0] if recent else 0.1))
