"""The conditional masked language model (Ghazvininejad et al. 2019) as an inference network (ENGINE §4.3).

A transformer whose decoder sees all positions at once, some of them `<mask>`. A length token in front of the source
gives the distribution over target lengths (§4.5 of ENGINE). Pre-norm layers, learned positions, one shared embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationInfo, field_validator
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from energymt.data.vocabulary import Vocabulary
from energymt.models.translator import LengthHead, Memory, NonautoregressiveModel
from energymt.records import Input, text_of


class MaskedConfig(BaseModel):
    """Sizes of the CMLM (defaults: ENGINE §4.3)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: PositiveInt = 512
    """Model dimension."""
    feedforward: PositiveInt = 2048
    """Hidden dimension of the feed-forward layers."""
    encoder_layers: PositiveInt = 6
    """Encoder layers."""
    decoder_layers: PositiveInt = 6
    """Decoder layers."""
    heads: PositiveInt = 8
    """Attention heads a layer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout of embeddings and of each sub-layer's output (published CMLM: 0.3; ENGINE: 0.1)."""
    longest: PositiveInt = 256
    """Most positions on either side, in tokens; also the longest length that the length head can name."""

    @field_validator("heads")
    @classmethod
    def _share_the_width(cls, heads: int, info: ValidationInfo) -> int:
        width = info.data.get("width", heads)
        if width % heads:
            raise ValueError(f"must divide the width, {width}")
        return heads


class Attention(nn.Module):
    """Multi-head attention; `other` is what is attended to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor, other_BSD: Tensor, mask_B11S: Tensor) -> Tensor:
        """[B, T, D]; `mask_B11S` is True where attention may look."""
        query = self._split(self.query(x_BTD))
        key, value = (self._split(part) for part in self.key_value(other_BSD).chunk(2, dim=-1))
        mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask_B11S)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """A pre-norm transformer layer; with `crossed`, the middle sub-layer attends to the encoder."""

    def __init__(self, config: MaskedConfig, crossed: bool) -> None:
        super().__init__()
        width = config.width
        self.attention = Attention(width, config.heads)
        self.attention_norm = nn.LayerNorm(width)
        self.cross = Attention(width, config.heads) if crossed else None
        self.cross_norm = nn.LayerNorm(width) if crossed else None
        self.wide = nn.Linear(width, config.feedforward)
        self.narrow = nn.Linear(config.feedforward, width)
        self.wide_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, mask_B11T: Tensor, memory: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """[B, T, D]; `memory` is (encoder states, mask_B11S) in a crossed layer."""
        normed = self.attention_norm(x_BTD)
        x_BTD = x_BTD + self.dropout(self.attention(normed, normed, mask_B11T))
        if self.cross is not None and self.cross_norm is not None and memory is not None:
            x_BTD = x_BTD + self.dropout(self.cross(self.cross_norm(x_BTD), *memory))
        return x_BTD + self.dropout(self.narrow(torch.relu(self.wide(self.wide_norm(x_BTD)))))


class MaskedTranslator(NonautoregressiveModel):
    """CMLM: encoder with a length token, bidirectional decoder, tied output layer."""

    architecture = "masked"

    def __init__(self, config: MaskedConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary.input_size, config.width)
        self.source_positions = nn.Embedding(config.longest + 1, config.width)
        self.target_positions = nn.Embedding(config.longest, config.width)
        self.length_token = nn.Parameter(torch.randn(config.width) * config.width**-0.5)
        self.encoder = nn.ModuleList(Layer(config, crossed=False) for _ in range(config.encoder_layers))
        self.encoder_norm = nn.LayerNorm(config.width)
        self.decoder = nn.ModuleList(Layer(config, crossed=True) for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(config.width)
        self.bias = nn.Parameter(torch.zeros(vocabulary.size))
        self.length = LengthHead(config.width, config.longest)
        self.dropout = nn.Dropout(config.dropout)
        for table in (self.embedding, self.source_positions, self.target_positions):
            nn.init.normal_(table.weight, std=config.width**-0.5)
        self.scale = config.width**0.5

    def encode(self, source: Input) -> Memory:
        source = text_of(source)
        token_B1D = self.length_token.expand(len(source.ids_BS), 1, -1)
        x_BSD = torch.cat([token_B1D, self.embedding(source.ids_BS)], dim=1)
        x_BSD = self._place(x_BSD, self.source_positions)
        mask_BS = torch.cat([torch.ones_like(source.mask_BS[:, :1]), source.mask_BS], dim=1)
        for layer in self.encoder:
            x_BSD = layer(x_BSD, mask_BS[:, None, None])
        x_BSD = self.encoder_norm(x_BSD)
        # The length token has said what it is for: cross-attention does not see it (Mask-Predict).
        return Memory(x_BSD[:, 1:], source.mask_BS, self.length(x_BSD[:, 0]))

    def predict(self, memory: Memory, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        x_BTD = self._place(self.embedding(tokens_BT), self.target_positions)
        seen = (memory.states_BSD, memory.mask_BS[:, None, None])
        for layer in self.decoder:
            x_BTD = layer(x_BTD, mask_BT[:, None, None], seen)
        weight_VD = self.embedding.weight[: self.vocabulary.size]
        return self.forbid(linear(self.decoder_norm(x_BTD), weight_VD, self.bias))

    @property
    def longest(self) -> int:
        return self.config.longest

    def description(self) -> dict[str, Any]:
        return self.config.model_dump()

    def _place(self, x_BTD: Tensor, positions: nn.Embedding) -> Tensor:
        return self.dropout((x_BTD * self.scale) + positions.weight[: x_BTD.shape[1]] * self.scale)
