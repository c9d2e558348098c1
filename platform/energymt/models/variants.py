"""Named sizes of every architecture: what a paper used, what a laptop trains, what the toy language needs."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from energymt.configuration import validate
from energymt.data.vocabulary import Vocabulary
from energymt.errors import ConfigurationError
from energymt.models.masked import MaskedConfig, MaskedTranslator
from energymt.models.recurrent import RecurrentConfig, RecurrentTranslator, TaggerConfig, TaggerTranslator
from energymt.models.speech import SpeechConfig, SpeechTransformer
from energymt.models.t5 import RelativeConfig, new_t5
from energymt.models.transformer import TransformerConfig, TransformerTranslator
from energymt.models.translator import TranslationModel

_TOY: dict[str, Any] = {
    "width": 96,
    "feedforward": 192,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "heads": 4,
    "dropout": 0.0,
}
_LAPTOP: dict[str, Any] = {
    "width": 128,
    "feedforward": 512,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "heads": 4,
    "dropout": 0.2,
}
_SMALL: dict[str, Any] = {
    "width": 256,
    "feedforward": 1024,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "heads": 4,
    "dropout": 0.3,
}

VARIANTS: dict[str, BaseModel] = {
    "transformer-toy": TransformerConfig(**_TOY),
    "transformer-laptop": TransformerConfig(**_LAPTOP),
    "transformer-small": TransformerConfig(**_SMALL),
    "transformer-base": TransformerConfig(),
    "t5-toy": RelativeConfig(width=64, feedforward=96, layers=2, heads=2, head_width=32, dropout=0.0),
    "t5-mini": RelativeConfig(width=96, feedforward=192, layers=2, heads=3, head_width=32),
    "t5-laptop": RelativeConfig(width=160, feedforward=320, layers=3, heads=5, head_width=32),
    "t5-wide": RelativeConfig(width=256, feedforward=512, layers=4, heads=4),
    "t5-small": RelativeConfig(),
    "t5-base": RelativeConfig(width=768, feedforward=2048, layers=12, heads=12),
    "whisper-toy": SpeechConfig(**{**_TOY, "mel_bins": 40, "seconds": 4, "longest": 64}),
    "whisper-laptop": SpeechConfig(**{**_LAPTOP, "dropout": 0.1, "seconds": 4, "longest": 64}),
    "whisper-tiny": SpeechConfig(width=384, feedforward=1536, encoder_layers=4, decoder_layers=4, heads=6, dropout=0.0),
    "masked-toy": MaskedConfig(**_TOY),
    "masked-laptop": MaskedConfig(**_LAPTOP),
    "masked-small": MaskedConfig(**_SMALL),
    "masked-base": MaskedConfig(),
    "recurrent-toy": RecurrentConfig(embedding=64, encoder=48, decoder=96, dropout=0.0),
    "recurrent-laptop": RecurrentConfig(embedding=128, encoder=128, decoder=192, dropout=0.2),
    "recurrent-paper": RecurrentConfig(),
    "tagger-toy": TaggerConfig(embedding=64, hidden=64, dropout=0.0),
    "tagger-laptop": TaggerConfig(embedding=128, hidden=192, dropout=0.2),
    "tagger-paper": TaggerConfig(),
}


def make_translator(variant: str, vocabulary: Vocabulary, **changes: float) -> TranslationModel:
    """A new translator of a named size with random weights; `changes` replace single fields (dropout, width, ...)."""
    if variant not in VARIANTS:
        raise ConfigurationError(f"Unknown model variant {variant!r}; choose one of {', '.join(VARIANTS)}.")
    config = VARIANTS[variant]
    config = validate(type(config), {**config.model_dump(), **changes}, f"model.changes of {variant}")
    if isinstance(config, SpeechConfig):
        return SpeechTransformer.from_config(config, vocabulary)
    if isinstance(config, TransformerConfig):
        return TransformerTranslator.from_config(config, vocabulary)
    if isinstance(config, RelativeConfig):
        return new_t5(config, vocabulary)
    if isinstance(config, MaskedConfig):
        return MaskedTranslator(config, vocabulary)
    if isinstance(config, RecurrentConfig):
        return RecurrentTranslator(config, vocabulary)
    assert isinstance(config, TaggerConfig)
    return TaggerTranslator(config, vocabulary)
