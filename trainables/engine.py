"""ENGINE: an inference network trained to minimise the energy of a frozen autoregressive teacher.

    min_Ψ Σ_x E_Θ(x, A_Ψ(x))       (Tu et al. 2020, Eq. 1)

A_Ψ gives logits z_1..z_T from the source and a length, all target tokens masked; E is `AutoregressiveEnergy` with the
operators O1 (`feed`) and O2 (`score`). The length head goes on learning. The checkpoint is chosen by the *discrete*
dev energy: that of the argmax tokens (oracle lengths), because the relaxed one can fall while translations get worse;
or, by `choose_by`, by what one pass with predicted lengths writes.

Energies add up (`energies.weighted`): with `quality` the loss is E_Θ − w · s, with s the score of a quality estimator.
No paper has this combination. What an estimator trains is then watched on dev as in QE-EBM (`monitor`).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from energymt.configuration import ModelConfig, OptimizerConfig
from energymt.data.corpus import task_prefixes
from energymt.data.vocabulary import require_same
from energymt.dev_judges import JudgedConfig, open_judges, require_judge, require_other_judge
from energymt.development import energy_scores, translate_dev, translation_scores
from energymt.devices import choose_device
from energymt.distillation import pseudo_corpus
from energymt.energies import AutoregressiveEnergy, QualityEnergy
from energymt.errors import ConfigurationError
from energymt.folders import write_atomically
from energymt.losses import cross_entropy, length_loss
from energymt.metrics.alarms import AlarmConfig
from energymt.models import AutoregressiveModel, NonautoregressiveModel, load_translator
from energymt.monitor import Monitor
from energymt.operators import Noise
from energymt.preparation import open_model, prepare_text, require_room
from energymt.quality import open_quality
from energymt.records import Batch, Pending, Prediction, Step, StepBatch, Term
from energymt.storage import fetch
from trainables.masked import partial_mask

MONITOR_FILE = "monitor.json"
Operator = Literal["SX", "STL", "SG", "ST", "GX"]


class Config(JudgedConfig):
    """ENGINE training."""

    teacher: str
    """Address of the autoregressive teacher; its vocabulary is used, and `model.init` must have the same."""
    model: ModelConfig = ModelConfig(variant="masked-laptop")
    """The inference network; `model.init` is the cross-entropy baseline to start from (warm), None starts cold."""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-4, schedule="constant", warmup_steps=200, betas=(0.9, 0.999), clip_norm=10.0
    )
    """Optimizer (ENGINE §4.4 searches learning rates from 1e-6 to 5e-4)."""
    feed: Operator = "SX"
    """O1, what feeds the teacher's decoder (ENGINE §5: SX)."""
    score: Operator = "ST"
    """O2, what picks the teacher's log-probabilities (ENGINE §5: ST)."""
    target_lengths: Literal["teacher", "reference"] = "teacher"
    """Lengths during training: of the teacher's beam-5 translations of the training sources, or of the references."""
    length_weight: float = Field(default=1.0, ge=0)
    """Weight of the length loss, both in nats per sentence (published: 1)."""
    masked_weight: float = Field(default=0.0, ge=0)
    """Weight of a masked cross-entropy on the same targets, in nats per token (published code: 0)."""
    choose_by: Literal["energy", "chrf", "bleu", "judge"] = "energy"
    """Dev value that chooses the checkpoint; with `quality`, `judge` or `chrf` is what neither energy trains."""
    quality: str | None = None
    """Address of a quality estimator whose energy joins the teacher's: a folder, or `pool:NAME`; None leaves it out."""
    quality_weight: PositiveFloat = 1.0
    """w, what a point of the estimator's score is worth beside the teacher's energy, in nats."""
    quality_feed: Operator = "ST"
    """The operator between translator and estimator (QE-EBM's code: ST)."""


class Engine:
    """Energy minimisation with full masking."""

    def __init__(self, config: Config) -> None:
        require_quality(config)
        self.METRIC, self.HIGHER_IS_BETTER = f"dev/{config.choose_by}", config.choose_by != "energy"
        teacher = load_translator(fetch(config.teacher))
        if not isinstance(teacher, AutoregressiveModel):
            raise ConfigurationError(
                f"The teacher {config.teacher} is not autoregressive: its −log p is no energy here."
            )
        if config.target_lengths == "teacher":
            train = pseudo_corpus(teacher, config.teacher, config.train, device=choose_device(config.device))
            config = config.model_copy(update={"train": train})
        if config.vocabulary.path is None and config.model.init is None:
            config = config.model_copy(
                update={"vocabulary": config.vocabulary.model_copy(update={"path": config.teacher})}
            )
        self.config = config
        self.text = prepare_text(config)
        require_same(teacher.vocabulary, self.text.vocabulary, f"the teacher {config.teacher}", "the inference network")
        self.plan = self.text.plan
        model = open_model(config, self.text.vocabulary)
        if not isinstance(model, NonautoregressiveModel):
            raise ConfigurationError(
                "engine trains non-autoregressive translators; choose a masked-* or tagger-* model."
            )
        # The energy reads whole translations, also of dev; `start` looks at the training text of every method.
        require_room(self.text.dev, config, "dev", model)
        require_room(self.text.train, config, "train", teacher, f"the teacher {config.teacher}")
        require_room(self.text.dev, config, "dev", teacher, f"the teacher {config.teacher}")
        self.model = model
        self.energy = AutoregressiveEnergy(teacher, config.feed, config.score)
        device = choose_device(config.device)
        self.quality = None if config.quality is None else open_quality(config.quality, device)
        self.quality_energy: QualityEnergy | None = None
        self.monitor: Monitor | None = None
        if self.quality is not None:
            self.quality_energy = QualityEnergy(
                self.quality.estimator,
                self.text.vocabulary,
                config.quality_feed,
                config.least_coverage,
                task_prefixes([self.text.train_corpus, self.text.dev_corpus]),
                device,
            )
            self.monitor = Monitor(
                model,
                copy.deepcopy(model).eval().requires_grad_(False).to(device),
                self.text.dev_corpus,
                self.quality_energy,
                open_judges(config, self.text, self.quality, device),
                config.alarms,
                config.stop_at_alarm,
            )

    def begin(self) -> bool:
        """Alarms compare with the start; without an estimator there are none."""
        return self.monitor is not None

    def steps(self, batch: StepBatch) -> Iterator[Step]:
        """One optimizer step a batch."""
        parts = {"quality": self.quality_energy is not None, "masked": self.config.masked_weight > 0}
        names = ("energy", "length", *(name for name, there in parts.items() if there))

        def counts(micro: Batch) -> dict[str, float]:
            tokens = float(micro.target_mask_BT.sum())
            return {name: tokens if name == "masked" else float(len(micro)) for name in names}

        yield Step(names, batch.micro_batches, lambda micro: self.losses(micro, batch.step), counts)

    def losses(self, batch: Batch, step: int) -> list[Term] | Pending:
        """Energies of the fully masked pass, length loss, and the masked cross-entropy where it has weight.

        The estimator is asked before the teacher reads, and waited for when everything else is computed.
        """
        self.energy.teacher.to(batch.target_BT.device)
        noise = Noise(self.config.seed, step, batch.sentence_ids_B)
        memory = self.model.encode(batch.source)
        logits_BTV = self.model.predict(memory, self.model.unseen(batch.target_mask_BT), batch.target_mask_BT)
        prediction = Prediction(logits_BTV, batch.target_mask_BT, noise=noise)
        asked = None if self.quality_energy is None else self.quality_energy.begin(batch.source, prediction)
        energy_B = self.energy(batch.source, prediction)
        assert memory.length_logp_BL is not None
        sentences = float(len(batch))
        terms = [
            Term("energy", energy_B.sum(), sentences),
            Term(
                "length",
                length_loss(memory.length_logp_BL, batch.target_lengths_B),
                sentences,
                self.config.length_weight,
            ),
        ]
        if self.config.masked_weight > 0:
            hidden_BT = partial_mask(batch.target_mask_BT, noise)
            tokens_BT = batch.target_BT.masked_fill(hidden_BT, self.text.vocabulary.mask_id)
            nll = cross_entropy(self.model.predict(memory, tokens_BT, batch.target_mask_BT), batch.target_BT, hidden_BT)
            terms.append(Term("masked", nll, float(batch.target_mask_BT.sum()), self.config.masked_weight))
        return terms if asked is None else lambda: [*terms, self.quality_term(asked)]

    def quality_term(self, asked: Callable[[], Tensor]) -> Term:
        """The estimator's energy, when it is there; that of a sentence that could not be scored is 0."""
        energy_B = asked()
        energy_B = torch.where(energy_B.isfinite(), energy_B, torch.zeros_like(energy_B))
        return Term("quality", energy_B.sum(), float(len(energy_B)), self.config.quality_weight)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Discrete and relaxed dev energy with oracle lengths, and BLEU of one pass with predicted lengths.

        With an estimator also its score of that pass, the judge's, and signs of gaming.
        """
        values = energy_scores(self.model, self.energy, self.text.dev, self.config)
        outputs = translate_dev(self.model, self.text.dev_corpus, iterations=1)
        values |= translation_scores(self.model, self.text.dev_corpus, outputs=outputs)
        return values if self.monitor is None else values | self.monitor.look(outputs, values)

    def save_state(self, folder: Path) -> None:
        """What alarms compare with: the dev values so far."""
        if self.monitor is not None:
            write_atomically(folder / MONITOR_FILE, json.dumps(self.monitor.history))

    def load_state(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        if self.monitor is not None:
            self.monitor.history = json.loads((folder / MONITOR_FILE).read_text(encoding="utf-8"))

    def close(self) -> None:
        """Return the lease of a pool."""
        if self.quality is not None:
            self.quality.close()


def require_quality(config: Config) -> None:
    """Raise a ConfigurationError for what has no meaning where no estimator trains, and for a judge that trains."""
    asked = {
        "judge": config.judge is not None,
        "stop_at_alarm": config.stop_at_alarm,
        "alarms": config.alarms != AlarmConfig(),
        "quality_weight": config.quality_weight != Config.model_fields["quality_weight"].default,
        "quality_feed": config.quality_feed != Config.model_fields["quality_feed"].default,
    }
    fields = [field for field, is_set in asked.items() if is_set]
    if config.quality is None and fields:
        raise ConfigurationError(
            f"{fields[0]} is set and quality is not: it is for an estimator that trains, and none does. Set quality, "
            f"or leave {fields[0]} out (`energymt evaluate --judge` scores a finished model)."
        )
    require_other_judge(config, config.quality)
    require_judge(config, config.choose_by)


TRAINABLE = Engine
