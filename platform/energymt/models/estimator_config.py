"""What a checkpoint of the COMET family says of itself, and whether its parts belong together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import nn
from transformers import PreTrainedModel

from energymt.data.hub import HubVocabulary
from energymt.errors import ConfigurationError

Metric = Literal["unified_metric", "xcomet_metric", "referenceless_regression_metric", "regression_metric"]
Part = Literal["mt", "src", "ref"]
Order = Literal["comet", "published"]
Activation = Literal["tanh", "sigmoid", "mish", "softplus", "softsign", "hardtanh", "identity"]

ENCODERS = ("xlm-roberta", "xlm-roberta-xl", "bert")  # `bert` with XLM-R's tokenizer is MiniLM
FEATURES: dict[Metric, int] = {  # vectors that the head reads
    "unified_metric": 1,
    "xcomet_metric": 1,
    "referenceless_regression_metric": 4,
    "regression_metric": 6,
}
SEVERITIES = ("none", "minor", "major", "critical")  # XCOMET's labels of a token
ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "mish": nn.Mish,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "hardtanh": nn.Hardtanh,
    "identity": nn.Identity,
}


class EstimatorConfig(BaseModel):
    """A COMET checkpoint, besides the configuration of its encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Metric
    """The class, by COMET's own identifier."""
    parts: tuple[Part, ...] = Field(min_length=2)
    """The texts that the metric reads, in the order of a joint input; `mt` is the translation."""
    layer: Literal["mix"] | int
    """Which layer's states are pooled: one by its number (0 is the embeddings), or a learnt mix of all."""
    transformation: Literal["softmax", "sparsemax"]
    """How a mix turns its weights into shares."""
    layer_norm: bool
    """Whether a mix normalises every layer over the sentence first."""
    pool: Literal["cls", "avg", "max"]
    """From positions to one vector: the first token, the mean, the maximum."""
    hidden_sizes: tuple[PositiveInt, ...] = Field(min_length=1)
    """Widths of the hidden layers of the regression head."""
    activation: Activation
    """Between the layers of the head."""
    final_activation: Activation | None
    """Behind the head."""
    dropout: float = Field(ge=0, lt=1)
    """Dropout in the head, and chance of a layer to be left out of a mix; in training alone."""
    word_layer: int | None = None
    """The layer whose states are labelled with errors (XCOMET)."""


def require_fit(config: EstimatorConfig, encoder: PreTrainedModel, vocabulary: HubVocabulary, order: Order) -> None:
    """Refuse parts that do not belong together.

    Raises:
        ConfigurationError: naming the two that disagree.
    """
    layers, rows = encoder.config.num_hidden_layers + 1, encoder.get_input_embeddings().weight.shape[0]
    if encoder.config.model_type not in ENCODERS:
        raise ConfigurationError(
            f"An encoder of type {encoder.config.model_type!r} cannot be an estimator's; use {', '.join(ENCODERS)}."
        )
    for name in ("layer", "word_layer"):
        layer = getattr(config, name)
        if isinstance(layer, int) and not 0 <= layer < layers:
            raise ConfigurationError(f"The estimator asks for {name} {layer}, but its encoder has 0 to {layers - 1}.")
    if rows < vocabulary.size:
        raise ConfigurationError(
            f"The tokenizer has {vocabulary.size:,} tokens and the encoder embeds {rows:,}: they do not belong "
            f"together."
        )
    if order == "published" and config.metric != "unified_metric":
        raise ConfigurationError(f"The order `published` is one of a joint input, and a {config.metric} has none.")
