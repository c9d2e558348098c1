"""New quality estimators: of a named size with random weights, or a new head on a pre-trained encoder."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from safetensors import SafetensorError
from transformers import PreTrainedModel, XLMRobertaConfig, XLMRobertaModel

from energymt.configuration import validate
from energymt.data.hub import HubVocabulary
from energymt.errors import ConfigurationError, StorageError
from energymt.models.estimator import QualityEstimator
from energymt.models.estimator_config import EstimatorConfig, Metric
from energymt.models.estimator_folder import read_encoder
from energymt.storage import fetch


class EstimatorSize(BaseModel):
    """An encoder of XLM-R's kind and the head on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: PositiveInt
    feedforward: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    head_sizes: tuple[PositiveInt, ...]
    dropout: float = Field(default=0.1, ge=0, lt=1)
    longest: PositiveInt = 512


ESTIMATORS = {
    "estimator-toy": EstimatorSize(width=64, feedforward=128, layers=2, heads=4, head_sizes=(64,), dropout=0.0),
    "estimator-laptop": EstimatorSize(width=128, feedforward=512, layers=3, heads=4, head_sizes=(256, 128)),
    "estimator-small": EstimatorSize(width=256, feedforward=1024, layers=4, heads=4, head_sizes=(512, 256)),
    "estimator-base": EstimatorSize(width=768, feedforward=3072, layers=12, heads=12, head_sizes=(2048, 1024)),
    "estimator-large": EstimatorSize(width=1024, feedforward=4096, layers=24, heads=16, head_sizes=(3072, 1024)),
}


def make_estimator(variant: str, vocabulary: HubVocabulary, metric: Metric, **changes: float) -> QualityEstimator:
    """An estimator with random weights; its embeddings learn. `changes` replace single fields of its size.

    Raises:
        ConfigurationError: an unknown variant, or an impossible size.
    """
    if variant not in ESTIMATORS:
        raise ConfigurationError(f"Unknown estimator variant {variant!r}; choose one of {', '.join(ESTIMATORS)}.")
    origin = f"model.changes of {variant}"
    size = validate(EstimatorSize, {**ESTIMATORS[variant].model_dump(), **changes}, origin)
    if size.width % size.heads:
        raise ConfigurationError(f"{origin}: a width of {size.width} does not divide by {size.heads} heads.")
    config = XLMRobertaConfig(
        vocab_size=vocabulary.size,
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        intermediate_size=size.feedforward,
        hidden_dropout_prob=size.dropout,
        attention_probs_dropout_prob=size.dropout,
        max_position_embeddings=size.longest + 2,
        type_vocab_size=1,
        pad_token_id=vocabulary.pad_id,
        bos_token_id=vocabulary.bos_id,
        eos_token_id=vocabulary.eos_id,
    )
    encoder = XLMRobertaModel(config, add_pooling_layer=False)
    estimator = _on(encoder, vocabulary, metric, size.head_sizes, size.dropout)
    estimator.learns_embeddings = True
    return estimator


def estimator_on(address: str, metric: Metric) -> QualityEstimator:
    """A new head (COMET-KIWI's sizes) on a pre-trained encoder: XLM-R, InfoXLM. Its embeddings stay as they are.

    Raises:
        StorageError: there is no such encoder or tokenizer.
        ConfigurationError: an encoder of another type.
    """
    folder = fetch(address)
    vocabulary = HubVocabulary.open(folder)
    try:
        encoder = read_encoder(folder)
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise StorageError(f"{address} holds no encoder that an estimator can stand on ({reason}).") from None
    size = ESTIMATORS["estimator-large"]
    return _on(encoder, vocabulary, metric, size.head_sizes, size.dropout)


def _on(
    encoder: PreTrainedModel, vocabulary: HubVocabulary, metric: Metric, head_sizes: tuple[int, ...], dropout: float
) -> QualityEstimator:
    config = EstimatorConfig(
        metric=metric,
        parts=("mt", "src"),
        layer="mix",
        transformation="softmax",
        layer_norm=False,
        pool="cls" if metric == "unified_metric" else "avg",
        hidden_sizes=head_sizes,
        activation="tanh",
        final_activation=None,
        dropout=dropout,
    )
    return QualityEstimator(config, encoder, vocabulary)
