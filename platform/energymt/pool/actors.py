"""The pool in Ray: what its actors are called, how they are started, found and ended."""

from __future__ import annotations

import os
import platform
import signal
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError

from energymt.pool.settings import PoolConfig, ReplicaPlan

NAMESPACE = "energymt"
CALLS_AT_ONCE = 1000  # of one actor: they wait in its queue, not in Ray's


def supervisor_name(pool: str) -> str:
    """Of a pool's supervisor."""
    return f"pool-{pool}"


def replica_name(pool: str, number: int) -> str:
    """Of a replica's actor."""
    return f"pool-{pool}-replica-{number}"


def group_name(pool: str) -> str:
    """Of the placement group that holds the first replicas."""
    return f"pool-{pool}"


def start_replica(pool: str, config: PoolConfig, number: int, version: int, group: Any = None) -> Any:
    """Start a replica's actor, or find it where it runs; its constructor goes on in the background."""
    from energymt.pool.replica import Replica

    options: dict[str, Any] = {
        "name": replica_name(pool, number),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "num_cpus": config.cpus,
        "num_gpus": config.gpus,
        "max_restarts": 0,  # the supervisor replaces it
        "max_concurrency": CALLS_AT_ONCE,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(config.threads)}},
        "get_if_exists": True,
    }
    if group is not None:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group)
    else:
        options["scheduling_strategy"] = "DEFAULT"
    return ray.remote(Replica).options(**options).remote(ReplicaPlan(config, number, version))


def find(name: str) -> Any | None:
    """The actor of that name, or None."""
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def replicas_of(pool: str) -> dict[int, Any]:
    """The actors of a pool that are there, by number."""
    prefix = replica_name(pool, 0)[:-1]
    found = {}
    for entry in ray.util.list_named_actors(all_namespaces=True):
        name = str(entry["name"])
        if entry["namespace"] == NAMESPACE and name.startswith(prefix) and name[len(prefix) :].isdigit():
            actor = find(name)
            if actor is not None:
                found[int(name[len(prefix) :])] = actor
    return found


def end(actor: Any) -> None:
    """End an actor for good."""
    with suppress(RayError, ValueError):
        ray.kill(actor, no_restart=True)


def lives(process: int, node: str) -> bool:
    """Whether it is a process of this machine that runs."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return node == platform.node()


def end_process(process: int, node: str) -> None:
    """Kill a process of this machine, if it is still there."""
    if node == platform.node():
        with suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)
