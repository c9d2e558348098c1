"""The mean of several models' weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from energymt.errors import ConfigurationError
from energymt.models.loading import load_translator


def average_models(folders: Sequence[Path], out: Path) -> None:
    """Write the model whose weights are the mean of those in `folders`.

    Raises:
        ConfigurationError: fewer than two models, models of different shapes or vocabularies, or `out` is there.
    """
    if len(folders) < 2:
        raise ConfigurationError("Averaging takes at least two model folders, and then the folder to write.")
    if out.exists():
        raise ConfigurationError(f"{out} is there already; name the folder to write last, and a new one.")
    mean = load_translator(folders[0])
    total = {name: tensor.double() for name, tensor in mean.state_dict().items()}
    for folder in folders[1:]:
        other = load_translator(folder)
        state = other.state_dict()
        same = state.keys() == total.keys() and all(state[name].shape == total[name].shape for name in total)
        if not same or other.vocabulary.fingerprint != mean.vocabulary.fingerprint:
            raise ConfigurationError(
                f"{folder} and {folders[0]} differ in architecture or vocabulary; average like with like."
            )
        for name, tensor in state.items():
            total[name] += tensor.double()
    with torch.no_grad():
        for name, tensor in mean.state_dict().items():
            tensor.copy_(total[name] / len(folders))
    mean.save_pretrained(out, {"mean_of": [str(folder) for folder in folders]})
