"""The autoregressive transformer: any encoder-decoder of Hugging Face transformers, from scratch or from a checkpoint.

A family differs from the next in three points: the tokens that the decoder reads before the first word (a start token,
then perhaps a language code), whether its embeddings are scaled inside or outside of the module that takes
`inputs_embeds`, and a bias on the logits. The first is read from the configuration; the other two are *measured* when
the model is wrapped: logits from token ids and from their embeddings must agree, or the model is refused.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationInfo, field_validator
from torch import Tensor
from transformers import AutoConfig, AutoModelForSeq2SeqLM, MarianConfig, MarianMTModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from energymt.data.vocabulary import Vocabulary
from energymt.errors import ConfigurationError
from energymt.models.pretrained import without_bars
from energymt.models.translator import AutoregressiveModel, Memory
from energymt.records import Source


class TransformerConfig(BaseModel):
    """Sizes of a transformer made from scratch (Marian: sinusoidal positions, tied embeddings, post-norm)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: PositiveInt = 512
    """Model dimension (ENGINE §4.2: 512)."""
    feedforward: PositiveInt = 2048
    """Hidden dimension of the feed-forward layers (ENGINE §4.2: 2048)."""
    encoder_layers: PositiveInt = 6
    """Encoder layers (ENGINE §4.2: 6)."""
    decoder_layers: PositiveInt = 6
    """Decoder layers (ENGINE §4.2: 6)."""
    heads: PositiveInt = 8
    """Attention heads a layer (ENGINE §4.2: 8)."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of embeddings, attention outputs and feed-forward layers (published ENGINE teacher: 0.3)."""
    longest: int = Field(default=256, ge=8)
    """Most positions on either side, in tokens."""

    @field_validator("heads")
    @classmethod
    def _share_the_width(cls, heads: int, info: ValidationInfo) -> int:
        width = info.data.get("width", heads)
        if width % heads:
            raise ValueError(f"must divide the width, {width}")
        return heads


@dataclass(frozen=True)
class TransformerState:
    """Keys and values so far, and the memory that they attend to."""

    memory: Memory
    cache: Any

    def select(self, rows_R: Tensor) -> TransformerState:
        """Rows of memory and cache."""
        self.cache.reorder_cache(rows_R)
        return replace(self, memory=self.memory.select(rows_R))

    def reorder(self, rows_R: Tensor) -> TransformerState:
        """Rows of the self-attention cache alone."""
        self.cache.self_attention_cache.reorder_cache(rows_R)
        return self


class TransformerTranslator(AutoregressiveModel):
    """A Hugging Face encoder-decoder as an autoregressive translator and teacher.

    Raises:
        ConfigurationError: if logits from ids and logits from embeddings differ under every known embedding scale,
            or if the vocabulary does not fit.
    """

    architecture = "transformer"

    def __init__(self, network: PreTrainedModel, vocabulary: Vocabulary, prefix_ids: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.vocabulary = vocabulary
        self.prefix_ids = prefix_ids
        rows = self.embedding_VD.shape[0]
        if rows < vocabulary.size:
            raise ConfigurationError(
                f"The vocabulary has {vocabulary.size} tokens and the model embeds {rows}: they do not belong together."
            )
        self.embedding_scale = self._measure_scale()

    @staticmethod
    def from_config(config: TransformerConfig, vocabulary: Vocabulary) -> TransformerTranslator:
        """A new model with random weights over `vocabulary`; the start token is the vocabulary's bos."""
        marian = MarianConfig(
            vocab_size=vocabulary.size,
            decoder_vocab_size=vocabulary.size,
            d_model=config.width,
            encoder_layers=config.encoder_layers,
            decoder_layers=config.decoder_layers,
            encoder_attention_heads=config.heads,
            decoder_attention_heads=config.heads,
            encoder_ffn_dim=config.feedforward,
            decoder_ffn_dim=config.feedforward,
            dropout=config.dropout,
            attention_dropout=0.0,
            activation_dropout=0.0,
            activation_function="relu",
            max_position_embeddings=config.longest,
            scale_embedding=True,
            init_std=config.width**-0.5,
            share_encoder_decoder_embeddings=True,
            tie_word_embeddings=True,
            pad_token_id=vocabulary.pad_id,
            bos_token_id=vocabulary.bos_id,
            eos_token_id=vocabulary.eos_id,
            decoder_start_token_id=vocabulary.bos_id,
            forced_eos_token_id=None,
        )
        return TransformerTranslator(MarianMTModel(marian), vocabulary, (vocabulary.bos_id,))

    @staticmethod
    def from_checkpoint(
        folder: str | Path, vocabulary: Vocabulary, target_code: int | None = None
    ) -> TransformerTranslator:
        """A checkpoint of any Hugging Face encoder-decoder (Marian, BART, mBART, T5, M2M100, NLLB, ...).

        Args:
            folder: a local folder, or a hub id.
            vocabulary: its tokenizer, as a `HubVocabulary`.
            target_code: the id of the target language's code, where the family forces one as the first token.
        """
        network = _read(folder)
        return TransformerTranslator(network, vocabulary, start_tokens(network, target_code))

    @property
    def embedding_VD(self) -> Tensor:
        return self.network.get_decoder().get_input_embeddings().weight

    @property
    def longest(self) -> int | None:
        # T5 has relative positions, and no bound.
        positions = getattr(self.network.config, "max_position_embeddings", None)
        return None if positions is None else positions - len(self.prefix_ids)

    def encode(self, source: Source) -> Memory:
        encoder = self.network.get_encoder()
        states = encoder(input_ids=source.ids_BS, attention_mask=source.mask_BS.long()).last_hidden_state
        return Memory(states, source.mask_BS)

    def decode(self, memory: Memory, target_BT: Tensor, mask_BT: Tensor) -> Tensor:
        ids_BT = target_BT.masked_fill(~mask_BT, self.vocabulary.pad_id)
        ids = torch.cat([self._prefix(len(ids_BT), ids_BT.device), ids_BT], dim=1)
        return self._logits(memory, decoder_input_ids=ids)[:, len(self.prefix_ids) - 1 :]

    def decode_soft(self, memory: Memory, emb_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        # The decoder is causal and padding stands at the end, so what is fed there never reaches a real position.
        prefix = torch.nn.functional.embedding(self._prefix(len(emb_BTD), emb_BTD.device), self.embedding_VD)
        embeddings = torch.cat([prefix, emb_BTD], dim=1) * self.embedding_scale
        return self._logits(memory, decoder_inputs_embeds=embeddings)[:, len(self.prefix_ids) - 1 :]

    def start(self, memory: Memory) -> tuple[TransformerState, Tensor]:
        return self._advance(memory, None, self._prefix(len(memory.mask_BS), memory.mask_BS.device))

    def step(self, state: Any, ids_R: Tensor) -> tuple[TransformerState, Tensor]:
        return self._advance(state.memory, state.cache, ids_R.unsqueeze(1))

    def description(self) -> dict[str, Any]:
        return {"prefix_ids": list(self.prefix_ids)}

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.network.config.save_pretrained(folder)
        if self.network.can_generate():
            self.network.generation_config.save_pretrained(folder)

    def save_weights(self, folder: Path) -> None:
        with without_bars():
            self.network.save_pretrained(folder, safe_serialization=True)

    def load_weights(self, folder: Path) -> None:
        self.network.load_state_dict(_read(folder).state_dict(), strict=True)

    @staticmethod
    def load(folder: Path, vocabulary: Vocabulary, config: dict[str, Any]) -> TransformerTranslator:
        """Read back what `save` wrote."""
        network = _read(folder)
        return TransformerTranslator(network, vocabulary, tuple(config["prefix_ids"]))

    def _prefix(self, rows: int, device: torch.device) -> Tensor:
        return torch.tensor([self.prefix_ids], device=device).expand(rows, -1)

    def _logits(self, memory: Memory, **decoder_inputs: Tensor) -> Tensor:
        output = self.network(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory.states_BSD),
            attention_mask=memory.mask_BS.long(),
            use_cache=False,
            **decoder_inputs,
        )
        return output.logits[..., : self.vocabulary.size]

    def _advance(self, memory: Memory, cache: Any, ids: Tensor) -> tuple[TransformerState, Tensor]:
        output = self.network(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory.states_BSD),
            attention_mask=memory.mask_BS.long(),
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=True,
        )
        return TransformerState(memory, output.past_key_values), output.logits[:, -1, : self.vocabulary.size]

    @torch.no_grad()
    def _measure_scale(self) -> float:
        """The factor on raw embeddings that makes `decode_soft` equal `decode`."""
        was_training = self.training
        self.eval()
        device = self.embedding_VD.device
        ids = torch.arange(4, 8, device=device).clamp(max=self.vocabulary.size - 1).unsqueeze(0)
        mask = torch.ones_like(ids, dtype=torch.bool)
        memory = self.encode(Source(ids, mask))
        wanted = self.decode(memory, ids, mask)
        width = self.embedding_VD.shape[1]
        embeddings = torch.nn.functional.embedding(ids, self.embedding_VD)
        gaps = {}
        for scale in (1.0, math.sqrt(width)):
            self.embedding_scale = scale
            gaps[scale] = (self.decode_soft(memory, embeddings, mask) - wanted).abs().max().item()
        self.train(was_training)
        best = min(gaps, key=lambda scale: gaps[scale])
        if not gaps[best] <= 1e-4 * (1.0 + wanted.abs().max().item()):
            raise ConfigurationError(
                f"{type(self.network).__name__} cannot serve as a teacher: its logits from token ids and from their "
                f"embeddings differ by {gaps[best]:.2g}, so relaxed tokens would not mean the same as tokens."
            )
        return best


def _read(folder: str | Path) -> PreTrainedModel:
    with without_bars():
        return AutoModelForSeq2SeqLM.from_pretrained(folder)


def start_tokens(network: PreTrainedModel, target_code: int | None) -> tuple[int, ...]:
    """What the decoder reads before the first word: its start token, then a forced token or a language code."""
    config, generation = network.config, network.generation_config
    start = generation.decoder_start_token_id if generation is not None else None
    start = config.decoder_start_token_id if start is None else start
    if start is None:
        raise ConfigurationError(
            f"The configuration of {type(network).__name__} names no decoder_start_token_id; set it in config.json."
        )
    forced = target_code
    if forced is None and generation is not None:
        forced = generation.forced_bos_token_id
    if forced is None:
        forced = getattr(config, "forced_bos_token_id", None)
    return (start,) if forced is None else (start, forced)


def is_hub_checkpoint(folder: Path) -> bool:
    """Whether the folder is a plain Hugging Face encoder-decoder checkpoint."""
    file = folder / "config.json"
    if not file.is_file():
        return False
    return bool(json.loads(file.read_text(encoding="utf-8")).get("is_encoder_decoder")) or bool(
        AutoConfig.from_pretrained(folder).is_encoder_decoder
    )
