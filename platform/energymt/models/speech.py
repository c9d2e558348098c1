"""Speech recognition: a Whisper encoder-decoder (Radford et al. 2022, arXiv:2212.04356) as an autoregressive model.

Its encoder hears log-mel features of one window and attends to all of it, padding too; where the recording ends is told
by `Memory.mask_BS` alone, for those who want to know. The decoder is that of every other transformer here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from transformers import PreTrainedModel, WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from energymt.data.hub import open_tokenizer
from energymt.data.speech import ENCODER_STRIDE, LogMel
from energymt.data.vocabulary import Vocabulary
from energymt.data.whisper import Task, WhisperVocabulary, start_of_transcript
from energymt.errors import ConfigurationError, StorageError
from energymt.models.pretrained import without_bars
from energymt.models.transformer import TransformerConfig, TransformerTranslator
from energymt.models.translator import Memory
from energymt.records import Input, Sound, sound_of

FEATURES_FILE = "preprocessor_config.json"


class SpeechConfig(TransformerConfig):
    """Sizes of a recogniser made from scratch (Whisper: two convolutions in front, pre-norm, tied embeddings)."""

    mel_bins: PositiveInt = 80
    """Mel bins of a frame (Whisper: 80)."""
    seconds: PositiveInt = 30
    """Length of the window; 50 encoder states a second (Whisper: 30)."""
    longest: int = Field(default=448, ge=8)
    """Most tokens of a transcript (Whisper: 448)."""


class SpeechTransformer(TransformerTranslator):
    """A Whisper model as an autoregressive model of transcripts.

    Args:
        network: the model.
        vocabulary: of the transcripts.
        prefix_ids: what the decoder reads before the first word.
        features: what the encoder hears.

    Raises:
        ConfigurationError: if features, vocabulary and network do not belong together.
    """

    architecture = "speech"

    def __init__(
        self, network: PreTrainedModel, vocabulary: Vocabulary, prefix_ids: tuple[int, ...], features: LogMel
    ) -> None:
        hears = (network.config.num_mel_bins, network.config.max_source_positions)
        offered = (int(features.extractor.feature_size), features.states)
        if hears != offered:
            raise ConfigurationError(
                f"The model hears {hears[0]} mel bins and {hears[1]} states, and its feature extractor makes "
                f"{offered[0]} and {offered[1]}: take the {FEATURES_FILE} that belongs to it."
            )
        super().__init__(network, vocabulary, prefix_ids)
        self.features = features

    @staticmethod
    def from_config(config: SpeechConfig, vocabulary: Vocabulary) -> SpeechTransformer:  # type: ignore[override]
        """A new model with random weights over `vocabulary`; the start token is the vocabulary's bos."""
        features = LogMel.of(config.mel_bins, config.seconds)
        whisper = WhisperConfig(
            vocab_size=vocabulary.size,
            num_mel_bins=config.mel_bins,
            d_model=config.width,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            encoder_attention_heads=config.heads,
            decoder_attention_heads=config.heads,
            encoder_ffn_dim=config.feedforward,
            decoder_ffn_dim=config.feedforward,
            dropout=config.dropout,
            max_source_positions=features.states,
            max_target_positions=config.longest,
            init_std=config.width**-0.5,
            pad_token_id=vocabulary.pad_id,
            bos_token_id=vocabulary.bos_id,
            eos_token_id=vocabulary.eos_id,
            decoder_start_token_id=vocabulary.bos_id,
            begin_suppress_tokens=None,
        )
        return SpeechTransformer(WhisperForConditionalGeneration(whisper), vocabulary, (vocabulary.bos_id,), features)

    @staticmethod
    def from_checkpoint(  # type: ignore[override]
        folder: Path, language: str | None = None, task: Task = "transcribe"
    ) -> SpeechTransformer:
        """A Whisper checkpoint with its tokenizer and feature extractor.

        Args:
            folder: a local folder.
            language: code of the language that is spoken, for a model of several.
            task: `translate` writes English, whatever is spoken.
        """
        network = _read(folder)
        generation = network.generation_config
        vocabulary = WhisperVocabulary(
            open_tokenizer(folder),
            suppressed=getattr(generation, "suppress_tokens", None) or (),
            suppressed_first=getattr(generation, "begin_suppress_tokens", None) or (),
        )
        prefix_ids = start_of_transcript(generation, language, task)
        return SpeechTransformer(network, vocabulary, prefix_ids, _read_features(folder))

    @property
    def longest(self) -> int:
        """Most tokens of a transcript."""
        return int(self.network.config.max_target_positions) - len(self.prefix_ids)

    def encode(self, source: Input) -> Memory:
        sound = sound_of(source)
        encoder = self.network.get_encoder()
        return Memory(encoder(sound.features_BMF.to(encoder.conv1.weight.dtype)).last_hidden_state, sound.mask_BS)

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.features.extractor.save_pretrained(folder)

    def load_weights(self, folder: Path) -> None:
        self.network.load_state_dict(_read(folder).state_dict(), strict=True)

    @staticmethod
    def load(folder: Path, vocabulary: Vocabulary, config: dict[str, Any]) -> SpeechTransformer:
        """Read back what `save` wrote."""
        return SpeechTransformer(_read(folder), vocabulary, tuple(config["prefix_ids"]), _read_features(folder))

    def _attended(self, memory: Memory) -> dict[str, Tensor]:
        return {}  # all states

    def probe(self, ids: Tensor) -> Input:
        bins, states = self.network.config.num_mel_bins, self.network.config.max_source_positions
        features_BMF = torch.zeros(len(ids), bins, ENCODER_STRIDE * states, device=ids.device)
        return Sound(features_BMF, torch.ones(len(ids), states, dtype=torch.bool, device=ids.device))


def _read(folder: Path) -> PreTrainedModel:
    with without_bars():
        return WhisperForConditionalGeneration.from_pretrained(folder)


def _read_features(folder: Path) -> LogMel:
    try:
        return LogMel(WhisperFeatureExtractor.from_pretrained(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
        raise StorageError(
            f"{Path(folder) / FEATURES_FILE} is missing or damaged ({reason}); copy it from the checkpoint."
        ) from None
