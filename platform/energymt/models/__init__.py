"""Translators: autoregressive teachers, non-autoregressive inference networks, and how one is read from a folder."""

from energymt.models.loading import load_translator
from energymt.models.translator import AutoregressiveModel, Memory, NonautoregressiveModel, TranslationModel
from energymt.models.variants import VARIANTS, make_translator

__all__ = [
    "VARIANTS",
    "AutoregressiveModel",
    "Memory",
    "NonautoregressiveModel",
    "TranslationModel",
    "load_translator",
    "make_translator",
]
