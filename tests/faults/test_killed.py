"""Processes that are killed: the same command goes on, and comes to the same weights, bit by bit."""

import re
import signal

import pytest

from energymt.folders import verify_manifest
from tests.faults.conftest import STEPS, World, same

pytestmark = pytest.mark.faults
KILLED = -signal.SIGKILL


def test_a_run_that_is_killed_again_and_again_comes_to_the_same_weights(world: World, undisturbed: World) -> None:
    for step in (15, 45, 80):
        command = world.begin()
        command.wait_until(f"step {step:>6}/{STEPS}  train")
        command.signal(signal.SIGKILL)
        done = command.end()
        assert done.code == KILLED and not (world.run() / "model").exists()
        reached = max(int(number) for number in re.findall(r"step +(\d+)/", done.err))
        assert int(world.checkpoints()[-1].removeprefix("last-")) >= reached - 10
    newest = int(world.checkpoints()[-1].removeprefix("last-"))
    done = world.train()
    assert done.code == 0, done.err
    assert int(re.findall(r"step +(\d+)/", done.err)[0]) == newest + 5  # not from the start
    assert same(world.weights(), undisturbed.weights())


@pytest.mark.parametrize("step", [1, 10, 11, 41])
def test_a_run_that_dies_in_the_middle_of_a_step(step: int, world: World, undisturbed: World) -> None:
    assert world.train(TROUBLE=f"kill@{step}").code == KILLED
    assert world.train().code == 0
    assert same(world.weights(), undisturbed.weights())


def test_a_run_that_dies_while_a_checkpoint_is_written(world: World, undisturbed: World) -> None:
    code = """if True:
        import os, safetensors.torch
        from methods.trouble import *
        from methods.trouble import TRAINABLE
        write, written = safetensors.torch.save_file, []

        def save_file(tensors, path):
            written.append(path)
            if len(written) == int(os.environ.get("DIE_AT", "-1")):
                path.write_bytes(b"half of it")
                os.kill(os.getpid(), 9)
            write(tensors, path)

        safetensors.torch.save_file = save_file"""
    (world.folder / "methods" / "dying.py").write_text(code, "utf-8")
    for at in ("4", "2", "9"):  # the optimizer of the second checkpoint, of the third, and a best model or so
        assert world.train(trainable="methods.dying", DIE_AT=at).code == KILLED
        left = [path for path in (world.run() / "checkpoints").iterdir() if path.name.startswith(".")]
        assert len(left) == 1
        for path in (world.run() / "checkpoints").glob("[lk]*"):
            verify_manifest(path)
    assert world.train(trainable="methods.dying").code == 0
    assert not [path for path in world.run().rglob(".*") if path.is_dir()]
    assert same(world.weights(), undisturbed.weights())


def test_a_run_that_dies_while_its_model_is_written(world: World, undisturbed: World) -> None:
    code = """if True:
        import os
        from energymt.models.masked import MaskedTranslator
        from methods.trouble import *
        from methods.trouble import TRAINABLE
        save = MaskedTranslator.save

        def dying(model, folder):
            save(model, folder)
            if "DIE" in os.environ:
                os.kill(os.getpid(), 9)

        MaskedTranslator.save = dying"""
    (world.folder / "methods" / "dying.py").write_text(code, "utf-8")
    assert world.train(trainable="methods.dying", DIE="yes").code == KILLED
    assert not (world.run() / "model").exists()
    done = world.train(trainable="methods.dying")
    assert done.code == 0 and "train" not in done.err.replace(str(world.folder), "")
    assert same(world.weights(), undisturbed.weights())


def test_a_killed_run_goes_on_in_its_own_mlflow_run(world: World) -> None:
    from mlflow.tracking import MlflowClient

    assert world.train(tracked=True, TROUBLE="kill@45").code == KILLED
    weights = world.run() / "checkpoints" / "last-00000040" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    done = world.train(tracked=True)
    assert done.code == 0 and "it was cut" in done.err and "The run goes on from step 30." in done.err, done.err
    uri = f"sqlite:///{world.folder / 'runs' / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("energymt").experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "train/energy")
    assert [value.step for value in sorted(history, key=lambda value: value.step)] == list(range(5, STEPS + 1, 5))
