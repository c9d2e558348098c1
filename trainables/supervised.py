"""Supervised training of an autoregressive translator: the teacher whose −log p becomes an energy.

    loss = Σ_t −log p(y_t | y_<t, x)   with label smoothing, the end token counted

The best checkpoint is that of the highest dev BLEU of greedy translations (ENGINE, §4.4).
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from energymt.configuration import TrainingConfig
from energymt.development import translation_scores
from energymt.errors import ConfigurationError
from energymt.models import AutoregressiveModel
from energymt.preparation import open_model, prepare_text
from energymt.records import Batch, Step, StepBatch, Term
from energymt.teacher_forcing import negative_log_likelihood


class Config(TrainingConfig):
    """Supervised training."""

    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Probability mass spread over all tokens (published ENGINE teacher: 0.1)."""


class Supervised:
    """Maximum likelihood with label smoothing."""

    METRIC = "dev/bleu"
    HIGHER_IS_BETTER = True

    def __init__(self, config: Config) -> None:
        self.config = config
        self.text = prepare_text(config)
        self.plan = self.text.plan
        model = open_model(config, self.text.vocabulary)
        if not isinstance(model, AutoregressiveModel):
            raise ConfigurationError(
                f"supervised trains autoregressive translators and {config.model.variant!r} is none; "
                f"use `energymt train masked` for it."
            )
        self.model = model

    def steps(self, batch: StepBatch) -> Iterator[Step]:
        """One optimizer step a batch."""
        yield Step(("nll",), batch.micro_batches, self.losses, self.counts)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Target tokens, end tokens counted."""
        return {"nll": float(batch.target_mask_BT.sum() + len(batch))}

    def losses(self, batch: Batch) -> list[Term]:
        """The label-smoothed cross-entropy of a micro-batch."""
        nll = negative_log_likelihood(self.model, batch, self.config.label_smoothing)
        return [Term("nll", nll, self.counts(batch)["nll"])]

    def evaluate(self) -> dict[str, float]:
        """Dev BLEU, chrF and more of greedy translations."""
        return translation_scores(self.model, self.text.dev_corpus)


TRAINABLE = Supervised
