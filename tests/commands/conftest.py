"""One folder for all commands: text of the toy language, configurations, and the runs of a teacher and two students."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from energymt.data.corpus import write_tsv
from energymt.data.toy import ToyLanguage
from tests.terminal import Done, quick, run

SMALL = {"width": 16, "feedforward": 32, "encoder_layers": 1, "decoder_layers": 1, "heads": 2}
TEACHER, STUDENT = "runs/teacher/model", "runs/student/model"


def configuration(**changes: Any) -> dict[str, Any]:
    """A run of a few seconds on the text of the folder."""
    columns = {"source": "source", "target": "target"}
    return {
        "train": {"path": "train.tsv", **columns},
        "dev": {"path": "dev.tsv", **columns},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 5},
        "steps": 48,
        "tokens_per_step": 128,
        "tokens_per_micro_batch": 128,
        "evaluate_every": 24,
        "checkpoint_every": 12,
        "log_every": 8,
        "device": "cpu",
        **changes,
    }


def write_files(folder: Path) -> None:
    """Text and configurations."""
    for name, corpus in ToyLanguage(1).corpora(train=300, dev=12, test=24, seed=2).items():
        write_tsv(corpus, folder / f"{name}.tsv")
        (folder / f"{name}.source").write_text("\n".join(corpus.source) + "\n", encoding="utf-8")
        (folder / f"{name}.target").write_text("\n".join(corpus.target or []) + "\n", encoding="utf-8")
    teacher = configuration(
        vocabulary={"size": 200, "model_type": "word"}, model={"variant": "transformer-toy", "changes": SMALL}
    )
    student = configuration(model={"variant": "masked-toy", "changes": SMALL})
    (folder / "teacher.yaml").write_text(yaml.safe_dump(teacher), encoding="utf-8")
    (folder / "student.yaml").write_text(yaml.safe_dump(student), encoding="utf-8")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Done]]:
    """The folder with its runs, and how each of the commands ended. Tests change nothing in it."""
    folder = tmp_path_factory.mktemp("commands")
    write_files(folder)
    done = {"teacher": run("train", "supervised", "-c", "teacher.yaml", "--name", "teacher", folder=folder)}
    for name, trainable, *settings in (
        ("student", "masked", f"vocabulary.path={TEACHER}", "steps=120"),
        ("engine", "engine", f"teacher={TEACHER}", f"model.init={STUDENT}", "steps=12"),
        ("tagger", "engine", f"teacher={TEACHER}", "model={variant: tagger-toy}", "steps=12"),
    ):
        sets = [part for setting in settings for part in ("--set", setting)]
        command = ("train", trainable, "-c", "student.yaml", *sets, "--name", name, "--tracking", "none")
        done[name] = quick(*command, folder=folder)
    for name, result in done.items():
        assert result.code == 0, f"{name}: {result.err}"
    return folder, done


@pytest.fixture(scope="session")
def shared(trained: tuple[Path, dict[str, Done]]) -> Path:
    """The folder with its runs; to read."""
    return trained[0]


@pytest.fixture
def place(shared: Path, tmp_path: Path) -> Path:
    """A copy of the folder with its runs, to do with as a test likes."""
    folder = tmp_path / "place"
    shutil.copytree(shared, folder, ignore=shutil.ignore_patterns("artifacts", "mlflow.db*"))
    return folder


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Text and configurations without any run."""
    write_files(tmp_path)
    return tmp_path


@pytest.fixture
def train(bare: Path) -> Callable[..., Done]:
    """Train a teacher on the bare folder's text, with changed settings."""

    def command(*settings: str, **environment: str | None) -> Done:
        sets = [part for setting in settings for part in ("--set", setting)]
        arguments = ["train", "supervised", "-c", "teacher.yaml", "--name", "run", "--tracking", "none", *sets]
        return quick(*arguments, folder=bare, **environment)

    return command


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
