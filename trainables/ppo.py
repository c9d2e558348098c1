"""PPO: a translator rewarded by a quality estimator, in clipped steps, the second policy-gradient baseline of QE-EBM.

    loss = w_S · CE(x_l, y_l)  +  w_U · mean over samples of [ −Σ_t min(ρ_t A_t, clip(ρ_t, 1 ± ε) A_t) + β KL_t ]

with ρ_t = p(ŷ_t) / p_old(ŷ_t), p_old the translator that drew the samples, and KL_t to the translator at the start. A
batch gives `inner_steps` optimizer steps on the same samples and scores. The advantages A come from the other samples
of a source, or from a value head on the decoder's last states with generalised advantage estimation (Schulman et al.
2017).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from energymt.decoding.inference import without_dropout
from energymt.decoding.sampling import sample_log_probs
from energymt.policy import (
    clipped_surrogate,
    generalised_advantages,
    group_advantage,
    kl_estimate,
    value_loss,
    with_mean,
)
from energymt.records import Batch, Mixture, Pending, Step, StepBatch, Term
from energymt.semisupervised import Drawn, SemiSupervised, SemiSupervisedConfig
from energymt.teacher_forcing import dense_if_small, teacher_forced


class Config(SemiSupervisedConfig):
    """PPO."""

    inner_steps: PositiveInt = 2
    """Optimizer steps on the samples of one batch (QE-EBM's PPO: 2 epochs)."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """ε, how far a token's probability may move in one batch (Schulman et al. 2017: 0.2)."""
    advantage: Literal["group", "value"] = "group"
    """Scores in standard deviations of the source's samples (GRPO), or against a value head."""
    trace: float = Field(default=0.95, ge=0, le=1)
    """λ of generalised advantage estimation, with a value head (Schulman et al. 2017: 0.95)."""
    value_weight: float = Field(default=0.1, ge=0)
    """Weight of the value head's loss (TRL: 0.1)."""
    kl_weight: float = Field(default=0.05, ge=0)
    """β, weight of the divergence from the start, in nats a token (TRL: 0.05)."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.advantage == "group" and self.samples < 2:
            raise ValueError("advantages within a group compare samples of one source: set samples to 2 at least")
        if self.samples_ahead:
            raise ValueError("samples_ahead is for qe_ebm and reinforce: PPO learns from samples of p_old alone")
        return self


@dataclass(frozen=True)
class Rollout:
    """Samples of a micro-batch with what was known when they were drawn; R = B · K rows."""

    drawn: Drawn
    reward_R: Tensor
    scored_R: Tensor  # bool
    start_logp_RU: Tensor
    old_logp_RU: Tensor
    old_value_RU: Tensor | None


@dataclass(frozen=True)
class Said:
    """What the present translator says of the samples of a micro-batch."""

    logp_RU: Tensor
    mask_RU: Tensor  # bool
    value_RU: Tensor | None


class Ppo(SemiSupervised):
    """Proximal policy optimisation."""

    TERM = "surrogate"

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.options = config
        self.terms = ("surrogate", "kl", "clipped", "reward") + (("value",) if config.advantage == "value" else ())
        if config.advantage == "value":
            head = nn.Linear(self.model.embedding_VD.shape[1], 1)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
            self.model.add_head("value", head)

    def steps(self, batch: StepBatch) -> Iterator[Mixture]:
        """`inner_steps` optimizer steps on the samples of a batch, which the first of them draws."""
        rollouts: list[Rollout] = []

        def first(micro: Batch) -> list[Term] | Pending:
            return self.first_losses(micro, batch.step, rollouts)

        yield self.mixture(batch, Step(self.terms, batch.unlabelled, first, self.counts))
        for _ in range(1, self.options.inner_steps):
            again = iter(rollouts)

            def losses(micro: Batch) -> list[Term]:
                rollout = next(again)  # noqa: B023 - the loop takes a step before it comes to the next
                return self.losses(rollout, self.say(rollout.drawn))

            yield replace(self.mixture(batch, Step(self.terms, batch.unlabelled, losses, self.counts)), more=dict)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Samples."""
        return dict.fromkeys(self.terms, float(len(batch) * self.config.samples))

    def first_losses(self, batch: Batch, step: int, rollouts: list[Rollout]) -> list[Term] | Pending:
        """The terms of the translator that drew the samples; scores are asked for at once, and waited for last."""
        drawn = self.draw(batch, step)
        batch, samples = drawn.batch, drawn.samples
        begun = self.energy.begin_text(batch.source.select(samples.rows_R), drawn.ids_RT, drawn.mask_RT)
        with torch.no_grad():
            memory = self.start.encode(batch.source).select(samples.rows_R)
            logits_RUV = teacher_forced(self.start, memory, drawn.ids_RT, drawn.mask_RT)
            start_logp_RU, _ = sample_log_probs(self.start, logits_RUV, samples)
        said = self.say(drawn)

        def terms() -> list[Term]:
            energy_R, scored_R = self.wait(begun)
            old_value_RU = None if said.value_RU is None else said.value_RU.detach()
            rollout = Rollout(drawn, -energy_R, scored_R, start_logp_RU, said.logp_RU.detach(), old_value_RU)
            rollouts.append(rollout)
            return self.losses(rollout, said)

        return self.later(terms)

    def say(self, drawn: Drawn) -> Said:
        """A forward pass over samples."""
        samples = drawn.samples
        with without_dropout(self.model):
            memory = self.model.encode(drawn.batch.source).select(samples.rows_R)
            projection = self.model.decode_projection(memory, samples.ids_RT, samples.mask_RT)
        logp_RU, mask_RU = sample_log_probs(self.model, dense_if_small(projection), samples)
        if self.options.advantage == "group":
            return Said(logp_RU, mask_RU, None)
        return Said(logp_RU, mask_RU, self.model.heads["value"](projection.hidden_BTH).squeeze(-1).float())

    def losses(self, rollout: Rollout, said: Said) -> list[Term]:
        """The terms of a micro-batch."""
        logp_RU, mask_RU, count = said.logp_RU, said.mask_RU, float(len(said.logp_RU))
        more: list[Term] = []
        if said.value_RU is not None:
            advantage_RU, loss = self.traced(rollout, said.value_RU, mask_RU)
            more = [Term("value", loss, count, self.options.value_weight)]
        else:
            groups = (-1, self.config.samples)
            advantage_R = group_advantage(rollout.reward_R.view(groups), rollout.scored_R.view(groups)).flatten()
            advantage_RU = advantage_R[:, None].expand_as(logp_RU)
        loss, clipped = clipped_surrogate(logp_RU, rollout.old_logp_RU, advantage_RU, mask_RU, self.options.clip)
        kl = kl_estimate(logp_RU, rollout.start_logp_RU, mask_RU).sum()
        reward = with_mean(rollout.reward_R, rollout.scored_R).sum()
        return [
            Term("surrogate", loss, count),
            Term("kl", kl, count, self.options.kl_weight),
            Term("clipped", clipped / mask_RU.sum().clamp(min=1) * count, count, weight=0.0),
            Term("reward", reward, count, weight=0.0),
            *more,
        ]

    def traced(self, rollout: Rollout, value_RU: Tensor, mask_RU: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages against the value head, and its loss; a sample without a score has neither."""
        assert rollout.old_value_RU is not None
        mask_RU = mask_RU & rollout.scored_R[:, None]
        reward_RU = torch.zeros_like(rollout.old_value_RU)
        last_R1 = mask_RU.sum(1, keepdim=True).clamp(min=1) - 1
        reward_RU = reward_RU.scatter(1, last_R1, rollout.reward_R[:, None].to(reward_RU))
        advantage_RU, return_RU = generalised_advantages(
            reward_RU, rollout.old_value_RU, mask_RU, discount=1.0, trace=self.options.trace
        )
        return advantage_RU, value_loss(value_RU, rollout.old_value_RU, return_RU, mask_RU, self.options.clip)


TRAINABLE = Ppo
