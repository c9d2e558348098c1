"""A pool in numbers, and an MLflow run that gets them."""

from pathlib import Path

import pytest

from energymt.commands.pool import recording
from energymt.pool.telemetry import WORDS, numbers

STATUS = {
    "version": 3,
    "seconds": 12.0,
    "leases": [{"label": "here:1", "seconds": 2.0}],
    "replicas": [
        {"state": "healthy", "restarts": 1, "served": 5, "sentences": 40, "flagged": 2, "refused": 1, "queued": 7}
        | {"fill": 0.5, "wait_p50": 0.002, "wait_p95": 0.01, "latency_p50": 0.03, "latency_p95": 0.2},
        {"state": "suspect", "restarts": 0, "served": 1, "sentences": 8, "flagged": 0, "refused": 0, "queued": 1}
        | {"fill": 0.1, "wait_p50": 0.004, "wait_p95": 0.006, "latency_p50": 0.02, "latency_p95": 0.1},
        {"state": "restarting", "restarts": 2, "wait_p50": 0.0, "wait_p95": 0.0, "latency_p50": 0.0}
        | {"latency_p95": 0.0},
    ],
}


def test_numbers_add_up_over_replicas() -> None:
    found = numbers(STATUS)
    assert found.keys() == WORDS.keys()
    counts = {"version": 3, "serving": 2, "restarts": 3, "callers": 1, "requests": 6, "sentences": 48, "queue": 8}
    assert {key: found[key] for key in counts} == counts
    assert found["fill"] == pytest.approx(0.2)
    times = [found[key] for key in ("wait_p50_ms", "wait_p95_ms", "answer_p50_ms", "answer_p95_ms")]
    assert times == pytest.approx([4.0, 10.0, 30.0, 200.0])


def test_a_pool_without_replicas_has_numbers_too() -> None:
    assert numbers({"version": 0, "leases": [], "replicas": []}) == dict.fromkeys(WORDS, 0.0)


def test_a_recorded_pool_stands_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A point every few seconds, however often it is looked at."""
    from mlflow import MlflowClient

    monkeypatch.setenv("ENERGYMT_RUNS", str(tmp_path))
    with recording("default", "kiwi-monday", None) as keep:
        for seconds in (12.0, 13.0, 14.0, 20.0):
            keep({**STATUS, "seconds": seconds})
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    [run] = client.search_runs([client.get_experiment_by_name("energymt-pools").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["pool"]) == ("kiwi-monday", "FINISHED", "default")
    assert run.data.metrics["pool/queue"] == 8.0
    assert [point.step for point in client.get_metric_history(run.info.run_id, "pool/version")] == [12, 20]
