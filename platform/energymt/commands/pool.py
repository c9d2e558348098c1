"""`energymt pool up`, `status` and `down`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from energymt.commands.training import Settings

app = typer.Typer(no_args_is_help=True)

Name = Annotated[str, typer.Option(help="Name of the pool.")]


@app.command("up")
def up(
    estimator: Annotated[
        str, typer.Argument(help="Address of an estimator folder, or package.module:function that makes one.")
    ],
    replicas: Annotated[int, typer.Option(min=1, help="Replicas.")] = 1,
    settings: Settings = None,
    name: Name = "default",
    cpus: Annotated[
        int | None, typer.Option(min=1, help="CPUs that a new Ray counts. Default: this machine's.")
    ] = None,
) -> int:
    """Start a pool of replicas that serve an estimator's scores and gradients; it runs until `pool down`.

    Keys of --set: `energymt pool keys`.
    """
    from energymt.configuration import read_config
    from energymt.pool import ground, lifecycle
    from energymt.pool.settings import PoolConfig

    config = read_config(PoolConfig, None, [f"estimator={estimator}", f"replicas={replicas}", *(settings or ())])
    ground.start_or_join(cpus)
    found = lifecycle.up(name, config)
    typer.echo(f"The energy pool {name} is up: {len(found['replicas'])} replica(s) of {found['estimator']}.")
    typer.echo("Look at it by `energymt pool status`, end it by `energymt pool down`.", err=True)
    return 0


@app.command("status")
def status(
    name: Name = "default",
    watch: Annotated[bool, typer.Option("--watch", help="Show it live until Ctrl-C.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file instead.")] = None,
) -> int:
    """Version, queues, batch fill, waiting times, restarts and leases of a pool."""
    import time

    from energymt.pool import ground, lifecycle, table

    ground.join()
    found = lifecycle.status(name)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return 0
    if not watch:
        table.show(found)
        return 0
    from rich.live import Live

    with Live(table.render(found), refresh_per_second=4) as live:
        while True:
            time.sleep(1.0)
            live.update(table.render(lifecycle.status(name)))


@app.command("down")
def down(name: Name = "default") -> int:
    """End a pool; with the last pool of this machine, also the Ray that `pool up` started."""
    from energymt.pool import ground, lifecycle

    ground.join()
    ended = lifecycle.down(name)
    left = lifecycle.names()
    last = not left and ground.end()
    typer.echo(f"The energy pool {name} is down ({ended} actors ended{'; Ray too' if last else ''}).")
    return 0


@app.command("keys")
def keys() -> None:
    """Print every key of a pool with its default and unit."""
    from energymt.configuration import describe_keys
    from energymt.pool.settings import PoolConfig

    typer.echo("\n".join(describe_keys(PoolConfig)))
