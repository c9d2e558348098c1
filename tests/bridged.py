"""Translators' vocabularies beside the one of the estimators' of `tests.estimators`, and batches in them."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from energymt.data.hub import HubVocabulary
from energymt.data.vocabulary import SentencePieceVocabulary, Vocabulary
from energymt.energies import QualityEnergy
from energymt.operators import Noise
from energymt.records import Source
from tests import estimators, tiny

SOURCES, TRANSLATIONS = estimators.SOURCES, estimators.TRANSLATIONS
TEXT = SOURCES + TRANSLATIONS + estimators.REFERENCES


@cache
def mbart() -> HubVocabulary:
    """mBART's tokenizer over the pieces of the estimator: other special tokens, language codes at the end."""
    folder = Path(estimators.ROOT.name) / "mbart"
    folder.mkdir()
    shutil.copy(estimators.pretrained() / "sentencepiece.bpe.model", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MBart50Tokenizer"}))
    return HubVocabulary.open(folder, source_language="de_DE", target_language="en_XX")


@cache
def other() -> SentencePieceVocabulary:
    """Pieces of its own."""
    return SentencePieceVocabulary.train(TEXT, 90, model_type="bpe")


VOCABULARIES: dict[str, Callable[[], Vocabulary]] = {"mbart": mbart, "other": other}


def energy_of(words: Vocabulary, feed: str, dtype: torch.dtype = torch.float32) -> QualityEnergy:
    """The energy of a COMET-KIWI, however little of the vocabulary it knows."""
    return QualityEnergy(estimators.estimator("kiwi").to(dtype), words, feed, least_coverage=0.0)


def source_of(words: Vocabulary, lines: list[str], width: int = 0) -> Source:
    """Sources as a translator reads them."""
    return Source(*tiny.padded([words.encode_source(line) for line in lines], words.pad_id, width))


def ids_of(words: Vocabulary, lines: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Translations as ids, and their mask."""
    return tiny.padded([words.encode(line) for line in lines], words.pad_id)


def logits_of(words: Vocabulary, rows: int, length: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Logits with the tokens that cannot stand at −∞."""
    draw = torch.Generator().manual_seed(2)
    logits_BTV = 2 * torch.randn(rows, length, words.size, generator=draw, dtype=dtype)
    logits_BTV[..., list(words.never_ids)] = float("-inf")
    return logits_BTV


def noise_of(rows: int) -> Noise:
    """Noise for SG and GX."""
    return Noise(3, 4, torch.arange(5, 5 + rows))
