"""Low-rank adapters beside linear layers: W + (alpha / rank) · B A, of which A and B alone are learnt.

Hu et al. 2021, arXiv:2106.09685. So learn a translator with `model.lora` and the estimator of a pool with `lora`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from energymt.configuration import LoraSettings
from energymt.errors import ConfigurationError

ADAPTER = "lora_"  # what peft calls the weights of an adapter


def add_adapters(network: nn.Module, targets: Sequence[str], rank: int, alpha: float, dropout: float = 0.0) -> None:
    """Put adapters beside the linear layers whose names end in one of `targets`, and freeze all else.

    They change nothing until they have learnt. A is drawn from the global generator, B is zero.
    """
    from peft import LoraConfig, inject_adapter_in_model

    scale: Any = alpha  # peft says int, and divides it by the rank
    config = LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=list(targets))
    inject_adapter_in_model(config, network)
    network.train(network.training)  # what is new is in training mode, whatever the network is in


def adapt_translator(network: PreTrainedModel, settings: LoraSettings) -> None:
    """Put adapters into an encoder-decoder, as a run's configuration asks for them.

    Raises:
        ConfigurationError: a target that is no linear layer inside the network.
    """
    targets = settings.targets or _usual_targets(network)
    linear = _linear_layers(network)
    for target in targets:
        found = [name for name, _ in network.named_modules() if f".{name}".endswith(f".{target}")]
        if not found or not linear.issuperset(found):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigurationError(
                f"model.lora.targets names {target!r}, and {type(network).__name__} has no linear layer between its "
                f"embeddings and its output of that name; they are called {', '.join(known)}."
            )
    add_adapters(network, targets, settings.rank, settings.alpha, settings.dropout)


def without_adapters(network: PreTrainedModel) -> PreTrainedModel:
    """The plain network that says the same: a copy with W + (alpha / rank) · B A in place of W, or itself if plain."""
    if not any(ADAPTER in name for name, _ in network.named_parameters()):
        return network
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = copy.deepcopy(network)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            plain.set_submodule(name, layer.get_base_layer())
    return plain


def _usual_targets(network: PreTrainedModel) -> list[str]:
    """What peft takes for this family, or all projections of its attention."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    return list(KNOWN.get(network.config.model_type, ())) or sorted(
        {
            name
            for attention in network.modules()
            if "Attention" in type(attention).__name__
            for name, layer in attention.named_children()
            if isinstance(layer, nn.Linear)
        }
    )


def _linear_layers(network: PreTrainedModel) -> set[str]:
    """The linear layers that may have an adapter; the output shares its weights with the embeddings."""
    output = network.get_output_embeddings()
    return {name for name, layer in network.named_modules() if isinstance(layer, nn.Linear) and layer is not output}
