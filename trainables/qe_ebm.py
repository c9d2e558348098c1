"""QE-EBM: a translator trained through a quality estimator that serves as energy, static or dynamic (COLING 2025).

    loss = w_S · CE(x_l, y_l)  +  w_U · mean over x_u and K samples ŷ of E(x_u, ŷ),      E(x, y) = −s(x, y)

Each ŷ is drawn from the present translator; its teacher-forced logits are relaxed (straight-through: the value is the
token, the gradient that of the softmax), and the gradient of the estimator's score reaches the translator through them.

QE-DYNAMIC: before a step the estimator learns to tell gold translations from the translator's samples, by
noise-contrastive estimation (`energies.contrastive`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from energymt.configuration import Section
from energymt.decoding.inference import without_dropout
from energymt.decoding.sampling import decision_log_probs, possible
from energymt.energies.contrastive import Form
from energymt.errors import ConfigurationError
from energymt.lessons import chosen_pairs, make_lesson
from energymt.models.learning import Learns, LessonOptions
from energymt.policy import leave_one_out, reinforce_loss
from energymt.quality import POOL, Learnt
from energymt.records import Batch, Mixture, Pending, Prediction, Projection, Step, StepBatch, Term
from energymt.semisupervised import Drawn, SemiSupervised, SemiSupervisedConfig
from energymt.teacher_forcing import teacher_forced


class DynamicConfig(Section):
    """How the estimator learns (QE-DYNAMIC)."""

    learns: Learns | None = None
    """Weights that an estimator in this process learns (None: head). A pool was told when it was started
    (`energymt pool up --set learns=...`); another choice here is refused."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of the translator before the first one of the estimator (published code: 200)."""
    every: PositiveInt = 1
    """Steps of the translator for each one of the estimator (published code: 1)."""
    sentences: PositiveInt = 16
    """Labelled pairs of a lesson, drawn from those of the step, each with K samples (published code: 16)."""
    form: Form = "binary"
    """Noise-contrastive loss: `binary` (published code), or `ranking` (SEAL)."""
    rate: PositiveFloat = 3e-4
    """Learning rate of AdamW (published code: 3e-4)."""
    clip: PositiveFloat = 0.5
    """Largest L2 norm of the gradient (published code: 0.5)."""


class Config(SemiSupervisedConfig):
    """QE-STATIC, and with `dynamic` QE-DYNAMIC."""

    feed: Literal["SX", "STL", "SG", "ST", "GX"] = "ST"
    """Operator between translator and estimator (published code: ST)."""
    straight_through: Literal["sampled", "argmax"] = "sampled"
    """What a hard operator's value is: the sampled token, or the argmax under the sampled prefix (published code)."""
    ending: Literal["none", "reinforce"] = "none"
    """How a translator learns when to stop, of which a relaxed energy says nothing: not at all (published code), or by
    REINFORCE on its decisions to go on and to stop alone, beside the relaxed gradient of its words."""
    dynamic: DynamicConfig | None = None
    """Teach the estimator; None leaves it as it is (QE-STATIC)."""


class QeEbm(SemiSupervised):
    """Energy of relaxed samples."""

    def __init__(self, config: Config) -> None:
        if config.ending == "reinforce" and config.samples < 2:
            raise ConfigurationError(
                "ending is reinforce, and the baseline of a sample is its source's other samples: "
                "set samples to 2 or more."
            )
        super().__init__(config, None if config.dynamic is None else config.dynamic.learns or "head", config.feed)
        if config.dynamic is not None and config.dynamic.learns is not None:
            require_same_part(config.quality, config.dynamic.learns)
        self.options, self.taught = config, dict[str, float]()
        self.lesson: Learnt | None = None  # that the estimator has begun
        self.terms = (self.TERM,) if config.ending == "none" else (self.TERM, "ending")

    def steps(self, batch: StepBatch) -> Iterator[Mixture]:
        """One optimizer step a batch; the estimator learns while samples are drawn, and answers when it has learnt."""
        dynamic = self.options.dynamic
        self.taught = {}
        if dynamic is not None and batch.step >= dynamic.warmup_steps and batch.step % dynamic.every == 0:
            self.lesson = self.teach(batch, dynamic)

        def losses(micro: Batch) -> list[Term] | Pending:
            return self.losses(micro, batch.step)

        yield self.mixture(batch, Step(self.terms, batch.unlabelled, losses, self.counts))

    def counts(self, batch: Batch) -> dict[str, float]:
        """Samples, whatever the term."""
        return dict.fromkeys(self.terms, self.sample_counts(batch)[self.TERM])

    def losses(self, batch: Batch, step: int) -> list[Term] | Pending:
        """The energy of relaxed samples, asked for as soon as the estimator has had its lesson."""
        drawn = self.draw(batch, step)
        rows_R = drawn.samples.rows_R
        with without_dropout(self.model):
            memory = self.model.encode(batch.source).select(rows_R)
            said = teacher_forced(self.model, memory, drawn.ids_RT, drawn.mask_RT)
        self.end_lesson()
        begun = self.energy.begin(batch.source.select(rows_R), self.prediction(said, drawn))

        def terms() -> list[Term]:
            energy_R, scored_R = self.wait(begun)
            found = {self.TERM: energy_R.sum()}
            if self.options.ending == "reinforce":
                groups = (-1, self.config.samples)
                advantage_R = leave_one_out(-energy_R.detach().view(groups), scored_R.view(groups)).flatten()
                found["ending"] = reinforce_loss(*decision_log_probs(self.model, said, drawn.samples), advantage_R)
            return [Term(name, value, float(len(rows_R))) for name, value in found.items()]

        return self.later(terms)

    def prediction(self, said: Tensor | Projection, drawn: Drawn) -> Prediction:
        """What the translator says at each position of its samples, special tokens left out."""
        hard_RT = drawn.ids_RT if self.options.straight_through == "sampled" else None
        if isinstance(said, Projection):
            projection = possible(self.model, replace(said, hidden_BTH=said.hidden_BTH[:, :-1]), end=False)
            return Prediction(None, drawn.mask_RT, hard_RT, drawn.noise, projection)
        logits_RTV = possible(self.model, said[:, :-1], end=False)
        return Prediction(logits_RTV, drawn.mask_RT, hard_RT, drawn.noise)

    def teach(self, batch: StepBatch, dynamic: DynamicConfig) -> Learnt:
        """Begin one step of the estimator, from gold and samples of some of the labelled pairs."""
        before = time.perf_counter()
        lesson = make_lesson(
            self.model,
            self.energy.bridge,
            [micro.to(self.device) for micro in batch.micro_batches],
            seed=self.config.seed,
            step=batch.step,
            chosen=chosen_pairs(batch, self.config.seed, dynamic.sentences),
            samples=self.config.samples,
            longest=self.config.longest_sample,
        )
        options = LessonOptions(rate=dynamic.rate, clip=dynamic.clip, form=dynamic.form)
        assert self.quality.pupil is not None
        learnt = self.quality.pupil.learn(lesson, batch.step, batch.rank, batch.world, options)

        def ended() -> dict[str, float]:
            found = {f"lesson/{name}": value for name, value in learnt().items()}
            return {**found, "lesson_s": time.perf_counter() - before}

        return ended

    def end_lesson(self) -> None:
        """Wait for the lesson of this step, if it has one that was not waited for."""
        if self.lesson is not None:
            before = time.perf_counter()
            self.taught, self.lesson = self.lesson(), None
            self.waited += time.perf_counter() - before

    def times(self) -> dict[str, float]:
        """With what the lesson of this step came to, for which a worker without unlabelled sources waits here."""
        self.end_lesson()
        return {**super().times(), **self.taught}


def require_same_part(quality: str, learns: Learns) -> None:
    """Raise a ConfigurationError if the estimator is served by a pool that learns other weights."""
    if not quality.startswith(POOL):
        return
    from energymt.pool.opening import learnt_part

    found = learnt_part(quality.removeprefix(POOL))
    if found != learns:
        raise ConfigurationError(
            f"dynamic.learns is {learns}, and {quality} was started with learns={found}: leave dynamic.learns out, or "
            f"start the pool again with `--set learns={learns}`."
        )


TRAINABLE = QeEbm
