"""`energymt config`, `doctor` and `cluster check`."""

import shutil
import socket
import sqlite3
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from energymt.models.estimator_variants import ESTIMATORS
from energymt.models.variants import VARIANTS
from tests.commands.conftest import TEACHER, configuration
from tests.terminal import SECONDS, quick, start

ROOT = Path(__file__).resolve().parents[2]
TRAINABLES = ("supervised", "masked", "distilled", "engine", "estimator")


def test_config_show_prints_what_a_run_would_use(bare: Path) -> None:
    settings = ("--set", "teacher=there", "--set", "optimizer.learning_rate=1e-4")
    done = quick("config", "show", "engine", "-c", "student.yaml", *settings, folder=bare)
    assert (done.code, done.err) == (0, "")
    shown = yaml.safe_load(done.out)
    assert shown["teacher"] == "there" and shown["optimizer"]["learning_rate"] == 1e-4
    assert shown["steps"] == configuration()["steps"] and shown["feed"] == "SX" and shown["train"]["rows"] is None
    (bare / "shown.yaml").write_text(done.out, "utf-8")
    assert quick("config", "show", "engine", "-c", "shown.yaml", folder=bare).out == done.out


@pytest.mark.parametrize("trainable", TRAINABLES)
def test_config_keys_explains_every_key(trainable: str, tmp_path: Path) -> None:
    done = quick("config", "keys", trainable, folder=tmp_path)
    assert done.code == 0
    lines = dict(line.split(" (", 1) for line in done.out.splitlines())
    assert {"train.path", "optimizer.learning_rate", "model.variant", "seed", "steps"} <= lines.keys()
    assert ("teacher" in lines) == (trainable in ("distilled", "engine"))
    for key, rest in lines.items():
        default, text = rest.split("): ", 1)
        assert default and text.endswith("."), key
    assert lines["train.also"].startswith("[]): ") and "train.prefix" in lines and "train.also.path" not in lines


def test_config_variants_lists_every_size(tmp_path: Path) -> None:
    done = quick("config", "variants", folder=tmp_path)
    assert [line.split()[0] for line in done.out.splitlines()] == [*VARIANTS, *ESTIMATORS]
    assert "width 512" in next(line for line in done.out.splitlines() if line.startswith("transformer-base"))


def test_doctor_says_what_there_is(tmp_path: Path) -> None:
    done = quick("doctor", folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("energymt ")
    for part in ("ok       torch 2", "ok       transformers", "cores", f"runs in {tmp_path / 'runs'}", "GB free"):
        assert part in done.out
    assert list(tmp_path.iterdir()) == []


def test_doctor_finds_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    done = quick("doctor", folder=tmp_path, ENERGYMT_RUNS="/sys/runs")
    assert done.code == 3
    assert "MISSING  runs in /sys/runs" in done.out and "not writable" in done.out


@pytest.mark.parametrize("name", ["cluster.yaml", "cluster-local.yaml"])
def test_the_cluster_files_of_the_project_are_valid(name: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / name, tmp_path / name)
    done = quick("cluster", "check", name, folder=tmp_path)
    assert (done.code, done.out) == (0, f"{name} is a valid cluster file.\n"), done.err


def test_a_sweep_is_planned_without_being_started(shared: Path) -> None:
    config = {**configuration(), "teacher": TEACHER, "model": {"variant": "masked-toy"}}
    file = shared / "sweep.yaml"
    file.write_text(yaml.safe_dump(config), "utf-8")
    done = quick("sweep", "engine_operators", "-c", "sweep.yaml", "--dry-run", folder=shared)
    assert done.code == 0, done.err
    assert "25 trials of engine" in done.out and "ranked by dev/" in done.out and "feed=SX,score=ST" in done.out
    assert not (shared / "runs" / "sweeps").exists()


def test_the_pages_are_served_until_the_command_is_ended(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "runs").mkdir()
    sqlite3.connect(tmp_path / "runs" / "mlflow.db").close()
    process = start("ui", "--port", str(port), folder=tmp_path)
    try:
        assert process.stderr is not None and f"http://127.0.0.1:{port}" in process.stderr.readline()
        threading.Thread(target=process.stderr.read, daemon=True).start()  # so that it never waits for its reader
        until = time.monotonic() + SECONDS
        while not answers(port):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.2)
        quick("ui", "--port", str(port), folder=tmp_path).refuses(3, f"Port {port}", "--port")
        process.terminate()
        process.wait(SECONDS)
        while answers(port):
            assert time.monotonic() < until + SECONDS
            time.sleep(0.2)
    finally:
        process.kill()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False


def test_there_are_no_pages_of_nothing(tmp_path: Path) -> None:
    quick("ui", folder=tmp_path).refuses(5, "mlflow.db is not there", "ENERGYMT_RUNS")
    assert list(tmp_path.iterdir()) == []


def test_the_pages_of_a_server_are_its_own(tmp_path: Path) -> None:
    done = quick("ui", folder=tmp_path, MLFLOW_TRACKING_URI="http://127.0.0.1:1")
    assert (done.code, done.out) == (0, "") and done.err.endswith("open http://127.0.0.1:1\n")
