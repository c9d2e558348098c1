"""From a proxy's address and the numbers of a user to a perturbation of a model's encoder states."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from energymt.decoding.perturbed import Norm, Perturbation
from energymt.folders import weights_fingerprint
from energymt.models.loading import AnyTranslator
from energymt.models.proxy import load_proxy
from energymt.models.transformer import TransformerTranslator
from energymt.records import Input, Source
from energymt.storage import fetch


@dataclass(frozen=True)
class PerturbationOptions:
    """What a user says of a perturbation; see `energymt.decoding.perturbed.Perturbation`."""

    proxy: str
    """Address of the proxy."""
    alphas: tuple[float, ...]
    norm: Norm = "relative"
    steps: int = 1
    trust: float = 0.0


def open_perturbation(options: PerturbationOptions, model: AnyTranslator, address: str) -> Perturbation:
    """The perturbation of a translator, on its device.

    Args:
        options: what the user said.
        model: the translator.
        address: where it came from.

    Raises:
        ConfigurationError: the proxy is another model's, or a number is impossible.
        StorageError: there is no proxy.
    """
    proxy = load_proxy(fetch(options.proxy)).to(model.device)
    change = Perturbation(proxy, options.alphas, options.norm, options.steps, options.trust)
    proxy.require_fit(weights_fingerprint(fetch(address)), states_width(model), address)
    return change


@torch.no_grad()
def states_width(model: AnyTranslator) -> int:
    """The width of a translator's encoder states."""
    ids_BS = torch.tensor([[model.vocabulary.unk_id, model.vocabulary.eos_id]], device=model.device)
    source: Input = Source(ids_BS, torch.ones_like(ids_BS, dtype=torch.bool))
    if isinstance(model, TransformerTranslator):
        source = model.probe(ids_BS)  # text, or sound
    return model.encode(source).states_BSD.shape[-1]
