"""Sequence-level distillation: an inference network trained by cross-entropy on its teacher's translations.

The pseudo-corpus is the teacher's beam search over the training sources (Kim and Rush 2016; the baseline of ENGINE
Tables 4 and 5). It is written once, in shards, and found again by later runs; then training is that of `masked`.
"""

from __future__ import annotations

from pydantic import PositiveInt

from energymt.configuration import VocabularyConfig
from energymt.devices import choose_device
from energymt.distillation import pseudo_corpus
from energymt.errors import ConfigurationError
from energymt.models import AutoregressiveModel, load_translator
from energymt.storage import fetch
from trainables import masked


class Config(masked.Config):
    """Training on a pseudo-corpus."""

    teacher: str
    """Address of the autoregressive teacher."""
    beam: PositiveInt = 5
    """Beam width of the pseudo-corpus (published ENGINE: 5)."""


class Distilled(masked.Masked):
    """Masked cross-entropy on the teacher's translations."""

    def __init__(self, config: Config) -> None:
        teacher = load_translator(fetch(config.teacher))
        if not isinstance(teacher, AutoregressiveModel):
            raise ConfigurationError(f"The teacher {config.teacher} is not autoregressive: it has no beam search.")
        train = pseudo_corpus(teacher, config.teacher, config.train, config.beam, choose_device(config.device))
        changes: dict[str, object] = {"train": train}
        if config.vocabulary.path is None and config.model.init is None:
            changes["vocabulary"] = VocabularyConfig(path=config.teacher)
        super().__init__(config.model_copy(update=changes))


TRAINABLE = Distilled
