"""Without dropout a model gives what it gives in evaluation, and goes on afterwards as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from energymt.decoding.inference import inference, without_dropout
from energymt.models import AutoregressiveModel
from tests import tiny

MAKERS = {"recurrent": tiny.recurrent, "transformer": tiny.scratch}
STATES = {"inference": inference, "without_dropout": without_dropout}


@pytest.fixture(params=MAKERS)
def model(request: pytest.FixtureRequest) -> AutoregressiveModel:
    return MAKERS[request.param](dropout=0.5).train()


def logits(model: AutoregressiveModel) -> Tensor:
    """Of three sentences, in one pass."""
    batch = tiny.batch_of(list(zip(tiny.sentences(3), tiny.sentences(3, seed=1), strict=True)), model.vocabulary)
    return model.decode(model.encode(batch.source), batch.target_BT, batch.target_mask_BT)


def gradients(model: AutoregressiveModel) -> dict[str, Tensor]:
    model.zero_grad()
    logits(model).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def flags(model: nn.Module) -> dict[str, Any]:
    """All that dropout depends on."""
    return {
        name: (module.training, getattr(module, "dropout", None) if isinstance(module, nn.RNNBase) else None)
        for name, module in model.named_modules()
    }


def test_without_dropout_a_model_in_training_is_one_in_evaluation(model: AutoregressiveModel) -> None:
    assert not torch.equal(logits(model), logits(model))
    with without_dropout(model):
        found, found_gradients = logits(model), gradients(model)
    model.eval()
    assert found.requires_grad
    assert torch.equal(found, logits(model))
    wanted = gradients(model)
    assert found_gradients.keys() == wanted.keys()
    assert all(torch.equal(found_gradients[name], wanted[name]) for name in wanted)
    assert max(float(gradient.abs().max()) for gradient in wanted.values()) > 0


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("training", [True, False])
def test_behind_it_everything_is_as_before(state: str, training: bool, model: AutoregressiveModel) -> None:
    before = flags(model.train(training))
    with STATES[state](model):
        pass
    assert flags(model) == before
    with pytest.raises(RuntimeError, match="out of memory"), STATES[state](model):
        raise RuntimeError("out of memory")
    assert flags(model) == before
    assert torch.equal(logits(model), logits(model)) != training


def test_parts_that_were_frozen_in_evaluation_stay_there(model: AutoregressiveModel) -> None:
    first = next(module for module in model.modules() if isinstance(module, nn.Dropout | nn.LayerNorm))
    first.eval()
    before = flags(model)
    with without_dropout(model):
        assert not first.training
    assert flags(model) == before


def test_recurrent_layers_stay_where_cudnn_differentiates_them() -> None:
    model = tiny.recurrent(dropout=0.5).train()
    with without_dropout(model):
        layers = [module for module in model.modules() if isinstance(module, nn.RNNBase)]
        assert layers and all(layer.training and layer.dropout == 0.0 for layer in layers)
        assert not any(module.training for module in model.modules() if not isinstance(module, nn.RNNBase))
    assert model.decoder.dropout == 0.5


@pytest.mark.parametrize("state, wanted", [("inference", False), ("without_dropout", True)])
def test_gradients_there_or_not(state: str, wanted: bool, model: AutoregressiveModel) -> None:
    make: Callable[..., Any] = STATES[state]
    with make(model):
        assert logits(model).requires_grad == wanted
