"""`energymt doctor`, `ui`, `config` and `cluster`."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from energymt.commands.training import Config, Settings, Trainable
from energymt.errors import ResourceError, StorageError

config_app = typer.Typer(no_args_is_help=True)
cluster_app = typer.Typer(no_args_is_help=True)


def doctor() -> int:
    """Say what this machine has and what is missing."""
    from energymt.diagnosis import diagnose

    lines, healthy = diagnose()
    typer.echo("\n".join(lines))
    return 0 if healthy else 3


def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="Port on the loopback address.")] = 5000) -> int:
    """Open MLflow's pages on this machine (loopback only)."""
    from energymt.tracking import tracking_uri

    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        typer.echo(f"A server holds your runs and models: open {uri}", err=True)
        return 0
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not file.is_file():
        raise StorageError(
            f"{file} is not there, so nothing has been trained yet; train, or set ENERGYMT_RUNS or MLFLOW_TRACKING_URI."
        )
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind(("127.0.0.1", port))
        except OSError as error:
            raise ResourceError(f"Port {port} cannot be had ({error.strerror}); choose another by --port.") from None
    typer.echo(f"Runs and models of {uri}: http://127.0.0.1:{port} (Ctrl-C ends it)", err=True)
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    sys.stderr.flush()
    os.execv(sys.executable, [*command, "--port", str(port)])  # so that whoever ends this process ends the server


@config_app.command("show")
def show(trainable: Trainable, config: Config = None, settings: Settings = None) -> None:
    """Print the resolved configuration as YAML."""
    import yaml

    from energymt import runs
    from energymt.configuration import read_config

    resolved = read_config(runs.load_trainable(trainable).Config, config, settings or ())
    typer.echo(yaml.safe_dump(resolved.model_dump(mode="json"), sort_keys=False).rstrip())


@config_app.command("keys")
def keys(trainable: Trainable) -> None:
    """Print every key of a trainable with its default, unit and source."""
    from energymt import runs
    from energymt.configuration import describe_keys

    typer.echo("\n".join(describe_keys(runs.load_trainable(trainable).Config)))


@config_app.command("variants")
def variants() -> None:
    """Print the named sizes of models."""
    from energymt.models.estimator_variants import ESTIMATORS
    from energymt.models.variants import VARIANTS

    for name, config in {**VARIANTS, **ESTIMATORS}.items():
        typer.echo(f"{name:20} " + "  ".join(f"{key} {value}" for key, value in config.model_dump().items()))


@cluster_app.command("check")
def check(file: Annotated[Path, typer.Argument(help="A cluster file for `ray up`.")] = Path("cluster.yaml")) -> None:
    """Validate a cluster file without any cloud."""
    from energymt.cluster.cluster_file import validate_cluster_file

    validate_cluster_file(file)
    typer.echo(f"{file} is a valid cluster file.")


COMMANDS: list[Any] = [doctor, ui]
