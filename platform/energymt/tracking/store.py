"""MLflow stores: how one is opened, and what counts as one that does not answer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from botocore.exceptions import BotoCoreError, ClientError
from filelock import FileLock
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

SQLITE, VARIABLE = "sqlite:///", "MLFLOW_TRACKING_URI"
OUTAGE = (mlflow.MlflowException, OSError, SQLAlchemyError, BotoCoreError, ClientError)


def open_client(uri: str) -> MlflowClient:
    """A client of a store. A sqlite file is made by one process at a time: two migrations at once would break it.

    It gets its name when all its tables are there: half of them, left by a process that was killed, are of no use.
    """
    if not uri.startswith(SQLITE):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    path = Path(uri.removeprefix(SQLITE))
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=60):
        if not path.exists():
            part = path.with_name(f".{path.name}.part")
            part.unlink(missing_ok=True)
            MlflowClient(tracking_uri=f"{SQLITE}{part}", registry_uri=f"{SQLITE}{part}").search_experiments(
                max_results=1
            )
            os.replace(part, path)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
    return client


def first_line(error: Exception) -> str:
    """What an error says, without the statement that failed."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300].rstrip(".")


def ensure_experiment(client: MlflowClient, uri: str, name: str) -> str:
    """The id of an experiment, made when it is missing; with sqlite its artifacts lie beside the database."""
    place = None
    if uri.startswith(SQLITE):
        place = (Path(uri.removeprefix(SQLITE)).parent / "artifacts").absolute().as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=place and f"{place}/{name}"))
        except mlflow.MlflowException as error:
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise error
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def is_active(client: MlflowClient, run_id: str) -> bool:
    """Whether the store has this run, and not in its bin."""
    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except mlflow.MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


@contextmanager
def current_store(uri: str) -> Iterator[None]:
    """Point MLflow's global functions at a store, and back afterwards."""
    before = os.environ.get(VARIABLE)  # MLflow writes there what it is told, so this holds either
    mlflow.set_tracking_uri(uri)
    registry = mlflow.get_registry_uri()  # follows the tracking store unless it was set
    if registry != uri:
        mlflow.set_registry_uri(uri)
    unset: Any = None
    try:
        yield
    finally:
        mlflow.set_tracking_uri(unset)
        if before is not None:
            os.environ[VARIABLE] = before
        if registry != uri:
            mlflow.set_registry_uri(registry)
