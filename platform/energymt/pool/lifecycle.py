"""Pools come and go: started in the Ray that this process has joined, looked at, ended without a trace."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError
from ray.util.placement_group import PlacementGroup

from energymt.errors import EnergyUnavailable, ResourceError
from energymt.pool import actors
from energymt.pool.settings import PoolConfig, find_estimator
from energymt.pool.supervisor import Supervisor

FREE_SECONDS = 5.0  # that Ray takes at most to hear that an actor's resources are free again
GROUP_SECONDS = 60.0  # for the resources of a pool
ANSWER_SECONDS = 10.0  # for the supervisor
RESTART_SECONDS = 60.0  # for a supervisor whose process ended and is being started again


def up(name: str, config: PoolConfig, wait: float = 600.0) -> dict[str, Any]:
    """Start a pool and wait until all its replicas serve; one that is up already stays as it is. Returns its status.

    Raises:
        StorageError, ConfigurationError: there is no such estimator.
        ResourceError: the cluster has not the CPUs or GPUs that the pool asks for.
        EnergyUnavailable: its replicas do not start; nothing is left behind.
    """
    if actors.find(actors.supervisor_name(name)) is None:
        find_estimator(config)
        _reserve(name, config)
        options: dict[str, Any] = {
            "name": actors.supervisor_name(name),
            "namespace": actors.NAMESPACE,
            "lifetime": "detached",
            "num_cpus": 0,
            "max_restarts": -1,
            "max_concurrency": actors.CALLS_AT_ONCE,
            "scheduling_strategy": "DEFAULT",
            "get_if_exists": True,
        }
        ray.remote(Supervisor).options(**options).remote(name, config)
    until = time.monotonic() + wait
    try:
        while True:
            found = _first_status(name, until)
            serving = [row for row in found["replicas"] if row["state"] == "healthy"]
            if len(serving) >= config.replicas:
                return found
            if found["gave_up"] or time.monotonic() > until:
                raise EnergyUnavailable(
                    f"The energy pool {name} does not start ({found['trouble'] or 'too slow'}); nothing of it is left."
                )
            time.sleep(0.2)
    except BaseException:
        down(name)
        raise


def _short(need: dict[str, float], have: dict[str, float]) -> list[str]:
    """Of what there is too little."""
    return [kind for kind, amount in need.items() if amount > have.get(kind, 0.0) + 1e-6]


def _reserve(name: str, config: PoolConfig) -> None:
    """Take the resources of the first replicas, or say what is missing."""
    need = {"CPU": config.cpus * config.replicas, "GPU": config.gpus * config.replicas}
    until = time.monotonic() + FREE_SECONDS
    for resources, word in ((ray.cluster_resources, "has"), (ray.available_resources, "has free")):
        while short := _short(need, have := resources()):  # type: ignore[no-untyped-call]
            if word == "has free" and time.monotonic() < until:
                time.sleep(0.25)
                continue
            wanted = " and ".join(f"{need[kind]:g} {kind}s" for kind in short)
            there = " and ".join(f"{have.get(kind, 0.0):g}" for kind in short)
            raise ResourceError(
                f"The energy pool {name} needs {wanted} ({config.replicas} replicas of {config.cpus:g} CPUs and "
                f"{config.gpus:g} GPUs), and the cluster {word} {there}: ask for fewer or smaller replicas."
            )
    bundle = {kind: amount for kind, amount in (("CPU", config.cpus), ("GPU", config.gpus)) if amount > 0}
    group = ray.util.placement_group(
        [bundle] * config.replicas, strategy="PACK", name=actors.group_name(name), lifetime="detached"
    )
    try:
        ray.get(group.ready(), timeout=GROUP_SECONDS)
    except GetTimeoutError:
        ray.util.remove_placement_group(group)
        raise ResourceError(
            f"The energy pool {name} got no {config.replicas} × {bundle} within {GROUP_SECONDS:.0f} s: no node has "
            f"room for a replica, or others took it; ask for smaller replicas."
        ) from None


def _first_status(name: str, until: float) -> dict[str, Any]:
    """The status of a pool whose supervisor may just be starting."""
    while True:
        try:
            return status(name)
        except EnergyUnavailable:
            if time.monotonic() > until:
                raise


def status(name: str) -> dict[str, Any]:
    """What a pool says of itself; see `Supervisor.status`. A supervisor that is just being restarted is waited for.

    Raises:
        EnergyUnavailable: there is no such pool, or its supervisor does not answer.
    """
    until = time.monotonic() + RESTART_SECONDS
    while True:
        supervisor = actors.find(actors.supervisor_name(name))
        if supervisor is None:
            raise EnergyUnavailable(f"There is no energy pool {name} in this Ray: start it by `energymt pool up`.")
        try:
            found: dict[str, Any] = ray.get(supervisor.status.remote(), timeout=ANSWER_SECONDS)
        except (GetTimeoutError, RayError) as error:
            restarting = isinstance(error, ActorUnavailableError)
            if not restarting or time.monotonic() > until:
                raise EnergyUnavailable(
                    f"The supervisor of the energy pool {name} does not answer "
                    f"({' '.join(str(error).split())[:200]}); end the pool by `energymt pool down`."
                ) from None
            time.sleep(0.5)
        else:
            return found


def names() -> list[str]:
    """The pools of this Ray."""
    prefix = actors.supervisor_name("")
    found = [str(entry["name"]) for entry in ray.util.list_named_actors(all_namespaces=True)]
    return sorted(name.removeprefix(prefix) for name in found if name.startswith(prefix) and "-replica-" not in name)


def down(name: str) -> int:
    """End a pool: supervisor, replicas, and what it had reserved. How many actors that were."""
    ended = 0
    supervisor = actors.find(actors.supervisor_name(name))
    if supervisor is not None:
        with suppress(GetTimeoutError, RayError):
            ended += ray.get(supervisor.stop.remote(), timeout=ANSWER_SECONDS)
        actors.end(supervisor)
        ended += 1
    for actor in actors.replicas_of(name).values():
        actors.end(actor)
        ended += 1
    for number, entry in ray.util.placement_group_table().items():
        if entry["name"] == actors.group_name(name) and entry["state"] != "REMOVED":
            ray.util.remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(number))))
    return ended
