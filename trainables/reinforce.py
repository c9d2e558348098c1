"""REINFORCE: a translator rewarded by a quality estimator, the score-function baseline of QE-EBM.

    loss = w_S · CE(x_l, y_l)  −  w_U · mean over x_u and K samples ŷ of (s(x_u, ŷ) − b) log p(ŷ | x_u)

with s the estimator's score of the text, and the baseline b the mean score of the other K − 1 samples of the source
(leave-one-out), or a running mean of earlier steps. Data, samples, weights and dev values are those of `qe_ebm`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from energymt.decoding.inference import without_dropout
from energymt.decoding.sampling import sample_log_probs
from energymt.folders import write_atomically
from energymt.policy import leave_one_out, reinforce_loss, with_mean
from energymt.records import Batch, Mixture, Pending, Step, StepBatch, Term
from energymt.semisupervised import SemiSupervised, SemiSupervisedConfig
from energymt.teacher_forcing import teacher_forced

BASELINE_FILE = "baseline.json"


class Config(SemiSupervisedConfig):
    """REINFORCE."""

    baseline: Literal["leave-one-out", "running"] = "leave-one-out"
    """What a score is compared with: the other samples of its source, or a running mean of the steps before, of which
    the first step has none and so no advantage."""
    reward_scale: PositiveFloat = 1.0
    """Factor of the advantages, fixed for the run. Under `balance.kind` ratio or projection, which set the norm of the
    gradient in every step, it changes nothing, and the estimate is that of a direction."""
    decay: float = Field(default=0.95, ge=0, lt=1)
    """Of the running mean, a step."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.baseline == "leave-one-out" and self.samples < 2:
            raise ValueError("leave-one-out compares samples of one source: set samples to 2 at least")
        return self


class Reinforce(SemiSupervised):
    """The score function estimator."""

    TERM = "reinforce"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.options = config
        self.running: float | None = None

    def steps(self, batch: StepBatch) -> Iterator[Mixture]:
        """One optimizer step a batch."""

        def losses(micro: Batch) -> list[Term] | Pending:
            return self.losses(micro, batch.step)

        yield self.mixture(batch, Step((self.TERM, "reward"), batch.unlabelled, losses, self.counts))

    def counts(self, batch: Batch) -> dict[str, float]:
        """Samples."""
        return {**self.sample_counts(batch), "reward": float(len(batch) * self.config.samples)}

    def losses(self, batch: Batch, step: int) -> list[Term] | Pending:
        """Scores are asked for at once, and waited for when the translator has said how probable its samples are."""
        drawn = self.draw(batch, step)
        rows_R = drawn.samples.rows_R
        begun = self.energy.begin_text(batch.source.select(rows_R), drawn.ids_RT, drawn.mask_RT)
        with without_dropout(self.model):
            memory = self.model.encode(batch.source).select(rows_R)
            logits_RUV = teacher_forced(self.model, memory, drawn.ids_RT, drawn.mask_RT)
        logp_RU, mask_RU = sample_log_probs(self.model, logits_RUV, drawn.samples)

        def terms() -> list[Term]:
            energy_R, scored_R = self.wait(begun)
            advantage_R = self.options.reward_scale * self.advantages(-energy_R, scored_R)
            count = float(len(rows_R))
            loss = reinforce_loss(logp_RU, mask_RU, advantage_R)
            reward = with_mean(-energy_R, scored_R).sum()
            return [Term(self.TERM, loss, count), Term("reward", reward, count, weight=0.0)]

        return self.later(terms)

    def advantages(self, reward_R: Tensor, scored_R: Tensor) -> Tensor:
        """Rewards against the baseline; 0 where there is no score."""
        if self.options.baseline == "running":
            if self.running is None:  # a mean of this micro-batch would depend on how the step is cut
                return torch.zeros_like(reward_R)
            return (reward_R - self.running).masked_fill(~scored_R, 0.0)
        groups = (-1, self.config.samples)
        return leave_one_out(reward_R.view(groups), scored_R.view(groups)).flatten()

    def note(self, means: Mapping[str, float]) -> None:
        """The mean reward of a step, over all workers."""
        if "reward" not in means:  # no unlabelled source in this step
            return
        decay = self.options.decay
        self.running = means["reward"] if self.running is None else decay * self.running + (1 - decay) * means["reward"]

    def save_state(self, folder: Path) -> None:
        """With the running mean."""
        super().save_state(folder)
        write_atomically(folder / BASELINE_FILE, json.dumps(self.running))

    def load_state(self, folder: Path) -> None:
        """With the running mean."""
        super().load_state(folder)
        self.running = json.loads((folder / BASELINE_FILE).read_text(encoding="utf-8"))


TRAINABLE = Reinforce
