"""The states that a model decodes in, and is differentiated in where dropout would be in the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside the block; a model in training goes on training behind it."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """No dropout inside the block, and gradients as ever; a model in training goes on training behind it."""
    training = {module: module.training for module in model.modules()}
    recurrent = {module: module.dropout for module in training if isinstance(module, nn.RNNBase)}
    for module in training:
        # cuDNN gives no gradient of a recurrent layer that is not in training: there the dropout alone is taken away.
        module.training = module in recurrent and training[module]
    for layer in recurrent:
        layer.dropout = 0.0
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was
        for layer, dropout in recurrent.items():
            layer.dropout = dropout
