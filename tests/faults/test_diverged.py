"""A loss or gradient that is no number: the run stops and says where, and its last good checkpoint is of use."""

import pytest

from energymt.folders import verify_manifest
from tests.faults.conftest import World
from tests.terminal import quick

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("what", ["nan", "inf"])
def test_a_bad_loss_keeps_the_last_good_checkpoint(what: str, world: World) -> None:
    advice = ("weights were not changed", "last checkpoint is kept", "--fresh", "learning_rate", "--set steps=34")
    done = world.train(TROUBLE=f"{what}@35")
    done.ended_by(1, "not finite at step 35", "micro-batch 1", f"energy {what}", "sentences [", *advice)
    assert world.checkpoints() == ["last-00000020", "last-00000030"]
    for path in (world.run() / "checkpoints").iterdir():
        verify_manifest(path)
    assert not (world.run() / "model").exists()
    # The same command comes to the same step ...
    again = world.train(TROUBLE=f"{what}@35")
    assert again.code == 1 and again.err.splitlines()[-1] == done.err.splitlines()[-1]
    # ... and what the sentence says helps: the run ends before it, with a model that translates.
    ended = world.train("run", "steps=34", TROUBLE=f"{what}@35")
    assert ended.code == 0, ended.err
    assert verify_manifest(world.run() / "model")["steps"] == 34
    translated = quick("translate", "runs/run/model", folder=world.folder, stdin="zive veze\n")
    assert translated.code == 0 and translated.out.strip()


def test_a_bad_first_step(world: World) -> None:
    done = world.train(TROUBLE="nan@1")
    done.refuses(1, "not finite at step 1,")
    assert "--set steps" not in done.err and world.checkpoints() == []


def test_a_gradient_that_is_not_finite(world: World) -> None:
    code = """if True:
        import torch
        from trainables import engine
        from trainables.engine import Config

        class Spoiled(torch.autograd.Function):
            @staticmethod
            def forward(ctx, value):
                return value

            @staticmethod
            def backward(ctx, gradient):
                return gradient * float("inf")

        class Trouble(engine.Engine):
            def losses(self, batch, step):
                first, *rest = super().losses(batch, step)
                bad = Spoiled.apply(first.sum) if step + 1 == 15 else first.sum
                return [first.__class__(first.name, bad, first.count, first.weight), *rest]

        TRAINABLE = Trouble"""
    (world.folder / "methods" / "spoiled.py").write_text(code, "utf-8")
    done = world.train(trainable="methods.spoiled")
    done.ended_by(1, "gradient is not finite at step 15", "last checkpoint is kept", "--set steps=14")
    assert world.checkpoints() == ["last-00000010"]


def test_a_diverged_run_is_marked_as_failed(world: World) -> None:
    from mlflow.tracking import MlflowClient

    assert world.train(tracked=True, TROUBLE="nan@15").code == 1
    uri = f"sqlite:///{world.folder / 'runs' / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("energymt").experiment_id])
    assert run.info.status == "FAILED" and client.search_registered_models() == []
