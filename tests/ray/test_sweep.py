"""Sweeps: cells, nested MLflow runs, the best model in the registry, and going on after the driver was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow.tracking import MlflowClient

from energymt import runs
from energymt.cluster.outcomes import table
from energymt.data.toy import ToyLanguage
from energymt.errors import ConfigurationError, ResourceError
from energymt.sweep import describe, run_sweep
from energymt.tracking import NullTracker
from energymt.tracking.outbox import run_id_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]
HERE = Path(__file__).parent


def write(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(settings))
    return path


def engine_settings(toy: dict[str, Any], teacher: Path) -> dict[str, Any]:
    kept = {key: value for key, value in toy.items() if key not in ("vocabulary", "steps")}
    return {**kept, "teacher": str(teacher), "model": {"variant": "masked-toy"}}


def test_four_trials_to_a_registered_model(local_ray: Path, toy: dict[str, Any], tmp_path: Path) -> None:
    from trainables.supervised import Config

    teacher = local_ray / "teacher"
    teacher.mkdir()
    runs.train("supervised", Config.model_validate({**toy, "steps": 3}), teacher, NullTracker(), lambda text: None)
    config = write(tmp_path / "engine.yaml", engine_settings(toy, teacher / "model"))
    echoed: list[str] = []
    uri = f"sqlite:///{local_ray}/mlflow.db"
    result = run_sweep(
        "toy_operators",
        ["steps=4", "evaluate_every=2", "log_every=1"],
        config=config,
        tracking=uri,
        register="toy",
        echo=echoed.append,
    )
    assert [row.status for row in result.rows] == ["finished"] * 4 and not result.interrupted
    assert {(row.values["feed"], row.values["score"]) for row in result.rows} == {
        (feed, score) for feed in ("SX", "ST") for score in ("SX", "ST")
    }
    values = [row.value for row in result.rows]
    assert values == sorted(values) and "dev/energy" in table(result.rows, result.metric).splitlines()[0]
    assert echoed[0].startswith("4 trials, 2 at a time") and sum("energy" in text for text in echoed) >= 8

    client = MlflowClient(tracking_uri=uri)
    parent = client.get_run(run_id_of(result.folder))
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len(children) == 4 and parent.info.status == "FINISHED" and parent.data.tags["best"] == result.rows[0].cell
    for child in children:
        assert child.info.status == "FINISHED" and child.data.tags["outcome"] == "finished"
        history = client.get_metric_history(child.info.run_id, "train/energy")
        assert [metric.step for metric in history] == [1, 2, 3, 4]
        assert child.data.params["feed"] == child.data.tags["cell.feed"]

    version = client.get_model_version_by_alias("toy", "champion")
    assert version.run_id == run_id_of(result.rows[0].folder) and version.tags["cell"] == result.rows[0].cell
    mlflow.set_tracking_uri(uri)
    lines = ToyLanguage(1).sentences(2, seed=3).source
    translations = mlflow.pyfunc.load_model("models:/toy@champion").predict(lines, params={"iterations": 1})
    mlflow.set_tracking_uri(None)
    assert len(translations) == 2 and all(isinstance(text, str) for text in translations)


def test_a_sweep_is_described_and_refused_before_it_starts(
    local_ray: Path, toy: dict[str, Any], tmp_path: Path
) -> None:
    config = write(tmp_path / "engine.yaml", engine_settings(toy, tmp_path))
    text = describe("toy_operators", config)
    assert "4 trials of engine, 400 steps each" in text and text.count("feed=") == 4
    with pytest.raises(ConfigurationError, match=r"did you mean 'learning_rate'"):
        describe("toy_operators", config, ["optimizer.learning_rat=1"])
    with pytest.raises(ConfigurationError, match=r"no search space 'toy_operator'; known are .*toy_operators"):
        describe("toy_operator", config)
    with pytest.raises(ConfigurationError, match=r"lacks SPACE, METRIC, MODE, BUDGET"):
        describe("user_code.faulty", config)
    with pytest.raises(ResourceError, match=r"No trial fits: each needs 3 CPU, and of 2 in the cluster"):
        run_sweep("user_code.large", config=write(tmp_path / "c.yaml", toy), tracking="none", echo=lambda text: None)


def test_worse_trials_end_early_and_the_best_keep_their_models(
    local_ray: Path, toy: dict[str, Any], tmp_path: Path
) -> None:
    config = write(tmp_path / "c.yaml", {**toy, "evaluate_every": 2})
    result = run_sweep("user_code.halving", config=config, tracking="none", echo=lambda text: None)
    statuses = {row.values["optimizer.learning_rate"]: row.status for row in result.rows}
    assert result.rows[0].status == "finished" and statuses[1e-6] == "stopped early"
    for row in result.rows:
        assert (row.folder / "model").is_dir() == (row.status == "finished")
        assert (row.step < 12) == (row.status == "stopped early")


@pytest.mark.faults
def test_a_trial_of_two_workers_survives_the_death_of_one(local_ray: Path, toy: dict[str, Any], tmp_path: Path) -> None:
    note = tmp_path / "killed"
    config = write(tmp_path / "c.yaml", {**toy, "kill_note": str(note)})
    result = run_sweep("user_code.pairs", config=config, tracking="none", echo=lambda text: None)
    assert note.exists(), "no worker died"
    assert [row.status for row in result.rows] == ["finished"] * 2
    assert result.rows[0].value == pytest.approx(result.rows[1].value, rel=1e-5), (
        "the same training, dead worker or not"
    )


def command(arguments: list[str], home: Path, **options: Any) -> subprocess.Popen[str]:
    code = "import sys; from energymt.sweep import command; from pathlib import Path; " + (
        f"sys.exit(command('user_code.four', config=Path({arguments[0]!r}), resume={'resume' in arguments}))"
    )
    environment = {**os.environ, "ENERGYMT_RUNS": str(home), "PYTHONPATH": str(HERE), "RAY_worker_niceness": "0"}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, text=True, **options)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_killed_driver_goes_on_in_the_same_runs(toy: dict[str, Any], tmp_path: Path) -> None:
    config = str(write(tmp_path / "c.yaml", {**toy, "evaluate_every": 50, "checkpoint_every": 50}))
    folder = tmp_path / "sweeps" / "four"
    first = command([config], tmp_path, start_new_session=True)
    deadline = time.monotonic() + 400
    while not list(folder.glob("*/outcome.json")) or not any(run_id_of(path) for path in folder.glob("*=*")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    done = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/outcome.json")}
    before = {path.parent.parent.name: run_id_of(path.parent.parent) for path in folder.glob("*/tracking/state.json")}
    assert 0 < len(done) < 4 and any(before.values())

    second = command([config, "resume"], tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = second.communicate(timeout=400)
    assert second.returncode == 0, errors
    assert output.count("finished") == 2 and output.count("diverged") == 2
    for path in folder.glob("*/outcome.json"):
        if path.parent.name in done:
            assert path.stat().st_mtime_ns == done[path.parent.name], "a finished trial was trained again"
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    for name, run_id in before.items():
        if run_id is not None:
            assert run_id_of(folder / name) == run_id
    parent = client.get_run(run_id_of(folder))
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len(children) == 4
    for path in folder.glob("*/log.jsonl"):
        steps = {json.loads(line)["step"] for line in path.read_text().splitlines() if "train/nll" in line}
        history = client.get_metric_history(run_id_of(path.parent), "train/nll")
        assert sorted(metric.step for metric in history) == sorted(steps), "each step once"
