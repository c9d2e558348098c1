"""A disk that is full or may no longer be written: exit code 5, the last good checkpoint stays, and the run goes on."""

import json
from pathlib import Path

import pytest

from energymt.folders import verify_manifest
from tests.faults.conftest import Disk, World, same

pytestmark = pytest.mark.faults


def whole(run: Path) -> list[str]:
    """The checkpoints, all verified, and nothing half written beside them."""
    paths = sorted((run / "checkpoints").iterdir())
    for path in paths:
        verify_manifest(path)
    return [path.name for path in paths if path.name.startswith("last-")]


def on(disk: Disk, world: World) -> dict[str, str]:
    """Variables that put the runs on the disk."""
    (world.folder / "runs" / "run").symlink_to(disk.folder / "run")
    return {"ENERGYMT_RUNS": str(disk.folder)}


def test_a_disk_that_is_full_when_a_checkpoint_is_written(world: World, undisturbed: World, disk: Disk) -> None:
    runs = on(disk, world)
    assert world.train(TROUBLE="kill@25", **runs).code == -9
    disk.fill(leave=60_000)
    done = world.train(**runs)
    done.ended_by(5, "checkpoints/last-00000030 could not be written", "the disk is full", "free space")
    assert whole(disk.folder / "run") == ["last-00000010", "last-00000020"]
    disk.empty()
    assert world.train(**runs).code == 0
    assert same(world.weights(), undisturbed.weights())


def test_a_disk_that_is_full_for_the_log(world: World, undisturbed: World, disk: Disk) -> None:
    runs = on(disk, world)
    assert world.train(TROUBLE="kill@25", **runs).code == -9
    disk.fill(leave=0)
    done = world.train(**runs)
    assert done.code == 5 and "the disk is full" in done.err and str(disk.folder / "run") in done.err
    disk.empty()
    disk.fill(leave=4096)  # room for the configuration, and then for a few lines
    (disk.folder / "run" / "log.jsonl").write_bytes((disk.folder / "run" / "log.jsonl").read_bytes().ljust(4000, b"x"))
    done = world.train(**runs)
    done.ended_by(5, "the disk is full", "free space")
    assert whole(disk.folder / "run") == ["last-00000010", "last-00000020"]
    disk.empty()
    assert world.train(**runs).code == 0
    lines = (disk.folder / "run" / "log.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["step"] for line in lines} >= set(range(25, 121, 5))
    assert same(world.weights(), undisturbed.weights())


def test_a_disk_that_is_full_when_the_model_is_written(world: World, undisturbed: World, disk: Disk) -> None:
    runs = on(disk, world)
    assert world.train("run", "steps=30", TROUBLE="kill@30", **runs).code == -9
    assert world.train("run", "steps=29", **runs).code == 0
    (disk.folder / "run" / "model").rename(disk.folder / "former")
    disk.fill(leave=20_000)
    done = world.train("run", "steps=29", **runs)
    done.refuses(5, "run/model could not be written", "the disk is full")
    disk.empty()
    assert world.train(**runs).code == 0
    assert same(world.weights(), undisturbed.weights())


def test_files_that_may_not_grow(world: World, undisturbed: World) -> None:
    """A limit on the size of files (EFBIG), for machines on which no disk can be mounted: as quotas do."""
    assert world.train(TROUBLE="kill@25").code == -9
    done = world.train(most=30_000)
    done.ended_by(5, "last-00000030 could not be written", "check the disk")
    assert whole(world.run()) == ["last-00000010", "last-00000020"]
    done = world.train(most=600)
    done.ended_by(5, "run/", "could not be written")
    assert whole(world.run()) == ["last-00000010", "last-00000020"]
    assert world.train().code == 0
    assert same(world.weights(), undisturbed.weights())


def test_a_disk_that_turns_read_only(world: World, undisturbed: World, disk: Disk) -> None:
    runs = on(disk, world)
    command = world.begin(TROUBLE="sleep@25", **runs)
    command.wait_until("asleep")
    command.signal(9)
    assert command.end().code == -9
    disk.remount("ro")
    done = world.train(**runs)
    done.refuses(5, str(disk.folder / "run"), "Read-only", "ENERGYMT_RUNS")
    disk.remount("rw")
    assert whole(disk.folder / "run") == ["last-00000010", "last-00000020"]
    assert world.train(**runs).code == 0
    assert same(world.weights(), undisturbed.weights())
