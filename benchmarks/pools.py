"""Energy pools for a benchmark: in a Ray of their own on this machine, ended with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from energymt.cluster import runtime
from energymt.pool.client import View
from energymt.pool.post import Post
from energymt.pool.wire import Reply, Request


@contextmanager
def local_ray(cpus: int) -> Iterator[None]:
    """A Ray that counts so many CPUs. Its workers are as nice as this process: Ray's own default gives way to others,
    and so to whom a pool is compared with.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    runtime.start("local", num_cpus=cpus)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def pool_of(estimator: Path, threads: int, device: str = "cpu", **settings: Any) -> Iterator[str]:
    """The name of a pool with one replica of the estimator in that folder."""
    from energymt.pool import lifecycle
    from energymt.pool.settings import PoolConfig

    gpus = 0.5 if device == "cuda" else 0.0
    name = f"bench-{estimator.name}"
    config = PoolConfig(estimator=str(estimator), cpus=threads, threads=threads, gpus=gpus, **settings)
    lifecycle.up(name, config)
    try:
        yield name
    finally:
        lifecycle.down(name)


def require_wall(clock: str) -> None:
    """Refuse a clock that does not see the replica."""
    if clock != "wall":
        raise SystemExit("A replica is a process of its own, which --clock process does not see: leave it out.")


# ------------------------------------------------------------------------------------ a replica that computes nothing


class Idle:
    """A server that computes nothing: the scores are 0, and the gradient is an array that lies ready.

    It is not the one that came: a replica remembers its last replies, and would hold on to Ray's memory with them.
    """

    version = 0

    def __init__(self, positions: int, width: int) -> None:
        self.gradient_ND = np.zeros((positions, width), np.float32) + 1.0  # written to, so that its pages are there

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """See `energymt.pool.server.Server`."""
        return [
            Reply(request.id, "idle", 0, np.zeros(len(request), np.float32), self.gradient_ND) for request in requests
        ]


class Mirror:
    """An actor that returns what it is given."""

    def give(self, values: Any) -> Any:
        """Back."""
        return values


@dataclass(frozen=True)
class Direct:
    """A transport to one replica, with no supervisor behind it; see `energymt.pool.client.Transport`."""

    replica: Any
    post: Post = field(default_factory=Post)
    name: str = "idle"

    def view(self, fresh: bool, seconds: float) -> View:
        """The one."""
        return View({0: 0})

    def send(self, replica: int, request: Request) -> Any:
        """To the actor."""
        return self.post.send(self.replica, request)

    def report(self, replica: int) -> None:
        """Nobody is told."""
