"""Pools come and go: started in the Ray that this process has joined, looked at, ended without a trace."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError, RaySystemError
from ray.util.placement_group import PlacementGroup

from energymt.errors import ConfigurationError, EnergyUnavailable, ResourceError
from energymt.pool import actors
from energymt.pool.fleet import SERVING
from energymt.pool.naming import command, missing
from energymt.pool.settings import PoolConfig, pinned
from energymt.pool.supervisor import Supervisor

logger = logging.getLogger(__name__)

FREE_SECONDS = 5.0  # that Ray takes at most to hear that an actor's resources are free again
GROUP_SECONDS = 60.0  # for the resources of a pool
ANSWER_SECONDS = 10.0  # for the supervisor
RESTART_SECONDS = 60.0  # for a supervisor whose process ended and is being started again


def up(name: str, config: PoolConfig, wait: float = 600.0) -> dict[str, Any]:
    """Start a pool and wait until all its replicas serve. Returns its status.

    One that is up already stays, whatever comes: it may have callers.

    Raises:
        StorageError, ConfigurationError: there is no such estimator.
        ConfigurationError: a pool of this name is up with other settings.
        ResourceError: the cluster has not the CPUs or GPUs that the pool asks for.
        EnergyUnavailable: its replicas do not start; nothing is left behind of a pool that was started here.
    """
    config, until = pinned(config), time.monotonic() + wait
    if actors.find(actors.supervisor_name(name)) is not None:
        return _join(name, config, until)
    try:
        group = _reserve(name, config)
    except RaySystemError:  # the name of its placement group is taken: another terminal was faster
        _await_supervisor(name)
        return _join(name, config, until)
    options: dict[str, Any] = {
        "name": actors.supervisor_name(name),
        "namespace": actors.NAMESPACE,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
        "max_concurrency": actors.CALLS_AT_ONCE,
        "scheduling_strategy": "DEFAULT",
    }
    try:
        ray.remote(Supervisor).options(**options).remote(name, config)
    except BaseException:  # Ctrl-C, too, leaves nothing behind
        ray.util.remove_placement_group(group)
        raise
    try:
        found = _all_serving(name, config, until)
        if not _serves(found, config):
            raise EnergyUnavailable(
                f"The energy pool {name} does not start ({found['trouble'] or 'too slow'}); nothing of it is left."
            )
    except BaseException:
        _remove(name)
        raise
    return found


def _join(name: str, config: PoolConfig, until: float) -> dict[str, Any]:
    """The status of a pool that is up, as soon as all its replicas serve."""
    there, wanted = _first_status(name, until)["settings"], config.model_dump(mode="json")
    other = {key: f"{key} is {there[key]} and not {value}" for key, value in wanted.items() if there[key] != value}
    if "estimator" in other:
        other.pop("fingerprint", None)  # goes without saying
    if other:
        raise ConfigurationError(
            f"The energy pool {name} is up with other settings ({', '.join(other.values())}): ask for the same, "
            f"choose another name by --name, or end it by {command('down', name)} before."
        )
    found = _all_serving(name, config, until)
    if not _serves(found, config):
        raise EnergyUnavailable(
            f"The energy pool {name} is up already and not all its replicas serve ({found['trouble'] or 'too slow'}): "
            f"see {command('status', name)}, and end it by {command('down', name)} if it does not recover."
        )
    return found


def _await_supervisor(name: str) -> None:
    """Until a pool that is being started elsewhere has one."""
    until = time.monotonic() + GROUP_SECONDS
    while actors.find(actors.supervisor_name(name)) is None:
        if time.monotonic() > until:
            raise EnergyUnavailable(
                f"The room of the energy pool {name} is taken by a `pool up` that has not come to its end: free it by "
                f"{command('down', name)} and try again."
            )
        time.sleep(0.2)


def _serves(found: dict[str, Any], config: PoolConfig) -> bool:
    return sum(row["state"] in SERVING for row in found["replicas"]) >= config.replicas


def _all_serving(name: str, config: PoolConfig, until: float) -> dict[str, Any]:
    """The status of a pool when all its replicas serve, one was given up, or the time is over."""
    while True:
        found = _first_status(name, until)
        if _serves(found, config) or found["gave_up"] or time.monotonic() > until:
            return found
        time.sleep(0.2)


def _short(need: dict[str, float], have: dict[str, float]) -> list[str]:
    """Of what there is too little."""
    return [kind for kind, amount in need.items() if amount > have.get(kind, 0.0) + 1e-6]


def _need(config: PoolConfig, replicas: int) -> dict[str, float]:
    return {"CPU": config.cpus * replicas, "GPU": config.gpus * replicas}


def _reserve(name: str, config: PoolConfig) -> PlacementGroup:
    """Take the resources of the first replicas, or say what is missing; a cluster that grows may have room for more."""
    until, need = time.monotonic() + FREE_SECONDS, _need(config, config.replicas)
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
    most = _need(config, config.most_replicas or config.replicas)
    if _short(most, ray.cluster_resources()):  # type: ignore[no-untyped-call]
        logger.warning(
            "most_replicas is %d, and the cluster has no room for so many now: the pool %s grows to what finds room.",
            config.most_replicas,
            name,
        )
    bundle = {kind: amount for kind, amount in (("CPU", config.cpus), ("GPU", config.gpus)) if amount > 0}
    group = ray.util.placement_group(
        [bundle] * config.replicas, strategy="PACK", name=actors.group_name(name), lifetime="detached"
    )
    try:
        ray.get(group.ready(), timeout=GROUP_SECONDS)
    except BaseException as error:
        ray.util.remove_placement_group(group)
        if not isinstance(error, GetTimeoutError):
            raise
        raise ResourceError(
            f"The energy pool {name} got no {config.replicas} × {bundle} within {GROUP_SECONDS:.0f} s: no node has "
            f"room for a replica, or others took it; ask for smaller replicas."
        ) from None
    return group


def _first_status(name: str, until: float) -> dict[str, Any]:
    """The status of a pool whose supervisor may just be starting."""
    while True:
        try:
            return status(name)
        except EnergyUnavailable:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def status(name: str) -> dict[str, Any]:
    """What a pool says of itself; see `Supervisor.status`. A supervisor that is just being restarted is waited for.

    Raises:
        EnergyUnavailable: there is no such pool, or its supervisor does not answer.
    """
    until = time.monotonic() + RESTART_SECONDS
    while True:
        supervisor = actors.find(actors.supervisor_name(name))
        if supervisor is None:
            raise EnergyUnavailable(missing(name, names()))
        try:
            found: dict[str, Any] = ray.get(supervisor.status.remote(), timeout=ANSWER_SECONDS)
        except (GetTimeoutError, RayError) as error:
            restarting = isinstance(error, ActorUnavailableError)
            if not restarting or time.monotonic() > until:
                raise EnergyUnavailable(
                    f"The supervisor of the energy pool {name} does not answer "
                    f"({' '.join(str(error).split())[:200]}); end the pool by {command('down', name)}."
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
    """End a pool: supervisor, replicas, and what it had reserved. How many actors that were.

    Raises:
        EnergyUnavailable: there is nothing of such a pool.
    """
    ended, freed = _remove(name)
    if not ended and not freed:
        raise EnergyUnavailable(missing(name, names()))
    return ended


def _remove(name: str) -> tuple[int, bool]:
    """How many actors ended, and whether room was freed."""
    ended, freed = 0, False
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
            freed = True
    return ended, freed
