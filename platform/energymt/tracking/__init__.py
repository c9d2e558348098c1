"""Where a run writes what it did: parameters, metrics, artifacts. Training waits for none of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from energymt.storage import runs_root

NO_TRACKING = "none"

# MLflow's own defaults (120 s, seven retries) would hold a thread for minutes; so these are set before it is imported.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT", "300")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")


class Tracker(Protocol):
    """What training tells of a run."""

    def params(self, values: dict[str, Any]) -> None:
        """Settings of the run, flat keys."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Numbers at an optimizer step."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """A file or folder to keep with the run, under `folder`."""

    def tags(self, values: dict[str, str]) -> None:
        """Words to find the run by."""

    def finish(self, status: str) -> str:
        """End the run as FINISHED, FAILED or KILLED; returns a sentence about what could not be sent, or ''."""


class NullTracker:
    """Tracks nothing: `--tracking none`."""

    def params(self, values: dict[str, Any]) -> None:
        """Do nothing."""

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Do nothing."""

    def artifact(self, path: Path, folder: str = "") -> None:
        """Do nothing."""

    def tags(self, values: dict[str, str]) -> None:
        """Do nothing."""

    def finish(self, status: str) -> str:
        """Nothing is left to send."""
        return ""


def tracking_uri(uri: str | None = None) -> str:
    """The MLflow store: `uri`, else the variable MLFLOW_TRACKING_URI, else sqlite in the folder of all runs.

    The path of the default is absolute: MLflow's own default follows the current folder, and Ray workers change it.
    """
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs_root() / 'mlflow.db'}"


def open_tracker(
    uri: str | None,
    experiment: str,
    run_name: str,
    run_folder: Path,
    *,
    parent_run_id: str | None = None,
) -> Tracker:
    """The tracker of a run: MLflow at `uri` (None: the default store), or none for the word `none`.

    A run folder that was tracked before goes on in the same MLflow run. `run_folder` also holds the records that
    are not sent yet. Nothing here waits for a server.
    """
    if uri == NO_TRACKING:
        return NullTracker()
    from energymt.tracking.mlflow import MlflowTracker

    return MlflowTracker(tracking_uri(uri), experiment, run_name, run_folder, parent=parent_run_id)
