"""A proxy as energy: the encoder alone learns states that the proxy expects good outputs of, nothing is decoded."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from energymt.data.batching import collate
from energymt.decoding import sampling
from energymt.errors import ConfigurationError
from energymt.folders import weights_fingerprint
from energymt.models import load_translator
from energymt.records import StepBatch
from tests import proxies, toy
from tests.ranks import run_two
from trainables.proxy_ebm import ProxyEbm

SENTENCES = 6
CONSTANT = {"kind": "constant", "weight": 0.3, "ramp": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = toy.scored_world(tmp_path_factory.mktemp("world"))
    proxies.of_the_start(folder)
    return folder


def made(folder: Path, double: bool = True, **changes: Any) -> ProxyEbm:
    settings = toy.config("proxy_ebm", folder, **changes)
    trainable: ProxyEbm = toy.make("proxy_ebm", settings, double)
    return trainable


def gradient(trainable: ProxyEbm, loss: Tensor) -> dict[str, Tensor]:
    named = {name: weight for name, weight in trainable.model.named_parameters() if weight.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, found, strict=True))


def energy_of(trainable: ProxyEbm, rows: range) -> Tensor:
    """The sum over sentences, one by one and by the definition."""
    total = torch.zeros((), dtype=torch.float64)
    sign = 1.0 if trainable.proxy.config.higher_is_better else -1.0
    for row in rows:
        memory = trainable.model.encode(collate(trainable.text.train, [row]).source)
        raw = trainable.proxy(memory.states_BSD, memory.mask_BS).squeeze()
        total = total - sign * (2.0 * raw + 30.0) / 0.5  # scale, shift and error of `proxies.proxy`
    return total


# ----------------------------------------------------------------------------------------------------------- the energy


@pytest.mark.parametrize("higher", [True, False], ids=["chrf", "wer"])
@pytest.mark.parametrize("translator", ["transformer-toy", "recurrent-toy"])
def test_the_energy_is_the_negated_merit_in_errors(translator: str, higher: bool, folder: Path, tmp_path: Path) -> None:
    found = proxies.proxy(
        states_of(folder / translator), translator=weights_fingerprint(folder / translator), higher=higher
    )
    found.save_pretrained(tmp_path / "proxy")
    trainable = made(folder, model={"init": str(folder / translator)}, proxy=str(tmp_path / "proxy"))
    trainable.model.eval()
    batch = collate(trainable.text.train, range(SENTENCES))
    (term,) = trainable.losses(batch)
    wanted = energy_of(trainable, range(SENTENCES))
    assert (term.name, term.count, term.weight) == ("energy", SENTENCES, 1.0)
    assert trainable.counts(batch) == {"energy": SENTENCES}
    assert term.sum.item() == pytest.approx(wanted.item(), rel=1e-9)
    theirs = gradient(trainable, wanted)
    assert max(grad.abs().max() for grad in theirs.values()) > 1e-2
    for name, grad in gradient(trainable, term.sum).items():
        torch.testing.assert_close(grad, theirs[name], rtol=1e-6, atol=1e-9, msg=name)


def states_of(model: Path) -> int:
    from energymt.perturbation import states_width

    return states_width(load_translator(model))


def test_the_encoder_learns_and_nothing_else(folder: Path) -> None:
    trainable = made(folder)
    frozen = {"proxy": trainable.proxy, "estimator": trainable.quality.estimator, "start": trainable.start}
    before = {part: {k: v.clone() for k, v in module.state_dict().items()} for part, module in frozen.items()}
    (term,) = trainable.losses(collate(trainable.text.train, range(SENTENCES)))
    reached = {name for name, grad in gradient(trainable, term.sum).items() if grad.abs().max() > 1e-9}
    names = {name for name, weight in trainable.model.named_parameters() if weight.requires_grad}
    decoder = {name for name in names if ".decoder." in name}
    encoder = {name for name in names if ".encoder." in name}
    assert len(decoder) > 10 and len(encoder) > 10 and not reached & decoder
    shared = names - decoder - encoder  # the embedding
    assert encoder - reached <= {name for name in encoder if "k_proj.bias" in name}, "which no softmax feels"
    assert reached & shared
    batches = trainable.plan.iterate()
    toy.train(trainable, [next(batches) for _ in range(3)])
    for part, module in frozen.items():
        assert all(torch.equal(before[part][k], v) for k, v in module.state_dict().items())
        assert all(weight.grad is None and not weight.requires_grad for weight in module.parameters())
        assert not module.training


def test_dropout_is_off_and_the_model_goes_on_training(folder: Path, tmp_path: Path) -> None:
    model = load_translator(folder / "transformer-toy")
    model.network.config.dropout = 0.5
    model.save(tmp_path / "transformer-toy")
    trainable = made(folder, model={"init": str(tmp_path / "transformer-toy")}, proxy=str(folder / "proxy"))
    trainable.model.train()
    batch = collate(trainable.text.train, range(SENTENCES))
    first, second = (trainable.losses(batch)[0].sum.item() for _ in range(2))
    nll = [trainable.labelled_losses(batch)[0].sum.item() for _ in range(2)]
    assert first == second and trainable.model.training
    assert nll[0] != nll[1], "there is dropout in the labelled part"


def test_nothing_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainable = made(folder, double=False)
    monkeypatch.setattr(sampling, "sample", None)
    monkeypatch.setattr(trainable, "draw", None)
    monkeypatch.setattr(trainable.quality.estimator, "forward", None)
    (report,) = toy.train(trainable, [next(trainable.plan.iterate())])
    assert report["train/draw_s"] == report["train/wait_s"] == 0.0
    assert report["train/norm_unlabelled"] > 0 and report["train/norm_labelled"] > 0


def test_the_energy_of_unlabelled_sources_falls(folder: Path) -> None:
    changes = {"steps": 20, "optimizer": {"learning_rate": 0.003, "warmup_steps": 2}}
    found = {}
    for weight in (0.0, 1.0):
        trainable = made(folder, double=False, balance={**CONSTANT, "weight": weight}, **changes)
        with torch.no_grad():
            before = energy_of(trainable, range(20)).item() / 20
        batches = trainable.plan.iterate()
        reports = toy.train(trainable, [next(batches) for _ in range(20)])
        trainable.model.eval()
        with torch.no_grad():
            found[weight] = energy_of(trainable, range(20)).item() / 20 - before
    assert found[1.0] < -1.0 and found[1.0] < found[0.0] - 1.0, found
    energies = [report["train/energy"] for report in reports]
    assert sum(energies[-4:]) < sum(energies[:4])


# ------------------------------------------------------------------------------------------------------------- the step

WHOLE = ([[list(range(8))], [[8, 9, 10, 11]]], [[list(range(10, 16))], [list(range(16, 20))]])
CUT = ([[[0, 1], [2, 3], [4, 5], [6, 7]], [[8, 9], [10, 11]]], [[[10, 11], [12], [13, 14, 15]], [[16, 17], [18, 19]]])


def steps_of(trainable: ProxyEbm, cut: Any, rank: int = 0, world: int = 1) -> list[StepBatch]:
    def batches(parts: list[list[int]]) -> Any:
        return tuple(collate(trainable.text.train, chosen) for chosen in parts[rank::world])

    return [
        StepBatch(number, 0, batches(labelled), batches(unlabelled), rank=rank, world=world)
        for number, (labelled, unlabelled) in enumerate(zip(*cut, strict=True))
    ]


def close(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    assert left.keys() == right.keys()
    return all(torch.allclose(left[name], right[name], rtol=0, atol=1e-8) for name in left)


def test_the_gradient_of_a_step_is_the_weighted_sum_of_both(folder: Path) -> None:
    trainable = made(folder, balance=CONSTANT, optimizer={"learning_rate": 1e-9, "clip_norm": 1e9})
    batch = collate(trainable.text.train, range(SENTENCES))
    (labelled,), (energy,) = trainable.labelled_losses(batch), trainable.losses(batch)
    wanted = gradient(trainable, labelled.sum / labelled.count + 0.3 * energy.sum / energy.count)
    toy.train(trainable, [StepBatch(0, 0, (batch,), (batch,))])
    for name, parameter in trainable.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-6, atol=1e-9, msg=name)


def test_one_batch_is_several_accumulated(folder: Path) -> None:
    found = []
    for cut in (WHOLE, CUT):
        trainable = made(folder)
        before = toy.weights(trainable)
        found.append((toy.train(trainable, steps_of(trainable, cut)), toy.weights(trainable)))
        assert max((weight - before[name]).abs().max() for name, weight in found[-1][1].items()) > 1e-3
    assert close(found[0][1], found[1][1])
    for whole, cut in zip(found[0][0], found[1][0], strict=True):
        assert whole == pytest.approx(cut, rel=1e-6, abs=1e-9)


WORKER = """
import sys
from pathlib import Path
import safetensors.torch
from lightning.fabric import Fabric
from tests import toy
from tests.trainables import test_proxy_ebm as own
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp", precision="32-true")
fabric.launch()
trainable = own.made(folder)
toy.train(trainable, own.steps_of(trainable, own.CUT, fabric.global_rank, 2), fabric)
safetensors.torch.save_file(toy.weights(trainable), out / f"{fabric.global_rank}.safetensors")
"""


def test_two_workers_are_one(folder: Path, tmp_path: Path) -> None:
    run_two("-c", WORKER, str(folder), str(tmp_path))
    trainable = made(folder)
    toy.train(trainable, steps_of(trainable, CUT))
    for rank in (0, 1):
        assert close(safetensors.torch.load_file(tmp_path / f"{rank}.safetensors"), toy.weights(trainable))


def test_a_resumed_run_is_the_uninterrupted_one(folder: Path, tmp_path: Path) -> None:
    def run(out: Path, stop_at: int | None = None) -> tuple[Any, list[Any]]:
        return toy.fitted(made(folder, double=False), out, stop_at)

    wanted, reports = run(tmp_path / "whole")
    first, before = run(tmp_path / "cut", stop_at=4)
    result, after = run(tmp_path / "cut")
    assert first.interrupted and before + after == reports and result.metrics == wanted.metrics
    assert {"dev/quality", "dev/chrf", "dev/kl_to_start"} <= reports[0][1].keys()


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"model": {"variant": "transformer-toy"}}, "states of one model: name it by model.init"),
        ({"model": {"init": "recurrent-toy"}}, "belongs to another model|trained on the states of a model"),
        ({"proxy": "stranger"}, "other weights .* than .*transformer-toy.*train one for this model"),
        ({"proxy": "wide"}, "width 12 and .*transformer-toy has 8"),
        ({"proxy": "nothing"}, "nothing knows nothing of its metric.*train it longer"),
        ({"balance": {"kind": "gradnorm"}}, "no lowest value: use ratio, projection or constant"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    changes: Any, part: str, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(folder)
    weights = weights_fingerprint(folder / "transformer-toy")
    proxies.proxy(8).save_pretrained(folder / "stranger")
    proxies.proxy(12, translator=weights).save_pretrained(folder / "wide")
    nothing = proxies.proxy(8, translator=weights)
    nothing.scale.fill_(0.0)
    nothing.save_pretrained(folder / "nothing")
    with pytest.raises(ConfigurationError, match=part):
        made(folder, **changes)
