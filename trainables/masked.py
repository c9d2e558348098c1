"""Cross-entropy training of the inference networks: the CMLM with partial masking, and the BiLSTM tagger.

    loss = Σ_{t masked} −log p(y_t | x, observed tokens, T)  +  −log p(T | x)

A CMLM sees a random part of the target: the number of masked tokens is uniform in 1..T (Mask-Predict, §3.1).
A tagger sees the source alone, so all its positions count.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from energymt.configuration import ModelConfig, TrainingConfig
from energymt.development import translation_scores
from energymt.errors import ConfigurationError
from energymt.losses import cross_entropy, length_loss
from energymt.models import NonautoregressiveModel
from energymt.operators import Noise
from energymt.preparation import open_model, prepare_text
from energymt.records import Batch, Step, StepBatch, Term

MASK_STREAM = 2


class Config(TrainingConfig):
    """Cross-entropy training of a non-autoregressive translator."""

    model: ModelConfig = ModelConfig(variant="masked-laptop")
    """The network that is trained."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Probability mass spread over all tokens (published CMLM: 0.1)."""
    length_weight: float = Field(default=0.1, ge=0)
    """Weight of the length loss, in nats per sentence, beside the cross-entropy in nats per token."""
    dev_iterations: PositiveInt = 1
    """Mask-predict iterations of the translations that choose the checkpoint."""


def partial_mask(mask_BT: Tensor, noise: Noise) -> Tensor:
    """Which tokens are hidden, [B, T] bool: a uniformly drawn number (at least one) of each sentence's tokens.

    A function of the noise's key and the sentence alone, so it does not change with the batch around it.
    """
    lengths_B = mask_BT.sum(1)
    share_B = noise.draw(MASK_STREAM).uniform(1, 0, 1)[:, 0, 0]
    hidden_B = 1 + (share_B * lengths_B).long().clamp(max=(lengths_B - 1).clamp(min=0))
    order_BT = noise.draw(MASK_STREAM + 1).uniform(mask_BT.shape[1], 0, 1)[..., 0].masked_fill(~mask_BT, 2.0)
    rank_BT = order_BT.argsort(dim=1, stable=True).argsort(dim=1)
    return (rank_BT < hidden_B[:, None]) & mask_BT


class Masked:
    """Masked cross-entropy with a length head."""

    METRIC = "dev/bleu"
    HIGHER_IS_BETTER = True

    def __init__(self, config: Config) -> None:
        self.config = config
        self.text = prepare_text(config)
        self.plan = self.text.plan
        model = open_model(config, self.text.vocabulary)
        if not isinstance(model, NonautoregressiveModel):
            raise ConfigurationError(
                f"masked trains non-autoregressive translators and {config.model.variant!r} is none; "
                f"use `energymt train supervised` for it."
            )
        self.model = model

    def steps(self, batch: StepBatch) -> Iterator[Step]:
        """One optimizer step a batch."""

        def hidden(micro: Batch) -> Tensor:
            if self.model.architecture == "tagger":
                return micro.target_mask_BT
            return partial_mask(micro.target_mask_BT, Noise(self.config.seed, batch.step, micro.sentence_ids_B))

        def counts(micro: Batch) -> dict[str, float]:
            return {"nll": float(hidden(micro).sum()), "length": float(len(micro))}

        yield Step(("nll", "length"), batch.micro_batches, lambda micro: self.losses(micro, hidden(micro)), counts)

    def losses(self, batch: Batch, hidden_BT: Tensor) -> list[Term]:
        """Cross-entropy of the hidden tokens and of the length."""
        memory = self.model.encode(batch.source)
        tokens_BT = batch.target_BT.masked_fill(hidden_BT, self.text.vocabulary.mask_id)
        logits_BTV = self.model.predict(memory, tokens_BT, batch.target_mask_BT)
        nll = cross_entropy(logits_BTV, batch.target_BT, hidden_BT, self.config.label_smoothing)
        assert memory.length_logp_BL is not None
        length = length_loss(memory.length_logp_BL, batch.target_lengths_B)
        return [
            Term("nll", nll, float(hidden_BT.sum())),
            Term("length", length, float(len(batch)), self.config.length_weight),
        ]

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Dev BLEU and more of `dev_iterations` mask-predict iterations with predicted lengths."""
        return translation_scores(self.model, self.text.dev_corpus, iterations=self.config.dev_iterations)


TRAINABLE = Masked
