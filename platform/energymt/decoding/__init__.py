"""Decoding: beam search, mask-predict, re-ranking by an energy, and the way from text to text."""

from energymt.decoding.rerank import by_energy, rerank
from energymt.decoding.translate import DecodingOptions, Translator

__all__ = ["DecodingOptions", "Translator", "by_energy", "rerank"]
