"""Checkpoints that are cut or changed: the run falls back to the one before, says so, and comes to the same weights."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import STEPS, World, same

pytestmark = pytest.mark.faults


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def change(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


HARM: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (cut, "it was cut"),
    "changed": (change, "was changed"),
    "gone": (Path.unlink, "is missing"),
}


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "progress.json"])
@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_checkpoint_is_passed_over(harm: str, file: str, world: World, undisturbed: World) -> None:
    assert world.train(TROUBLE="kill@45").code == -9
    damage, said = HARM[harm]
    damage(world.run() / "checkpoints" / "last-00000040" / file)
    done = world.train()
    assert done.code == 0, done.err
    line = next(line for line in done.err.splitlines() if "last-00000040" in line)
    assert file in line and said in line and line.endswith("The run goes on from step 30.")
    assert same(world.weights(), undisturbed.weights())


def test_if_all_are_damaged_the_run_begins_anew(world: World, undisturbed: World) -> None:
    assert world.train(TROUBLE="kill@45").code == -9
    for path in (world.run() / "checkpoints").glob("last-*"):
        cut(path / "weights.safetensors")
    done = world.train()
    assert done.code == 0 and "The run goes on from step 0." in done.err
    assert same(world.weights(), undisturbed.weights())


@pytest.mark.parametrize("steps", [41, STEPS])
def test_a_damaged_best_model_is_left_out(steps: int, world: World) -> None:
    assert world.train(TROUBLE="kill@45").code == -9
    (best,) = (world.run() / "checkpoints").glob("kept-*")
    cut(best / "weights.safetensors")
    done = world.train("run", f"steps={steps}")
    assert done.code == 0, done.err
    (line,) = (line for line in done.err.splitlines() if best.name in line)
    assert "is left out" in line and "it was cut" in line and line.endswith("The run goes on from step 40.")
    assert f"after {steps} steps" in done.err and (world.run() / "model" / "energymt.json").is_file()
