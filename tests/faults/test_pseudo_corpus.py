"""A pseudo-corpus that is interrupted goes on with the shards that are missing, and comes to the same text."""

import signal
from pathlib import Path

import pytest

from tests.faults.conftest import Disk, World
from tests.terminal import Forked

pytestmark = pytest.mark.faults
SETTINGS = ("target_lengths=teacher", "train.path=many.tsv", "steps=2", "feed=SX", "score=ST")
SENTENCES = 2300  # three shards
# ENGINE that falls asleep before it writes the second shard, if the variable ASLEEP is there.
SLEEPING = """
import os, sys, time
from energymt import shards
from trainables.engine import TRAINABLE, Config
write = shards.write_atomically

def write_atomically(path, text):
    if path.name == "shard-000001000.jsonl" and "ASLEEP" in os.environ:
        print("asleep", file=sys.stderr, flush=True)
        time.sleep(600)
    write(path, text)

shards.write_atomically = write_atomically
"""


def begin(world: World, name: str = "p", **more) -> Forked:
    return world.begin(name, *SETTINGS, trainable="methods.sleeping", **more)


def text(world: World) -> dict[str, str]:
    """What is there of the pseudo-corpus: shards and the whole."""
    return {
        path.name: path.read_text("utf-8")
        for path in (world.folder / "runs").glob("pseudo/*/*[lv]")
        if path.suffix in (".tsv", ".jsonl")
    }


def shard(world: World, number: int) -> Path | None:
    return next((world.folder / "runs").glob(f"pseudo/*/shard-{number * 1000:09d}.jsonl"), None)


@pytest.fixture(scope="session")
def whole(undisturbed: World) -> dict[str, str]:
    """The pseudo-corpus of a run that nothing happened to."""
    write_text(undisturbed)
    done = begin(undisturbed).end()
    assert done.code == 0, done.err
    return text(undisturbed)


def write_text(world: World) -> None:
    header, *lines = (world.folder / "train.tsv").read_text("utf-8").splitlines()
    (world.folder / "methods" / "sleeping.py").write_text(SLEEPING, "utf-8")
    (world.folder / "many.tsv").write_text("\n".join([header, *(lines * 8)[:SENTENCES]]) + "\n", "utf-8")


@pytest.mark.parametrize("number, code", [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_only_the_missing_shards_are_written_again(number: int, code: int, world: World, whole) -> None:
    write_text(world)
    command = begin(world, ASLEEP="yes")
    command.wait_until("asleep")
    command.signal(number)
    done = command.end()
    assert done.code == code, done.err
    if code == 130:
        done.ended_by(130, "Interrupted", "kept")
    assert text(world).keys() == {"shard-000000000.jsonl"}
    first = shard(world, 0)
    assert first is not None
    before = first.stat().st_mtime_ns
    assert begin(world).end().code == 0
    assert first.stat().st_mtime_ns == before
    assert text(world) == whole


def test_two_runs_share_the_work(world: World, whole) -> None:
    write_text(world)
    commands = [begin(world, name) for name in ("p", "q")]
    assert [command.end().code for command in commands] == [0, 0]
    assert text(world) == whole


def test_a_full_disk_keeps_the_shards_that_are_whole(world: World, whole, disk: Disk) -> None:
    write_text(world)
    runs = {"ENERGYMT_RUNS": str(disk.folder)}
    (disk.folder / "pseudo").mkdir()
    (world.folder / "runs" / "pseudo").symlink_to(disk.folder / "pseudo")
    disk.fill(leave=45_000)
    begin(world, **runs).end().ended_by(5, "shard-", "the disk is full", "free space")
    assert shard(world, 0) is not None and shard(world, 2) is None
    disk.empty()
    assert begin(world, **runs).end().code == 0
    assert text(world) == whole
