"""Folders that cannot be written, and runs that another process holds: exit code 5 or 3, and nothing is lost."""

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.conftest import STUDENT, files
from tests.terminal import Done, quick

Train = Callable[..., Done]
NOWHERE = "/sys/energymt"  # nobody can make a folder there, not even root


def test_a_folder_of_runs_that_cannot_be_written(train: Train, bare: Path) -> None:
    train(ENERGYMT_RUNS=NOWHERE).refuses(5, f"{NOWHERE}/run cannot be written", "ENERGYMT_RUNS")
    train(ENERGYMT_RUNS="train.tsv").refuses(5, "train.tsv/run cannot be written", "ENERGYMT_RUNS")


def test_a_pseudo_corpus_that_cannot_be_written(place: Path) -> None:
    (place / "runs" / "pseudo").rename(place / "runs" / "elsewhere")
    (place / "runs" / "pseudo").write_text("a file in the way", "utf-8")
    command = ("train", "distilled", "-c", "student.yaml", "--set", "teacher=runs/teacher/model", "--tracking", "none")
    quick(*command, folder=place).refuses(5, "runs/pseudo", "check the path")


def test_a_model_that_cannot_be_written_is_written_by_the_same_command_later(train: Train, bare: Path) -> None:
    (bare / "runs" / "run").mkdir(parents=True)
    (bare / "runs" / "run" / "model").write_text("a file in the way", "utf-8")
    train("steps=3").ended_by(5, "runs/run/model could not be written", "choose another")
    assert (bare / "runs" / "run" / "model").read_text("utf-8") == "a file in the way"
    (bare / "runs" / "run" / "model").unlink()
    assert train("steps=3").err.startswith(str(bare / "runs" / "run" / "model"))  # and no step is trained again
    assert (bare / "runs" / "run" / "model" / "energymt.json").is_file()


@pytest.mark.parametrize("option", ["--json", "--output"])
def test_scores_that_cannot_be_written_are_still_printed(option: str, shared: Path) -> None:
    data = ("--data", "test.tsv", "--source", "source", "--target", "target", "--iterations", "1")
    done = quick("evaluate", STUDENT, *data, option, "/sys/scores", folder=shared)
    done.refuses(5, "/sys/scores", "check the path")
    assert "BLEU" in done.out


def test_a_run_that_another_process_trains_is_left_alone(train: Train, bare: Path) -> None:
    assert train("steps=2").code == 0
    before = files(bare / "runs")
    with (bare / "runs" / "run" / "run.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for settings in (("steps=4",), ("seed=3",)):
            train(*settings).refuses(3, "Another process", "runs/run", "--name")
        done = quick("train", "supervised", "-c", "teacher.yaml", "--name", "run", "--fresh", folder=bare)
        done.refuses(3, "Another process")
    assert files(bare / "runs") == before
    assert train("steps=4").code == 0
