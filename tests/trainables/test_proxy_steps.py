"""The step of a proxy is that of its loss over all sentences, into whatever micro-batches and workers it is cut."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from energymt.data.batching import collate
from energymt.records import StepBatch
from tests import proxies, toy
from tests.ranks import run_two
from trainables.proxy import ProxyTraining

every_loss = pytest.mark.parametrize("loss", proxies.LOSSES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return proxies.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGYMT_RUNS", str(folder / "runs"))


WHOLE = [[list(range(8))], [[8, 9, 16, 17]], [list(range(10, 16))]]
CUT = [[[0, 1], [2, 3], [4, 5], [6, 7]], [[8, 9, 16, 17]], [[10, 11, 12], [13], [14, 15]]]


def steps_of(trainable: ProxyTraining, cut: Any, rank: int = 0, world: int = 1) -> list[StepBatch]:
    data = trainable.plan.encoded
    return [
        StepBatch(number, 0, tuple(collate(data, chosen) for chosen in parts[rank::world]), rank=rank, world=world)
        for number, parts in enumerate(cut)
    ]


def exact(folder: Path, **changes: Any) -> ProxyTraining:
    """In double precision; dropout is another one for each micro-batch."""
    return proxies.make(folder, double=True, **{"proxy": {"hidden": 8, "heads": 2, "dropout": 0.0}, **changes})


def close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    assert left.keys() == right.keys()
    return all(torch.allclose(left[name], right[name], rtol=0, atol=1e-9) for name in left)


@every_loss
def test_micro_batches_do_not_change_a_step(loss: str, folder: Path) -> None:
    found = []
    for cut in (WHOLE, CUT):
        trainable = exact(folder, loss=loss)
        before = toy.weights(trainable)
        found.append((toy.train(trainable, steps_of(trainable, cut)), toy.weights(trainable)))
        assert not close(before, found[-1][1])
    assert close(found[0][1], found[1][1])
    for whole, cut in zip(found[0][0], found[1][0], strict=True):
        assert whole == pytest.approx(cut, rel=1e-6)


@every_loss
def test_the_gradient_of_a_step_is_that_of_its_loss(loss: str, folder: Path) -> None:
    trainable = exact(folder, loss=loss)
    [batch] = steps_of(trainable, CUT[:1])
    before = toy.weights(trainable)
    report = toy.train(trainable, [batch])[0]
    trainable.model.load_state_dict(before)
    memory = trainable.states(collate(trainable.plan.encoded, WHOLE[0][0]))
    raw_N = trainable.model(memory.states_BSD, memory.mask_BS)
    labels_N = trainable.labels_N[WHOLE[0][0]]
    if loss == "mse":
        value = (raw_N - labels_N).square().mean() / trainable.labels_N.var()
    else:
        if loss == "spearman":
            pairs_NN = (raw_N[:, None] - raw_N) / (0.1 * raw_N.detach().std())
            raw_N = pairs_NN.sigmoid().sum(1)
            labels_N = torch.stack([((labels_N < v).sum() + (labels_N <= v).sum()) / 2 for v in labels_N]).double()
        value = -torch.corrcoef(torch.stack([raw_N, labels_N]))[0, 1]
    trained = [weight for weight in trainable.model.parameters() if weight.requires_grad]
    assert len(trained) == len(list(trainable.model.parameters())) - (loss != "mse"), "no correlation feels a shift"
    gradient = torch.autograd.grad(value, trained)
    assert report["train/loss"] == pytest.approx(value.item(), rel=1e-9)
    norm = torch.cat([part.flatten() for part in gradient]).norm().item()
    assert report["train/gradient_norm"] == pytest.approx(norm, rel=1e-6)


WORKER = """
import sys
from pathlib import Path
import safetensors.torch
from lightning.fabric import Fabric
from tests import toy
from tests.trainables import test_proxy_steps as own
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision="32-true")
fabric.launch()
for name, changes in own.SHARED.items():
    trainable = own.shared(folder, name)
    toy.train(trainable, own.steps_of(trainable, own.CUT, fabric.global_rank, 2), fabric)
    safetensors.torch.save_file(toy.weights(trainable), out / f"{name}-{fabric.global_rank}.safetensors")
"""
SHARED: dict[str, dict[str, Any]] = {
    "pearson": {},
    "spearman": {"loss": "spearman"},
    "dropout": {"proxy": {"hidden": 8, "heads": 2, "dropout": 0.3}},
    "labels": {"metric": "estimator"},  # which one of the two computes
}


def shared(folder: Path, name: str) -> ProxyTraining:
    changes = dict(SHARED[name])
    if "metric" in changes:
        data = {part: {"path": str(folder / f"{part}.tsv"), "source": "source"} for part in ("train", "dev")}
        changes |= {"metric": str(folder / "estimator"), **data}
    return exact(folder, **changes)


@pytest.fixture(scope="module")
def two_workers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where two processes, which know no labels at first, leave their weights."""
    out = tmp_path_factory.mktemp("workers")
    run_two("-c", WORKER, str(folder), str(out), ENERGYMT_RUNS=str(out / "runs"))
    return out


@pytest.mark.parametrize("name", SHARED)
def test_two_workers_are_one(name: str, folder: Path, two_workers: Path) -> None:
    trainable = shared(folder, name)
    toy.train(trainable, steps_of(trainable, CUT))
    for rank in (0, 1):
        theirs = safetensors.torch.load_file(two_workers / f"{name}-{rank}.safetensors")
        assert close(theirs, toy.weights(trainable))
