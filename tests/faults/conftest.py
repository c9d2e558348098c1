"""Runs to be killed, cut and starved, and the same runs undisturbed."""

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from tests import clusters
from tests.commands.conftest import SMALL, configuration, write_files
from tests.terminal import Done, Forked, begin

TEACHER = "runs/teacher/model"
STEPS = 120
# A step of the students of `methods.trouble` may do what the variable TROUBLE says: `kill@7`, `nan@7`, `sleep@7`.
TROUBLE = '''
"""ENGINE on references, in which one step goes wrong."""
import os, signal, time
from trainables import engine

class Config(engine.Config):
    "As ENGINE."

class Trouble(engine.Engine):
    def losses(self, batch, step):
        terms = super().losses(batch, step)
        what, _, when = os.environ.get("TROUBLE", "").partition("@")
        if not when or step + 1 != int(when):
            return terms
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "sleep":
            print("asleep", file=__import__("sys").stderr, flush=True)
            time.sleep(600)
        factor = float("nan") if what == "nan" else float("inf")
        return [term.__class__(term.name, term.sum * factor, term.count, term.weight) for term in terms]

TRAINABLE = Trouble
'''


@dataclass(frozen=True)
class World:
    """A folder with text, a teacher, and commands that train students on it."""

    folder: Path

    def begin(self, name: str = "run", *settings: str, trainable: str = "methods.trouble", **more: Any) -> Forked:
        """Start to train."""
        sets = [part for setting in settings for part in ("--set", setting)]
        options = [] if more.pop("tracked", False) else ["--tracking", "none"]
        command = ("train", trainable, "-c", "student.yaml", *sets, "--name", name, *options)
        return begin(*command, folder=self.folder, **more)

    def train(self, name: str = "run", *settings: str, **more: Any) -> Done:
        """Train to the end, whatever that is."""
        return self.begin(name, *settings, **more).end()

    def run(self, name: str = "run") -> Path:
        """The folder of a run."""
        return self.folder / "runs" / name

    def checkpoints(self, name: str = "run") -> list[str]:
        """The checkpoints to go on from, by name."""
        return sorted(path.name for path in (self.run(name) / "checkpoints").glob("last-*"))

    def weights(self, name: str = "run") -> dict[str, torch.Tensor]:
        """The weights of the finished model and of the last step."""
        files = {"model": self.run(name) / "model" / "model.safetensors"}
        files["last"] = self.run(name) / "checkpoints" / self.checkpoints(name)[-1] / "weights.safetensors"
        return {f"{key}.{k}": v for key, file in files.items() for k, v in safetensors.torch.load_file(file).items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether all weights are equal, bit by bit."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with a teacher (run `teacher`) and a student that nothing happened to (run `run`)."""
    folder = tmp_path_factory.mktemp("faults")
    write_files(folder)
    (folder / "methods").mkdir()
    (folder / "methods" / "trouble.py").write_text(TROUBLE, "utf-8")
    student = configuration(
        teacher=TEACHER,
        target_lengths="reference",
        feed="SG",
        score="GX",
        model={"variant": "masked-toy", "changes": {**SMALL, "dropout": 0.1}},
        steps=STEPS,
        evaluate_every=20,
        checkpoint_every=10,
        log_every=5,
    )
    (folder / "student.yaml").write_text(yaml.safe_dump(student), "utf-8")
    arguments = ("train", "supervised", "-c", "teacher.yaml", "--name", "teacher", "--tracking", "none")
    assert begin(*arguments, folder=folder).end().code == 0
    world = World(folder)
    done = world.train()
    assert done.code == 0, done.err
    return world


@pytest.fixture
def world(undisturbed: World, tmp_path: Path) -> World:
    """The same world with the teacher alone."""
    shutil.copytree(undisturbed.folder, tmp_path / "world", ignore=shutil.ignore_patterns("run", "p", "pseudo"))
    return World(tmp_path / "world")


@dataclass(frozen=True)
class Disk:
    """A small disk of its own."""

    folder: Path

    def fill(self, leave: int) -> None:
        """Write until only so many bytes are left."""
        free = shutil.disk_usage(self.folder).free
        (self.folder / "ballast").write_bytes(bytes(max(0, free - leave)))

    def empty(self) -> None:
        """Make the space free again."""
        (self.folder / "ballast").unlink()

    def remount(self, how: str) -> None:
        """Change the rights of the whole disk: `ro` or `rw`."""
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 8 MB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Ray of a module alone; gives the folder of its runs."""
    with clusters.wide_ray(tmp_path_factory.mktemp("runs")) as runs:
        yield runs
