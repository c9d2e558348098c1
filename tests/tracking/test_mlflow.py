"""The MLflow writer: what training says arrives once, and an outage never holds it up."""

import json
import socket
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from energymt.errors import StorageError
from energymt.storage import fetch, runs_root
from energymt.tracking import NullTracker, open_tracker, tracking_uri
from energymt.tracking.mlflow import MlflowTracker
from energymt.tracking.outbox import run_id_of


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(tracking_uri=uri).get_metric_history(run_id, key)]


def test_everything_a_run_says_arrives(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "runs" / "a"
    tracker = open_tracker(uri, "demo", "a", run_folder=folder)
    note = folder / "config.yaml"
    note.write_text("seed: 1\n")
    tracker.params({"seed": 1, "lr": 0.5})
    tracker.tags({"method": "engine"})
    for step in range(1, 4):
        tracker.metrics({"loss": 1.0 / step, "norm": float("nan")}, step)
    tracker.artifact(note)
    assert tracker.finish("FINISHED") == ""

    run = MlflowClient(tracking_uri=uri).get_run(run_id_of(folder))
    assert run.data.params == {"seed": "1", "lr": "0.5"}
    assert run.data.tags["method"] == "engine"
    assert run.info.run_name == "a" and run.info.status == "FINISHED"
    assert history(uri, run.info.run_id, "loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert len(history(uri, run.info.run_id, "norm")) == 3
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert (artifacts / "config.yaml").read_text() == "seed: 1\n"
    assert artifacts.is_relative_to(tmp_path / "runs" / "artifacts")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert fetch(f"runs:/{run.info.run_id}/config.yaml", cache=tmp_path / "cache").read_text() == "seed: 1\n"
    with pytest.raises(StorageError, match="could not be fetched"):
        fetch(f"runs:/{run.info.run_id}/none.yaml", cache=tmp_path / "cache")


def test_a_resumed_run_goes_on_in_its_own_run_and_repeats_no_step(uri: str, tmp_path: Path):
    folder = tmp_path / "runs" / "a"
    first = MlflowTracker(uri, "demo", "a", folder)
    first.params({"lr": 0.5})
    for step in range(1, 6):
        first.metrics({"loss": float(step)}, step)
    first.finish("KILLED")
    run_id = run_id_of(folder)

    second = MlflowTracker(uri, "demo", "a", folder)
    second.params({"lr": 0.25})
    for step in range(4, 8):  # the checkpoint was made at step 3
        second.metrics({"loss": float(step)}, step)
    assert second.finish("FINISHED") == ""

    assert run_id_of(folder) == run_id
    assert [step for step, _ in history(uri, run_id, "loss")] == [1, 2, 3, 4, 5, 6, 7]
    run = MlflowClient(tracking_uri=uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["lr"] == "0.5" and run.data.tags["resumed.lr"] == "0.25"
    assert len(MlflowClient(tracking_uri=uri).search_runs([run.info.experiment_id])) == 1


def test_an_outage_holds_nothing_up_and_loses_nothing(uri: str, tmp_path: Path):
    folder = tmp_path / "runs" / "a"
    away = f"http://127.0.0.1:{closed_port()}"
    tracker = MlflowTracker(away, "demo", "a", folder, flush_seconds=1.0)
    started = time.monotonic()
    for step in range(1, 201):
        tracker.metrics({"loss": float(step)}, step)
    assert time.monotonic() - started < 0.5
    sentence = tracker.finish("FINISHED")
    assert "201 records" in sentence and str(folder) in sentence and away in sentence

    later = MlflowTracker(uri, "demo", "a", folder)
    assert later.finish("FINISHED") == ""
    assert len(history(uri, run_id_of(folder), "loss")) == 200


def test_records_that_arrived_before_a_crash_are_not_doubled(uri: str, tmp_path: Path):
    folder = tmp_path / "runs" / "a"
    tracker = MlflowTracker(uri, "demo", "a", folder)
    for step in range(1, 4):
        tracker.metrics({"loss": float(step)}, step)
    tracker.finish("FINISHED")
    run_id = run_id_of(folder)
    state = folder / "tracking" / "state.json"
    # Killed after the request and before the note of it; and the note of the run id was lost as well.
    state.write_text(json.dumps(json.loads(state.read_text()) | {"sent": 0, "run_id": None}))
    MlflowTracker(uri, "demo", "a", folder).finish("FINISHED")
    assert run_id_of(folder) == run_id
    assert [step for step, _ in history(uri, run_id, "loss")] == [1, 2, 3]


def test_a_line_cut_by_a_crash_is_left_out(uri: str, tmp_path: Path):
    folder = tmp_path / "runs" / "a"
    tracker = MlflowTracker("http://127.0.0.1:9", "demo", "a", folder, flush_seconds=0.0)
    tracker.metrics({"loss": 1.0}, 1)
    tracker.metrics({"loss": 2.0}, 2)
    tracker.finish("KILLED")
    outbox = folder / "tracking" / "outbox.jsonl"
    lines = outbox.read_bytes().splitlines(keepends=True)
    outbox.write_bytes(lines[0] + lines[1][:20])
    again = MlflowTracker(uri, "demo", "a", folder)
    again.metrics({"loss": 2.5}, 2)
    assert again.finish("FINISHED") == ""
    assert history(uri, run_id_of(folder), "loss") == [(1, 1.0), (2, 2.5)]


def test_a_deleted_run_is_made_again_with_all_its_records(uri: str, tmp_path: Path):
    folder = tmp_path / "runs" / "a"
    tracker = MlflowTracker(uri, "demo", "a", folder)
    tracker.metrics({"loss": 1.0}, 1)
    tracker.finish("KILLED")
    gone = run_id_of(folder)
    MlflowClient(tracking_uri=uri).delete_run(gone)
    again = MlflowTracker(uri, "demo", "a", folder)
    again.metrics({"loss": 2.0}, 2)
    assert again.finish("FINISHED") == ""
    assert run_id_of(folder) != gone
    assert history(uri, run_id_of(folder), "loss") == [(1, 1.0), (2, 2.0)]


def test_a_child_finds_the_run_of_its_parent_folder(uri: str, tmp_path: Path):
    parent = MlflowTracker(uri, "demo", "sweep", tmp_path / "runs" / "sweep")
    child = MlflowTracker(uri, "demo", "cell", tmp_path / "runs" / "sweep" / "cell", parent=tmp_path / "runs" / "sweep")
    parent.tags({"kind": "sweep"})
    child.metrics({"loss": 1.0}, 1)
    assert child.flush(60) and child.finish("FINISHED") == "" and parent.finish("FINISHED") == ""
    run = MlflowClient(tracking_uri=uri).get_run(run_id_of(tmp_path / "runs" / "sweep" / "cell"))
    assert run.data.tags["mlflow.parentRunId"] == run_id_of(tmp_path / "runs" / "sweep")


def test_one_refused_record_does_not_stop_the_others(uri: str, tmp_path: Path):
    tracker = MlflowTracker(uri, "demo", "a", tmp_path / "a")
    tracker.metrics({"loss": 1.0}, 1)
    tracker.metrics({"a name with a \n line break": 1.0}, 2)
    tracker.metrics({"loss": 3.0}, 3)
    assert tracker.finish("FINISHED") == ""
    assert history(uri, run_id_of(tmp_path / "a"), "loss") == [(1, 1.0), (3, 3.0)]


def test_the_default_store_does_not_follow_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("ENERGYMT_RUNS", str(tmp_path / "r"))
    assert tracking_uri() == f"sqlite:///{tmp_path}/r/mlflow.db"
    monkeypatch.delenv("ENERGYMT_RUNS")
    monkeypatch.chdir(tmp_path)
    assert runs_root() == tmp_path / "runs" and runs_root().is_absolute()


def test_no_tracking_writes_nothing(tmp_path: Path):
    tracker = open_tracker("none", "demo", "a", run_folder=tmp_path / "a")
    tracker.metrics({"loss": 1.0}, 1)
    assert isinstance(tracker, NullTracker) and tracker.finish("FINISHED") == ""
    assert not (tmp_path / "a").exists()
