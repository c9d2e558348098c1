"""A quality estimator: predicts the score of a translation from source and translation, without a reference.

    loss = Σ_i (s(x_i, y_i) − q_i)² / variance of q

on judged translations: human ones (MLQE-PE, `z_mean`), or automatic scores of a translator's own outputs
(`energymt data judge`). From random weights, from a pre-trained encoder with a new head as COMET does, or on from
another estimator. What it learns, `energymt score`, QE-EBM and the energy pool serve.

The best checkpoint is that of the highest Pearson correlation on dev.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from energymt.configuration import ModelConfig, TrainingConfig
from energymt.data.batching import StepPlan, encode_corpus
from energymt.data.hub import HubVocabulary
from energymt.data.hub_pieces import hub_vocabulary
from energymt.data.judgements import JudgedCorpus, JudgedDataConfig, read_judged
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.errors import ConfigurationError
from energymt.metrics.estimation import correlations
from energymt.models.estimator import QualityEstimator
from energymt.models.estimator_folder import load_estimator
from energymt.models.estimator_variants import estimator_on, make_estimator
from energymt.models.scoring import score_lines
from energymt.preparation import open_vocabulary
from energymt.records import Batch, SoftTarget, Step, StepBatch, Term
from energymt.storage import fetch


class EstimatorModelConfig(ModelConfig):
    """Which estimator is trained, and from which weights."""

    variant: str = "estimator-laptop"
    """A named size: estimator-toy, -laptop, -small, -base, -large (COMET-KIWI's)."""
    init: str | None = None
    """Address of an estimator folder to start from; its embeddings stay as they are. It overrides `variant`."""
    encoder: str | None = None
    """Address of a pre-trained encoder (XLM-R, InfoXLM) that gets a new head; its embeddings stay as they are."""
    metric: Literal["unified_metric", "referenceless_regression_metric"] = "unified_metric"
    """Of a new estimator: `unified_metric` reads both texts at once, as COMET-KIWI; `referenceless_regression_metric`
    reads them apart."""


class Config(TrainingConfig):
    """Training of a quality estimator."""

    train: JudgedDataConfig
    """Judged translations to learn from."""
    dev: JudgedDataConfig
    """Judged translations that choose the checkpoint."""
    model: EstimatorModelConfig = EstimatorModelConfig()
    """The estimator that is trained."""


class Estimation:
    """Regression on judgements."""

    METRIC = "dev/pearson"
    HIGHER_IS_BETTER = True

    def __init__(self, config: Config) -> None:
        self.config = config
        train, self.dev = read_judged(config.train), read_judged(config.dev)
        self.model = open_estimator(config, train)
        limits = (config.train.max_source_tokens, config.train.max_target_tokens)
        encoded = encode_corpus(train.corpus, self.model.vocabulary, *limits)
        self.plan = StepPlan(encoded, config.tokens_per_step, config.tokens_per_micro_batch, config.seed)
        self.scores_N = torch.from_numpy(train.scores_N).float()
        self.variance = float(train.scores_N.var())
        if config.model.init is None:
            start_at(self.model, train)

    def steps(self, batch: StepBatch) -> Iterator[Step]:
        """One optimizer step a batch."""
        yield Step(("mse",), batch.micro_batches, self.losses, self.counts)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Sentences."""
        return {"mse": float(len(batch))}

    def losses(self, batch: Batch) -> list[Term]:
        """Squared error, in variances of the training scores: 1 is what the mean alone would get."""
        target = SoftTarget(batch.target_BT, self.model.lookup(batch.target_BT), batch.target_mask_BT)
        score_B = self.model(batch.source, target)
        wanted_B = self.scores_N[batch.sentence_ids_B.cpu()].to(score_B.device)
        return [Term("mse", ((score_B - wanted_B) ** 2).sum() / self.variance, float(len(batch)))]

    def evaluate(self) -> dict[str, float]:
        """Correlations with the dev judgements, and the mean squared error in their variances."""
        corpus = self.dev.corpus
        assert corpus.target is not None
        found = np.array(score_lines(self.model, corpus.source, corpus.target))
        values = correlations(found, self.dev.scores_N)
        values["mse"] = float(((found - self.dev.scores_N) ** 2).mean() / self.dev.scores_N.var())
        return {f"dev/{name}": value for name, value in values.items()}


def open_estimator(config: Config, train: JudgedCorpus) -> QualityEstimator:
    """The estimator to train: on from `init`, on a pre-trained `encoder`, or new over the pieces of `vocabulary`.

    Raises:
        ConfigurationError: an `init` that is no energy, or pieces that an estimator cannot read.
    """
    begin = config.model.init or config.model.encoder
    if config.model.lora is not None:
        raise ConfigurationError("model.lora makes adapters of a translator: drop it, or train a translator.")
    if begin is not None and config.vocabulary.path is not None:
        raise ConfigurationError(f"{begin} has a vocabulary of its own: drop vocabulary.path {config.vocabulary.path}.")
    if config.model.init is not None:
        estimator = load_estimator(fetch(config.model.init)).requires_grad_(True)
        if not estimator.differentiable:
            raise ConfigurationError(f"{config.model.init} needs references or counts error spans: it is not trained.")
    elif config.model.encoder is not None:
        estimator = estimator_on(config.model.encoder, config.model.metric)
    else:
        words = open_vocabulary(config, train.corpus)
        if isinstance(words, SentencePieceVocabulary):
            words = hub_vocabulary(words)
        assert isinstance(words, HubVocabulary)
        estimator = make_estimator(config.model.variant, words, config.model.metric, **config.model.changes)
    if not estimator.learns_embeddings:
        estimator.encoder.get_input_embeddings().requires_grad_(False)
    return estimator


@torch.no_grad()
def start_at(estimator: QualityEstimator, train: JudgedCorpus) -> None:
    """Begin a new head at the mean of the judgements, and in their unit, whatever their scale."""
    last: nn.Module = [layer for layer in estimator.head if isinstance(layer, nn.Linear)][-1]
    weight, bias = last.weight, last.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    weight.mul_(float(train.scores_N.std()))
    bias.fill_(float(train.scores_N.mean()))


TRAINABLE = Estimation
