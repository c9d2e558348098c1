"""`energymt pool up`, `status` and `down`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from energymt.commands.training import Settings, Tracking
from energymt.errors import INTERRUPTED
from energymt.pool.naming import DEFAULT, command

app = typer.Typer(no_args_is_help=True)

RECORD_SECONDS = 5.0  # between two points of a recorded pool
Name = Annotated[str, typer.Option(help="Name of the pool.")]


@app.command("up")
def up(
    estimator: Annotated[
        str, typer.Argument(help="Address of an estimator folder, or package.module:function that makes one.")
    ],
    replicas: Annotated[int, typer.Option(min=1, help="Replicas.")] = 1,
    settings: Settings = None,
    name: Name = DEFAULT,
    cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs that a new Ray counts. Default: this machine's.")
    ] = None,
) -> int:
    """Start a pool of replicas that serve an estimator's scores and gradients; it runs until `pool down`.

    One that is up already stays as it is, and other settings for it are refused. Keys of --set: `energymt pool keys`.
    """
    from ray.exceptions import RayError

    from energymt.configuration import read_config
    from energymt.pool import ground, lifecycle
    from energymt.pool.settings import PoolConfig, pinned

    config = read_config(PoolConfig, None, [f"estimator={estimator}", f"replicas={replicas}", *(settings or ())])
    config = pinned(config)  # before a Ray is started for it
    started = ground.start_or_join(cpus)
    try:
        known = name in lifecycle.names()
        found = lifecycle.up(name, config)
    except BaseException as error:  # Ctrl-C, too, leaves no Ray without a pool
        there: list[str] = []
        with suppress(RayError):  # if that is gone as well
            there = lifecycle.names()
        if started and not there:  # else another terminal may be about to start a pool in it
            ground.end()
        if not isinstance(error, KeyboardInterrupt):
            raise
        left = "it was up before and stays" if name in there else "nothing of it is left"
        typer.echo(f"Interrupted before the energy pool {name} served: {left}.", err=True)
        return INTERRUPTED
    how = "up already" if known else "up"
    typer.echo(f"The energy pool {name} is {how}: {len(found['replicas'])} replica(s) of {found['estimator']}.")
    typer.echo(f"Look at it by {command('status', name)}, end it by {command('down', name)}.", err=True)
    return 0


@app.command("status")
def status(
    name: Name = DEFAULT,
    watch: Annotated[bool, typer.Option("--watch", help="Show it live until Ctrl-C.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file instead.")] = None,
    record: Annotated[
        str | None, typer.Option(help="Name of an MLflow run that gets the numbers too; with --watch, all the time.")
    ] = None,
    tracking: Tracking = None,
) -> int:
    """Version, queues, batch fill, waiting times, restarts and leases of a pool."""
    from energymt.pool import ground

    ground.join()  # says at once that there is none; what follows takes seconds to import
    from energymt.pool import lifecycle, table

    found = lifecycle.status(name)
    with recording(name, record, tracking) as keep:
        keep(found)
        if json_file is not None:
            json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        elif not watch:
            table.show(found)
        else:
            _watch(name, found, keep)
    return 0


def _watch(name: str, found: dict[str, Any], keep: Callable[[dict[str, Any]], None]) -> None:
    from rich.live import Live

    from energymt.pool import lifecycle, table

    with Live(table.render(found), refresh_per_second=4) as live:
        while True:
            time.sleep(1.0)
            found = lifecycle.status(name)
            live.update(table.render(found))
            keep(found)


@contextmanager
def recording(pool: str, run: str | None, tracking: str | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes what it is given to an MLflow run, at most every few seconds."""
    if run is None:
        yield lambda found: None
        return
    from energymt.pool.telemetry import numbers
    from energymt.storage import runs_root
    from energymt.tracking import open_tracker

    tracker = open_tracker(tracking, "energymt-pools", run, runs_root() / "pools" / run)
    tracker.tags({"pool": pool})
    last = -RECORD_SECONDS

    def keep(found: dict[str, Any]) -> None:
        nonlocal last
        if found["seconds"] - last >= RECORD_SECONDS:
            last = found["seconds"]
            tracker.metrics({f"pool/{key}": value for key, value in numbers(found).items()}, int(last))

    try:
        yield keep
    finally:
        left = tracker.finish("FINISHED")
        if left:
            typer.echo(left, err=True)


@app.command("down")
def down(name: Name = DEFAULT) -> int:
    """End a pool; with the last pool of this machine, also the Ray that `pool up` started."""
    from energymt.pool import ground

    ground.join()
    from energymt.pool import lifecycle

    try:
        ended = lifecycle.down(name)
    finally:
        last = not lifecycle.names() and ground.end()
    typer.echo(f"The energy pool {name} is down ({ended} actors ended{'; Ray too' if last else ''}).")
    return 0


@app.command("keys")
def keys() -> None:
    """Print every key of a pool with its default and unit."""
    from energymt.configuration import describe_keys
    from energymt.pool.settings import PoolConfig

    typer.echo("\n".join(describe_keys(PoolConfig)))
