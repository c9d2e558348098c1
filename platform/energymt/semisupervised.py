"""What QE-EBM and the baselines that it is compared with share: data, samples, judges, and how a step is put together.

    loss = w_S · CE(labelled pairs)  +  w_U · L(unlabelled sources)

They differ in L alone: the energy of relaxed samples (`qe_ebm`), REINFORCE, or PPO. Each learns from K samples of each
unlabelled source, drawn from the present translator (with `samples_ahead` from that of one step ago). In the unlabelled
part dropout is off, as it is when samples are drawn, so that (at `top_p` and `temperature` 1) their probabilities are
those that they were drawn with.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from energymt.ahead import Ahead
from energymt.balance import Balance, BalanceConfig
from energymt.data.batching import EncodedCorpus, Plan, StepPlan, encode_corpus
from energymt.data.corpus import Corpus, DataConfig, read_corpus, sources_alone, task_prefixes
from energymt.data.neighbours import load_neighbours
from energymt.data.pairing import NeighbourPlan, PairedPlan
from energymt.decoding.sampling import SAMPLE_STREAM, Samples, sample
from energymt.dev_judges import JudgedConfig, on_dev, open_judges, require_judge, require_other_judge
from energymt.development import translate_dev, translation_scores
from energymt.devices import choose_device
from energymt.energies import QualityEnergy
from energymt.energies.quality import Asynchronous
from energymt.errors import ConfigurationError
from energymt.folders import write_atomically
from energymt.models import AutoregressiveModel
from energymt.models.learning import Learns
from energymt.monitor import Monitor
from energymt.operators import Noise
from energymt.outcome import CHOICE
from energymt.preparation import Text, open_model, prepare_text, require_room
from energymt.quality import POOL, open_original, open_quality
from energymt.records import Batch, Mixture, Pending, Step, StepBatch, Term
from energymt.storage import fetch
from energymt.teacher_forcing import negative_log_likelihood

LABELLED, UNLABELLED = "labelled", "unlabelled"
STATE_FILE = "method.json"


class SemiSupervisedConfig(JudgedConfig):
    """What every method that learns from unlabelled sources can be told."""

    unlabelled: DataConfig | None = None
    """Sources without translations (a target column is not read); None takes the labelled sources again."""
    neighbours: str | None = None
    """Folder of `energymt data neighbours`: the unlabelled sources of a step are the nearest ones of its labelled ones
    (QE-EBM); None takes them in an order of their own."""
    quality: str
    """Address of the quality estimator: a folder, or `pool:NAME`."""
    choose_by: Literal["chrf", "bleu", "judge"] = "chrf"
    """Dev value that chooses the checkpoint. (QE-EBM chooses by the estimator that it trains with.)"""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Of the cross-entropy, as in `supervised`."""
    samples: PositiveInt = 5
    """K, translations drawn of each unlabelled source (QE-EBM: 5)."""
    longest_sample: PositiveInt = 50
    """Most tokens of a sample (QE-EBM: 50)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus that samples are drawn from; 1 is the translator's own distribution (QE-EBM: 1, its REINFORCE: 0.9)."""
    temperature: PositiveFloat = 1.0
    """Of the samples."""
    samples_ahead: bool = False
    """Draw the samples of the next step while the estimator answers for this one: they come from the translator as it
    was one optimizer step ago, and a pool's answers are waited for less. (Not for PPO; the first step behind a
    checkpoint draws its own.)"""
    unlabelled_tokens_per_step: PositiveInt = 512
    """Source tokens (end tokens counted) of the unlabelled part of a step, over all workers."""
    balance: BalanceConfig = BalanceConfig()
    """How the unlabelled loss is weighed against the cross-entropy."""
    deterministic: bool = False
    """A pool computes every request alone, so that a run can be repeated bit by bit."""
    run_name: str | None = None
    """By which a pool that learns knows the run, and needs one; two runs that teach at once need two pools."""


@dataclass(frozen=True)
class Drawn:
    """Samples of a micro-batch with their sources, R = B · K rows."""

    batch: Batch
    samples: Samples
    noise: Noise  # of the R samples

    @property
    def mask_RT(self) -> Tensor:
        return self.samples.mask_RT

    @property
    def ids_RT(self) -> Tensor:
        return self.samples.ids_RT


class SemiSupervised:
    """A labelled and an unlabelled loss in every step; subclasses say what the unlabelled one is.

    Attributes:
        waited: seconds that this process has waited for the estimator since it was last asked (`times`).
    """

    HIGHER_IS_BETTER = True
    TERM = "energy"
    """Name of the unlabelled loss."""

    def __init__(self, config: SemiSupervisedConfig, learns: Learns | None = None, feed: str = "ST") -> None:
        require_judge(config, config.choose_by)
        require_other_judge(config, config.quality)
        if config.balance.kind == "gradnorm" and self.TERM != "energy":
            raise ConfigurationError(
                f"balance.kind is gradnorm, which follows how fast a loss falls, and {self.TERM} is none that falls: "
                f"use ratio, projection or constant."
            )
        if learns is not None and config.quality.startswith(POOL) and config.run_name is None:
            raise ConfigurationError(
                "A pool that learns knows a run by its name: set run_name to one of this run's own."
            )
        self.config = config
        self.METRIC = f"dev/{config.choose_by}"
        self.text = prepare_text(config)
        model = open_model(config, self.text.vocabulary)
        if not isinstance(model, AutoregressiveModel):
            raise ConfigurationError(
                f"{config.model.init or config.model.variant!r} is not autoregressive, and samples are drawn from an "
                f"autoregressive translator; use `energymt train engine --set quality=...` for it."
            )
        self.model = model
        corpus, unlabelled = read_unlabelled(config, self.text)
        require_room(unlabelled, config, "train" if config.unlabelled is None else "unlabelled", model)
        self.device = choose_device(config.device)
        self.quality = open_quality(
            config.quality, self.device, run=config.run_name or "", learns=learns, deterministic=config.deterministic
        )
        prefixes = task_prefixes([self.text.train_corpus, self.text.dev_corpus, corpus])
        self.energy = QualityEnergy(
            self.quality.estimator, self.text.vocabulary, feed, config.least_coverage, prefixes, self.device
        )
        judges = open_judges(config, self.text, self.quality, self.device)
        if learns is not None:
            judges["quality_frozen"] = on_dev(open_original(config.quality, self.device), self.text)
        self.plan = make_plan(config, self.text, corpus, unlabelled)
        self.balance = Balance(config.balance, config.steps)
        self.start = copy.deepcopy(model).eval().requires_grad_(False).to(self.device)
        self.monitor = Monitor(
            model, self.start, self.text.dev_corpus, self.energy, judges, config.alarms, config.stop_at_alarm
        )
        self.ahead = Ahead(self.draw_now, config.checkpoint_every, config.steps) if config.samples_ahead else None
        self.waited = self.drawing = 0.0
        self.unscored = 0
        self.ratios: list[float] = []  # of gradient norms since the last evaluation
        self.cosines: list[float] = []

    def begin(self) -> bool:
        """An estimator that learns is as it was before anybody taught it; alarms compare with the start."""
        if self.quality.pupil is not None:
            self.quality.pupil.begin()
        return True

    # ------------------------------------------------------------------------------------------------------ the step

    def mixture(self, batch: StepBatch, unlabelled: Step) -> Mixture:
        """The step of a batch, given its unlabelled part."""
        if self.ahead is not None:
            self.ahead.begin(batch, self.plan)
        labelled = Step(("nll",), batch.micro_batches, self.labelled_losses, self.labelled_counts)

        def weigh(gram_PP: Tensor, means: Mapping[str, float]) -> list[float]:
            if self.ahead is not None:
                self.ahead.end()
            gram_PP = gram_PP.flip(0, 1)  # here the labelled part comes first
            losses = (means.get("nll", 0.0), 1.0 + means.get(self.TERM, 0.0))
            if self.config.balance.kind == "gradnorm" and losses[1] <= 0:
                raise ConfigurationError(
                    f"balance.kind is gradnorm, which compares losses, and 1 − score is {losses[1]:.3g} at step "
                    f"{batch.step + 1}: the scores of {self.config.quality} are not those between 0 and 1 that it is "
                    f"for. Use ratio or projection."
                )
            weights = self.balance.weigh(gram_PP, batch.step, losses)
            self.note(means)
            norms = gram_PP.diagonal().sqrt().tolist()
            if min(norms) > 0 and weights[0] > 0:
                self.ratios.append(weights[1] * norms[1] / (weights[0] * norms[0]))
                self.cosines.append(float(gram_PP[0, 1]) / (norms[0] * norms[1]))
            return [weights[1], weights[0]]

        return Mixture({UNLABELLED: unlabelled, LABELLED: labelled}, weigh, self.times)

    def note(self, means: Mapping[str, float]) -> None:
        """The mean of every term of a step, over all workers; for methods that remember it."""

    def labelled_counts(self, batch: Batch) -> dict[str, float]:
        """Target tokens, end tokens counted."""
        return {"nll": float(batch.target_mask_BT.sum() + len(batch))}

    def labelled_losses(self, batch: Batch) -> list[Term]:
        """The label-smoothed cross-entropy, as in `supervised`."""
        nll = negative_log_likelihood(self.model, batch, self.config.label_smoothing)
        return [Term("nll", nll, self.labelled_counts(batch)["nll"])]

    def sample_counts(self, batch: Batch) -> dict[str, float]:
        """Samples."""
        return {self.TERM: float(len(batch) * self.config.samples)}

    def draw(self, batch: Batch, step: int) -> Drawn:
        """K samples of each source of the next micro-batch of a step."""
        ready = None if self.ahead is None else self.ahead.take()
        return self.draw_now(batch, step) if ready is None else ready

    def draw_now(self, batch: Batch, step: int) -> Drawn:
        """K samples of each source of a micro-batch, from the present translator."""
        batch = batch.to(self.device)
        before = time.perf_counter()
        noise = Noise(self.config.seed, step, batch.sentence_ids_B, SAMPLE_STREAM)
        drawn = sample(
            self.model,
            batch.source,
            noise,
            self.config.samples,
            max_length=self.config.longest_sample,
            temperature=self.config.temperature,
            top_p=self.config.top_p,
        )
        numbers_R = torch.arange(len(drawn.ids_RT), device=drawn.ids_RT.device) % self.config.samples
        ids_R = batch.sentence_ids_B[drawn.rows_R] * self.config.samples + numbers_R
        self.drawing += time.perf_counter() - before
        return Drawn(batch, drawn, Noise(self.config.seed, step, ids_R))

    def wait(self, begun: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """The energies that were asked for, and which could be computed; the others are 0, and counted."""
        if self.ahead is not None:
            self.ahead.work()
        before = time.perf_counter()
        energy_R = begun()
        self.waited += time.perf_counter() - before
        found_R = energy_R.isfinite()
        self.unscored += int((~found_R).sum())
        return torch.where(found_R, energy_R, torch.zeros_like(energy_R)), found_R

    def later(self, terms: Pending) -> list[Term] | Pending:
        """Terms that wait for an answer: as they are where it comes from elsewhere, at once where it is there."""
        return terms if isinstance(self.quality.estimator, Asynchronous) else terms()

    def times(self) -> dict[str, float]:
        """Seconds of a step that went into drawing and into waiting for the estimator."""
        values = {"draw_s": self.drawing, "wait_s": self.waited, "unscored": float(self.unscored)}
        self.drawing = self.waited = 0.0
        self.unscored = 0
        return values

    # ----------------------------------------------------------------------------------------------- dev, checkpoints

    def evaluate(self) -> dict[str, float]:
        """Dev values of greedy translations: BLEU, chrF, the estimators, signs of gaming, and the one that chooses."""
        outputs = translate_dev(self.model, self.text.dev_corpus)
        values = translation_scores(self.model, self.text.dev_corpus, outputs=outputs)
        training = {"train/gradient_ratio": self.ratios, "train/gradient_cosine": self.cosines}
        means = {name: sum(found) / len(found) for name, found in training.items() if found}
        values |= self.monitor.look(outputs, {**values, **means})
        values[CHOICE] = values[self.METRIC]  # for a sweep, which must name one value for every configuration
        self.ratios, self.cosines = [], []
        return values

    def save_state(self, folder: Path) -> None:
        """What a checkpoint must hold besides weights: GradNorm's weights, the values so far, what was learnt."""
        state = {
            "balance": self.balance.state(),
            "history": self.monitor.history,
            "ratios": self.ratios,
            "cosines": self.cosines,
        }
        write_atomically(folder / STATE_FILE, json.dumps(state))
        if self.quality.pupil is not None:
            self.quality.pupil.save_state(folder)

    def load_state(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        self.balance.load(state["balance"])
        self.monitor.history = state["history"]
        self.ratios, self.cosines = state["ratios"], state["cosines"]
        if self.quality.pupil is not None:
            self.quality.pupil.load_state(folder)

    def leave_estimator(self, folder: Path) -> None:
        """Write an estimator that has learnt, as it is after the last step, into a folder beside the model."""
        if self.quality.pupil is not None:
            self.quality.pupil.taught().save_pretrained(folder, {"taught_from": self.config.quality})

    def close(self) -> None:
        """Return the lease of a pool."""
        self.quality.close()


def read_unlabelled(config: SemiSupervisedConfig, text: Text) -> tuple[Corpus, EncodedCorpus]:
    """The unlabelled sources as text and as ids; the labelled ones where none are named."""
    limits = (config.train if config.unlabelled is None else config.unlabelled).max_source_tokens
    if config.unlabelled is None:
        corpus = text.train_corpus
    else:
        corpus = read_corpus(sources_alone(config.unlabelled), need_target=False)
    corpus = replace(corpus, target=None)
    return corpus, encode_corpus(corpus, text.vocabulary, limits, limits)


def make_plan(config: SemiSupervisedConfig, text: Text, corpus: Corpus, unlabelled: EncodedCorpus) -> Plan:
    """Labelled and unlabelled batches: neighbours of each other, or each in its own order."""
    # A sample may be longer than its source, and each takes as much room as the longest may.
    room, width = max(1, config.tokens_per_micro_batch // config.samples), config.longest_sample + 1
    if config.neighbours is not None:
        found = load_neighbours(fetch(config.neighbours), text.train_corpus, corpus)
        share = min(1.0, config.unlabelled_tokens_per_step / config.tokens_per_step)
        return NeighbourPlan(text.plan, unlabelled, found, share, max(1, room // width))
    return PairedPlan(
        text.plan, StepPlan(unlabelled, config.unlabelled_tokens_per_step, room, config.seed, least_width=width)
    )
