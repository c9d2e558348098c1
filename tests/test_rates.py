"""Factors of the learning rate for parts of a network (`optimizer.rates`)."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from energymt.configuration import OptimizerConfig
from energymt.data.batching import collate
from energymt.errors import ConfigurationError
from energymt.models.network import Network
from energymt.optimisation import make_optimizer
from energymt.records import StepBatch
from tests import estimators, toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.world(tmp_path_factory.mktemp("world"))


def changes(folder: Path, rates: dict[str, float], steps: int = 1) -> dict[str, torch.Tensor]:
    """What the first steps change, in double precision."""
    optimizer = {"learning_rate": 0.01, "warmup_steps": 4, "rates": rates}
    trainable = toy.make("masked", toy.config("masked", folder, optimizer=optimizer), double=True)
    before = toy.weights(trainable)
    batch = collate(trainable.text.train, range(8))
    toy.train(trainable, [StepBatch(number, 0, (batch,)) for number in range(steps)])
    return {name: weight - before[name] for name, weight in toy.weights(trainable).items()}


def factors(model: Network, **options) -> dict[str, float]:
    """The factor of every parameter, by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = make_optimizer(model, OptimizerConfig(**options)).param_groups
    return {names[id(parameter)]: group["factor"] for group in groups for parameter in group["params"]}


def test_a_factor_is_applied_to_the_weights_whose_names_begin_so(folder: Path) -> None:
    """Adam's first step is proportional to its rate, weight decay included."""
    plain = changes(folder, {})
    found = changes(folder, {"encoder.": 0.25, "length": 3.0})
    for name, change in plain.items():
        wanted = 0.25 if name.startswith("encoder.") else 3.0 if name.startswith("length") else 1.0
        torch.testing.assert_close(found[name], wanted * change, rtol=1e-9, atol=1e-12)
    assert plain["encoder.0.wide.weight"].abs().max() > 1e-3 and plain["length_token"].abs().max() > 1e-3


def test_factors_of_one_are_no_factors(folder: Path) -> None:
    plain, found = changes(folder, {}, steps=3), changes(folder, {"encoder.": 1.0, "": 1.0}, steps=3)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.parametrize("order", [1, -1])
def test_the_longest_beginning_wins_whatever_the_order(order: int) -> None:
    rates = {"": 2.0, "encoder.": 0.5, "encoder.encoder.layer.1": 0.1, "encoder.encoder.layer.1.output": 0.2}
    model = estimators.estimator("kiwi").requires_grad_(True)
    found = factors(model, rates=dict(list(rates.items())[::order]))
    assert found.keys() == dict(model.named_parameters()).keys()
    assert found["head.0.weight"] == 2.0
    assert found["encoder.embeddings.position_embeddings.weight"] == 0.5
    assert found["encoder.encoder.layer.0.output.dense.bias"] == 0.5
    assert found["encoder.encoder.layer.1.intermediate.dense.weight"] == 0.1
    assert found["encoder.encoder.layer.1.output.dense.weight"] == 0.2


def test_one_that_longer_ones_leave_nothing_is_no_mistake() -> None:
    model = estimators.estimator("kiwi").requires_grad_(True)
    found = factors(model, rates={"encoder.": 0.5, "encoder.encoder.": 0.1, "encoder.embeddings.": 0.2})
    assert set(found.values()) == {0.1, 0.2, 1.0}


def test_matrices_alone_are_decayed_whatever_their_factor() -> None:
    model = estimators.estimator("kiwi").requires_grad_(True)
    groups = make_optimizer(model, OptimizerConfig(weight_decay=0.03, rates={"encoder.": 0.5})).param_groups
    for group in groups:
        assert group["params"]
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.03 if parameter.ndim > 1 else 0.0)
    assert sorted(group["factor"] for group in groups) == [0.5, 0.5, 1.0, 1.0]


def test_a_name_that_no_trained_weight_has_is_refused() -> None:
    model = estimators.estimator("kiwi")
    model.head.requires_grad_(True)
    wanted = r"names 'encodr\.', and no trained parameter begins so; they begin with 'head\.'\.$"
    with pytest.raises(ConfigurationError, match=wanted):
        make_optimizer(model, OptimizerConfig(rates={"head.0.": 0.5, "encodr.": 0.1}))
    with pytest.raises(ConfigurationError, match=r"names 'encoder\.'"):  # it is there, but frozen
        make_optimizer(model, OptimizerConfig(rates={"encoder.": 0.1}))


def test_a_weight_without_a_dot_is_offered_as_it_is_called(folder: Path) -> None:
    trainable = toy.make("masked", toy.config("masked", folder))
    with pytest.raises(ConfigurationError, match=r"'bias', 'decoder\.', .*, 'length\.', 'length_token', "):
        make_optimizer(trainable.model, OptimizerConfig(rates={"nothing": 0.1}))
    assert factors(trainable.model, rates={"length_token": 0.1})["length_token"] == 0.1


@pytest.mark.parametrize("factor", [0.0, -1.0, "much"])
def test_a_factor_is_positive(factor: object) -> None:
    with pytest.raises(ValidationError, match=r"rates\.`head\.`"):
        OptimizerConfig(rates={"head.": factor})
