"""Training in Ray Train workers: the same curve as alone, and what happens when a worker dies or code is wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient

from energymt import runs
from energymt.errors import DivergenceError, EnergymtError
from energymt.tracking import NullTracker
from energymt.tracking.mlflow import MlflowTracker
from energymt.tracking.outbox import run_id_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def curve(folder: Path, name: str) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / runs.LOG).read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def test_two_workers_train_as_one(local_ray: Path, toy: dict[str, Any]) -> None:
    from energymt.cluster.launch import Workers, train_on_ray
    from trainables.supervised import Config

    config = Config.model_validate(toy)
    alone = local_ray / "alone"
    alone.mkdir()
    runs.train("supervised", config, alone, NullTracker(), lambda text: None)
    folder = local_ray / "two"
    folder.mkdir()
    uri = f"sqlite:///{local_ray}/mlflow.db"
    tracker, echoed = MlflowTracker(uri, "ray", "two", folder), []
    outcome = train_on_ray("supervised", config, folder, workers=Workers(2), tracker=tracker, echo=echoed.append)
    assert tracker.finish("FINISHED") == ""

    assert outcome.step == 10 and not outcome.interrupted and outcome.metrics["dev/bleu"] == outcome.best
    expected, got = curve(alone, "train/nll"), curve(folder, "train/nll")
    assert list(got) == list(range(1, 11)) and got == pytest.approx(expected, rel=1e-5)
    assert curve(folder, "train/gradient_norm") == pytest.approx(curve(alone, "train/gradient_norm"), rel=1e-3)
    assert (folder / "model" / "energymt.json").is_file()
    assert sum("dev" in text for text in echoed) == 2, "the user sees two evaluations, once each"
    client, run_id = MlflowClient(tracking_uri=uri), run_id_of(folder)
    history = client.get_metric_history(run_id, "train/nll")
    assert {metric.step: metric.value for metric in history} == got and len(history) == 10
    assert "final/bleu" in client.get_run(run_id).data.metrics


@pytest.mark.faults
def test_a_killed_worker_is_replaced_and_training_goes_on(local_ray: Path, toy: dict[str, Any]) -> None:
    from user_code.faulty import Config

    from energymt.cluster.launch import Workers, train_on_ray

    note = local_ray / "killed"
    config = Config.model_validate({**toy, "kill_at": 8, "kill_note": str(note)})
    folder = local_ray / "killed-run"
    folder.mkdir()
    echoed: list[str] = []
    outcome = train_on_ray("user_code.faulty", config, folder, workers=Workers(2), echo=echoed.append)
    assert note.exists(), "the worker did not die"
    assert outcome.step == 10
    steps = [json.loads(line)["step"] for line in (folder / runs.LOG).read_text().splitlines() if "train/nll" in line]
    assert steps[:7] == list(range(1, 8)) and steps[7:] == [6, 7, 8, 9, 10], "it went on from the checkpoint at 5"


@pytest.mark.faults
def test_what_the_user_must_mend_comes_back_as_one_sentence(local_ray: Path, toy: dict[str, Any]) -> None:
    from user_code.faulty import Config

    from energymt.cluster.launch import Workers, train_on_ray

    for name, settings, error, sentence in (
        ("nan", {"nan_at": 7}, DivergenceError, "not finite at step 7"),
        ("mistake", {"mistake_at": 7}, EnergymtError, r"user_code\.faulty raised KeyError: 'a mistake of the user'"),
    ):
        folder = local_ray / name
        folder.mkdir()
        config = Config.model_validate({**toy, **settings})
        with pytest.raises(error, match=sentence):
            train_on_ray("user_code.faulty", config, folder, workers=Workers(1))
        assert (folder / "checkpoints" / "last-00000005").is_dir(), "the last checkpoint is kept"


@pytest.mark.faults
def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_goes_on(toy: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({**toy, "steps": 40, "evaluate_every": 40, "checkpoint_every": 40}))
    arguments = ["supervised", "--config", str(config), "--name", "r", "--workers", "2", "--tracking", "none"]
    environment = {**os.environ, "ENERGYMT_RUNS": str(tmp_path), "RAY_worker_niceness": "0"}
    command = [sys.executable, "-m", "energymt.cli", "train", *arguments]
    first = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "r" / runs.LOG
    while not (log.exists() and log.read_text().count("\n") >= 3):
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    _, errors = first.communicate(timeout=200)
    assert first.returncode == 130 and "goes on from there" in errors, errors
    (checkpoint,) = (tmp_path / "r" / "checkpoints").glob("last-*")
    step = int(checkpoint.name.rpartition("-")[2])
    assert 3 <= step < 40

    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert second.returncode == 0, second.stderr
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if "train/nll" in line]
    assert steps == list(range(1, 41)), "no step was lost or repeated"
