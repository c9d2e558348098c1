"""Joining a pool from any process that Ray knows: its supervisor, its replicas, and the lease of this process."""

from __future__ import annotations

import os
import platform
import threading
import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from energymt.errors import EnergyUnavailable
from energymt.pool import actors, ground, lifecycle
from energymt.pool.client import Call, Client, GoneError, View
from energymt.pool.naming import DEFAULT, missing
from energymt.pool.post import Post
from energymt.pool.wire import Request

VIEW_SECONDS = 2.0  # that a view of the pool is used for
SOON = 0.5  # seconds that a caller listens to the supervisor before it goes on with what it knows
ASK_SECONDS = 10.0  # for an answer of the supervisor; then it is asked again
QUIET = 0.5  # seconds until a supervisor that is gone is asked again


class RayTransport:
    """The supervisor and the replicas of a pool; many threads may share it.

    Args:
        name: of the pool.

    Raises:
        EnergyUnavailable: if there is no pool of that name in this Ray.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.supervisor = actors.find(actors.supervisor_name(name))
        if self.supervisor is None:
            raise EnergyUnavailable(missing(name, lifecycle.names()))
        self.handles: dict[int, Any] = {}
        self.post = Post()
        self.seen, self.seen_at = View({}), -1e9
        self.question: Any = None  # to the supervisor, on its way
        self.asked_at = self.failed_at = -1e9
        self.trouble = ""  # of the last question
        self.lock = threading.Lock()  # of what is above; nobody waits while holding it

    def view(self, fresh: bool, seconds: float) -> View:
        """See `client.Transport`. All threads share one question: who puts it listens a moment, the others go on."""
        with self.lock:
            now = time.monotonic()
            if not fresh and self.seen.queues and now - self.seen_at <= VIEW_SECONDS:
                return self.seen
            if now - self.failed_at < QUIET:
                raise GoneError(self.trouble)
            mine = self.question is None or now - self.asked_at > ASK_SECONDS
            if mine:
                assert self.supervisor is not None
                self.question, self.asked_at = self.supervisor.view.remote(), now
            question = self.question
            patience = min(seconds, self.asked_at + SOON - now) if mine or not self.seen.queues else 0.0
        try:
            found: View = ray.get(question, timeout=max(0.001, patience))
        except GetTimeoutError:
            raise GoneError("its supervisor does not answer") from None
        except RayError as error:
            raise self._failed(question, error) from None
        with self.lock:
            if self.question is question:  # else another thread has taken this answer already
                self.question = None
                self.seen, self.seen_at = found, time.monotonic()
                self.handles = {number: handle for number, handle in self.handles.items() if number in found.queues}
        return found

    def _failed(self, question: Any, error: RayError) -> GoneError:
        supervisor = actors.find(actors.supervisor_name(self.name))
        with self.lock:
            self.supervisor = supervisor or self.supervisor
            if self.question is question:
                self.question, self.failed_at = None, time.monotonic()
                self.trouble = f"its supervisor is gone ({' '.join(str(error).split())[:200]})"
            return GoneError(self.trouble)

    def send(self, replica: int, request: Request) -> Call:
        """See `client.Transport`."""
        with self.lock:
            handle = self.handles.get(replica)
        if handle is None:
            handle = actors.find(actors.replica_name(self.name, replica))
            if handle is None:
                raise GoneError(f"replica {replica} is gone")
            with self.lock:
                self.handles[replica] = handle
        return self.post.send(handle, request)

    def report(self, replica: int) -> None:
        """See `client.Transport`."""
        with self.lock:
            self.handles.pop(replica, None)
        with suppress(RayError):
            assert self.supervisor is not None
            self.supervisor.report.remote(replica)


class Connection:
    """A caller of a pool, with a lease that is renewed while the process lives.

    Use it as a context, or call `close`; if the process dies, the lease ends by itself. A process that is in no Ray yet
    joins that of this machine's pools.

    Args:
        name: of the pool.
        beat_seconds: between two signs of life.
        run: that this process trains, for pools that learn: one run learns in a pool at a time.
        options: of the `Client`.
    """

    def __init__(self, name: str = DEFAULT, beat_seconds: float = 5.0, run: str = "", **options: Any) -> None:
        if not ray.is_initialized():
            ground.join()
        self.transport, self.run = RayTransport(name), run
        self.client = Client(self.transport, **options)
        self.label = f"{platform.node()}:{os.getpid()}"
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._beat, args=(beat_seconds,), name="pool-lease", daemon=True)
        self.thread.start()

    def _beat(self, seconds: float) -> None:
        while not self.ended.is_set():
            with suppress(RayError):
                supervisor = self.transport.supervisor
                assert supervisor is not None
                supervisor.beat.remote(self.client.id, self.label, self.run)
            self.ended.wait(seconds)

    def close(self) -> None:
        """Return the lease."""
        self.ended.set()
        self.thread.join(timeout=1.0)
        with suppress(RayError, RayActorError):
            supervisor = self.transport.supervisor
            assert supervisor is not None
            ray.get(supervisor.leave.remote(self.client.id), timeout=2.0)

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
