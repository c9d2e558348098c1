"""Where a result comes from is written down: settings, revision, versions."""

import json
import subprocess
from pathlib import Path

import torch

from energymt.tracking.mlflow import MlflowTracker
from energymt.tracking.outbox import run_id_of
from energymt.tracking.provenance import describe_run, flat, git_state


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_settings_become_flat() -> None:
    assert flat({"a": 1, "b": {"c": 2, "d": {"e": None, "f": [1]}}}) == {"a": 1, "b.c": 2, "b.d.f": [1]}


def test_the_revision_and_uncommitted_changes_are_seen(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {}
    git(tmp_path, "init")
    (tmp_path / "a").write_text("1")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-m", "one")
    clean = git_state(tmp_path)
    assert len(clean["git_revision"]) == 40 and clean["git_dirty"] == "false"
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path) == clean | {"git_dirty": "true"}


def test_a_run_is_described_in_its_folder_and_in_mlflow(uri: str, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    tracker = MlflowTracker(uri, "demo", "a", tmp_path / "a")
    facts = describe_run(tracker, "engine", {"seed": 3, "optimizer": {"learning_rate": 1e-4}}, tmp_path / "a")
    assert tracker.finish("FINISHED") == ""
    assert facts["package.torch"] == torch.__version__
    written = json.loads((tmp_path / "a" / "provenance.json").read_text())
    assert written["config"] == {"seed": 3, "optimizer": {"learning_rate": 1e-4}}
    run = MlflowClient(tracking_uri=uri).get_run(run_id_of(tmp_path / "a"))
    assert run.data.params["optimizer.learning_rate"] == "0.0001" and run.data.params["trainable"] == "engine"
    assert run.data.tags["seed"] == "3" and run.data.tags["package.torch"] == torch.__version__
