"""The autoregressive transformer: any encoder-decoder of Hugging Face transformers, from scratch or from a checkpoint.

A family differs from the next in four points: the tokens that the decoder reads before the first word (a start token,
then perhaps a language code), whether its embeddings are scaled inside or outside of the module that takes
`inputs_embeds`, a bias on the logits, and whether the last hidden states are scaled before them (T5). The first is read
from the configuration; the scales are *measured*, that of the embeddings when the model is wrapped, that of the hidden
states when they are first asked for: logits made in two ways must agree, or the model is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationInfo, field_validator
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, MarianConfig, MarianMTModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from energymt.data.vocabulary import Vocabulary
from energymt.errors import ConfigurationError
from energymt.models.adapters import without_adapters
from energymt.models.pretrained import without_bars
from energymt.models.prompts import add_prompt, without_prompts
from energymt.models.translator import AutoregressiveModel, Memory
from energymt.records import Input, Projection, Source, text_of


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

    def __init__(
        self, network: PreTrainedModel, vocabulary: Vocabulary, prefix_ids: tuple[int, ...], prompt: int = 0
    ) -> None:
        super().__init__()
        self.network = network
        self.vocabulary = vocabulary
        self.prefix_ids = prefix_ids
        self.prompt = prompt  # learnt vectors before every source: the last rows of the table
        rows = self.embedding_VD.shape[0]
        if rows < vocabulary.size:
            raise ConfigurationError(
                f"The vocabulary has {vocabulary.size} tokens and the model embeds {rows}: they do not belong together."
            )
        self.embedding_scale = self._measure_embedding_scale()
        self.hidden_scale: float | None = None  # not yet measured

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
        return None if positions is None else positions - max(len(self.prefix_ids), self.prompt)

    def encode(self, source: Input) -> Memory:
        source, encoder = self._prompted(text_of(source)), self.network.get_encoder()
        states = encoder(input_ids=source.ids_BS, attention_mask=source.mask_BS.long()).last_hidden_state
        return Memory(states, source.mask_BS)

    def learn_prompt(self, tokens: int) -> None:
        """Put a prompt before every source from now on, which alone is learnt (`energymt.models.prompts`)."""
        add_prompt(self.network, tokens, self.vocabulary.size)
        self.prompt += tokens

    def decode(self, memory: Memory, target_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return self._logits(memory, decoder_input_ids=self._decoder_ids(target_BT, mask_BT))

    def decode_soft(self, memory: Memory, emb_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        return self._soft_logits(memory, emb_BTD, self.embedding_scale)

    def decode_projection(self, memory: Memory, target_BT: Tensor, mask_BT: Tensor) -> Projection:
        """What the logits of `decode` are made from; the head does not run, and nothing of size V is made.

        Raises:
            ConfigurationError: if the network makes its logits in another way than all known families.
        """
        if self.hidden_scale is None:
            self.hidden_scale = self._measure_hidden_scale()
        return self._projection(memory, target_BT, mask_BT, self.hidden_scale)

    def start(self, memory: Memory) -> tuple[TransformerState, Tensor]:
        return self._advance(memory, None, self._prefix(len(memory.mask_BS), memory.mask_BS.device))

    def step(self, state: Any, ids_R: Tensor) -> tuple[TransformerState, Tensor]:
        return self._advance(state.memory, state.cache, ids_R.unsqueeze(1))

    def description(self) -> dict[str, Any]:
        return {"prefix_ids": list(self.prefix_ids), **({"prompt": self.prompt} if self.prompt else {})}

    def save(self, folder: Path) -> None:
        super().save(folder)
        self.network.config.save_pretrained(folder)
        if self.network.can_generate():
            self.network.generation_config.save_pretrained(folder)

    def save_weights(self, folder: Path) -> None:
        with without_bars():
            without_prompts(without_adapters(self.network)).save_pretrained(folder, safe_serialization=True)

    def load_weights(self, folder: Path) -> None:
        self.network.load_state_dict(_read(folder).state_dict(), strict=True)

    @staticmethod
    def load(folder: Path, vocabulary: Vocabulary, config: dict[str, Any]) -> TransformerTranslator:
        """Read back what `save` wrote."""
        network = _read(folder)
        return TransformerTranslator(network, vocabulary, tuple(config["prefix_ids"]), config.get("prompt", 0))

    def _prompted(self, source: Source) -> Source:
        """The same with the ids of the prompt before each sentence."""
        if not self.prompt:
            return source
        last = self.network.get_encoder().get_input_embeddings()
        rows = getattr(last, "table", last).num_embeddings
        ids_BP = torch.arange(rows - self.prompt, rows, device=source.ids_BS.device).expand(len(source), -1)
        there_BP = torch.ones_like(ids_BP, dtype=torch.bool)
        return Source(torch.cat([ids_BP, source.ids_BS], dim=1), torch.cat([there_BP, source.mask_BS], dim=1))

    def _prefix(self, rows: int, device: torch.device) -> Tensor:
        return torch.tensor([self.prefix_ids], device=device).expand(rows, -1)

    def _decoder_ids(self, target_BT: Tensor, mask_BT: Tensor) -> Tensor:
        ids_BT = target_BT.masked_fill(~mask_BT, self.vocabulary.pad_id)
        return torch.cat([self._prefix(len(ids_BT), ids_BT.device), ids_BT], dim=1)

    def _logits(self, memory: Memory, **decoder_inputs: Tensor) -> Tensor:
        output = self.network(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory.states_BSD),
            attention_mask=memory.mask_BS.long(),
            use_cache=False,
            **decoder_inputs,
        )
        return output.logits[:, len(self.prefix_ids) - 1 :, : self.vocabulary.size]

    def _soft_logits(self, memory: Memory, emb_BTD: Tensor, scale: float) -> Tensor:
        # The decoder is causal and padding stands at the end, so what is fed there never reaches a real position.
        prefix = torch.nn.functional.embedding(self._prefix(len(emb_BTD), emb_BTD.device), self.embedding_VD)
        return self._logits(memory, decoder_inputs_embeds=torch.cat([prefix, emb_BTD], dim=1) * scale)

    def _projection(self, memory: Memory, target_BT: Tensor, mask_BT: Tensor, scale: float) -> Projection:
        output = self.network.get_decoder()(
            input_ids=self._decoder_ids(target_BT, mask_BT),
            encoder_hidden_states=memory.states_BSD,
            use_cache=False,
            **self._attended(memory),
        )
        hidden_BUH = output.last_hidden_state[:, len(self.prefix_ids) - 1 :] * scale
        matrix_VH = self.network.get_output_embeddings().weight[: self.vocabulary.size]
        bias_1V = getattr(self.network, "final_logits_bias", None)
        return Projection(hidden_BUH, matrix_VH, None if bias_1V is None else bias_1V[0, : self.vocabulary.size])

    def _attended(self, memory: Memory) -> dict[str, Tensor]:
        """What the decoder by itself is told of the states that it may attend to."""
        return {"encoder_attention_mask": memory.mask_BS.long()}

    def _advance(self, memory: Memory, cache: Any, ids: Tensor) -> tuple[TransformerState, Tensor]:
        output = self.network(
            encoder_outputs=BaseModelOutput(last_hidden_state=memory.states_BSD),
            attention_mask=memory.mask_BS.long(),
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=True,
        )
        return TransformerState(memory, output.past_key_values), output.logits[:, -1, : self.vocabulary.size]

    def _measure_embedding_scale(self) -> float:
        """The factor on raw embeddings that makes `decode_soft` equal `decode`."""

        def soft_logits(memory: Memory, ids: Tensor, mask: Tensor, scale: float) -> Tensor:
            return self._soft_logits(memory, torch.nn.functional.embedding(ids, self.embedding_VD), scale)

        scale, gap = self._measure(soft_logits, (1.0, math.sqrt(self.embedding_VD.shape[1])))
        if scale is None:
            raise ConfigurationError(
                f"{type(self.network).__name__} cannot serve as a teacher: its logits from token ids and from their "
                f"embeddings differ by {gap:.2g}, so relaxed tokens would not mean the same as tokens."
            )
        return scale

    def _measure_hidden_scale(self) -> float:
        """The factor on the decoder's last hidden states that makes `decode_projection` equal `decode`."""

        def projected(memory: Memory, ids: Tensor, mask: Tensor, scale: float) -> Tensor:
            return self._projection(memory, ids, mask, scale).logits()

        width = self.network.get_output_embeddings().weight.shape[1]
        scale, gap = self._measure(projected, (1.0, 1 / math.sqrt(width)))
        if scale is None:
            raise ConfigurationError(
                f"{type(self.network).__name__} makes its logits in a way that energymt does not know: from its last "
                f"hidden states and its output embeddings they come out {gap:.2g} off. A quality energy cannot reach "
                f"it; take a Marian, BART, mBART, T5, M2M100 or NLLB model."
            )
        return scale

    def probe(self, ids: Tensor) -> Input:
        """A source to measure with, that has something to do with these ids or not."""
        return Source(ids, torch.ones_like(ids, dtype=torch.bool))

    @torch.no_grad()
    def _measure(
        self, logits_of: Callable[[Memory, Tensor, Tensor, float], Tensor], scales: tuple[float, ...]
    ) -> tuple[float | None, float]:
        """The scale at which other logits are those of `decode`, None if at no scale; and how near they come."""
        was_training = self.training
        self.eval()
        device = self.embedding_VD.device
        ids = torch.arange(4, 8, device=device).clamp(max=self.vocabulary.size - 1).unsqueeze(0)
        mask = torch.ones_like(ids, dtype=torch.bool)
        with torch.autocast(device.type, enabled=False):  # in the middle of a step, say
            memory = self.encode(self.probe(ids))
            wanted = self.decode(memory, ids, mask)
            gaps = {scale: (logits_of(memory, ids, mask, scale) - wanted).abs().max().item() for scale in scales}
        self.train(was_training)
        best = min(gaps, key=lambda scale: gaps[scale])
        fits = gaps[best] <= 1e-4 * (1.0 + wanted.abs().max().item())
        return best if fits else None, gaps[best]


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
