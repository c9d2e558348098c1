"""The recurrent models of ENGINE §4.2 and §4.3: an attentional LSTM teacher, and a BiLSTM tagger.

The teacher's decoder has Luong attention without input feeding, so that a whole soft prefix runs in one pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor, nn

from energymt.data.vocabulary import Vocabulary
from energymt.models.translator import AutoregressiveModel, LengthHead, Memory, NonautoregressiveModel
from energymt.records import Input, Projection, text_of

LstmState = tuple[Tensor, Tensor]


def reverse(x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
    """Each sentence backwards, its padding left at the end."""
    positions = torch.arange(x_BTD.shape[1], device=x_BTD.device)
    index_BT = torch.where(positions < lengths_B[:, None], lengths_B[:, None] - 1 - positions, positions)
    return x_BTD.gather(1, index_BT.unsqueeze(-1).expand_as(x_BTD))


class BiLSTM(nn.Module):
    """Layers of a forward and a backward LSTM side by side; padding at the end never reaches a real position."""

    def __init__(self, width: int, hidden: int, layers: int, dropout: float) -> None:
        super().__init__()
        sizes = [width, *[2 * hidden] * (layers - 1)]
        self.forwards = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        """[B, T, width] -> [B, T, 2 · hidden]."""
        lengths_B = mask_BT.sum(1)
        for ahead, back in zip(self.forwards, self.backwards, strict=True):
            x_BTD = self.dropout(x_BTD)
            left = ahead(x_BTD)[0]
            right = reverse(back(reverse(x_BTD, lengths_B))[0], lengths_B)
            x_BTD = torch.cat([left, right], dim=-1)
        return x_BTD


class RecurrentConfig(BaseModel):
    """Sizes of the attentional LSTM (defaults: ENGINE §4.2)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding: PositiveInt = 512
    """Width of the word embeddings, shared by source, target and output."""
    encoder: PositiveInt = 512
    """Encoder units in each direction."""
    decoder: PositiveInt = 768
    """Decoder units."""
    layers: PositiveInt = 2
    """Layers of the encoder and of the decoder."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout between layers and before the output."""


@dataclass(frozen=True)
class RecurrentState:
    """The LSTM's state, [layers, R, units] each, and the memory."""

    memory: Memory
    hidden: Tensor
    cell: Tensor

    def select(self, rows_R: Tensor) -> RecurrentState:
        """Rows of memory and state."""
        return RecurrentState(self.memory.select(rows_R), self.hidden[:, rows_R], self.cell[:, rows_R])

    def reorder(self, rows_R: Tensor) -> RecurrentState:
        """Rows of the state alone."""
        return RecurrentState(self.memory, self.hidden[:, rows_R], self.cell[:, rows_R])


class RecurrentTranslator(AutoregressiveModel):
    """BiLSTM encoder, LSTM decoder, general attention (Luong et al. 2015) behind the decoder, no input feeding."""

    architecture = "recurrent"

    def __init__(self, config: RecurrentConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary.size, config.embedding)
        self.encoder = BiLSTM(config.embedding, config.encoder, config.layers, config.dropout)
        self.bridge = nn.Linear(2 * config.encoder, 2 * config.layers * config.decoder)
        self.decoder = nn.LSTM(
            config.embedding, config.decoder, config.layers, batch_first=True, dropout=config.dropout
        )
        self.attention = nn.Linear(config.decoder, 2 * config.encoder, bias=False)
        self.combine = nn.Linear(config.decoder + 2 * config.encoder, config.embedding)
        self.bias = nn.Parameter(torch.zeros(vocabulary.size))
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.embedding.weight, std=config.embedding**-0.5)

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; the decoder's LSTM differs by its dropout alone."""
        super().train(mode)
        # cuDNN differentiates an LSTM in its training mode only, and a frozen teacher gives gradients to its input.
        self.decoder.train()
        self.decoder.dropout = self.config.dropout if mode else 0.0
        return self

    @property
    def embedding_VD(self) -> Tensor:
        return self.embedding.weight

    def encode(self, source: Input) -> Memory:
        source = text_of(source)
        return Memory(self.encoder(self.embedding(source.ids_BS), source.mask_BS), source.mask_BS)

    def decode(self, memory: Memory, target_BT: Tensor, mask_BT: Tensor) -> Tensor:
        return self.decode_projection(memory, target_BT, mask_BT).logits()

    def decode_projection(self, memory: Memory, target_BT: Tensor, mask_BT: Tensor) -> Projection:
        return self._run(memory, self.embedding(target_BT))

    def decode_soft(self, memory: Memory, emb_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        return self._run(memory, emb_BTD).logits()

    def start(self, memory: Memory) -> tuple[RecurrentState, Tensor]:
        ids = torch.full((len(memory.mask_BS),), self.vocabulary.bos_id, device=memory.mask_BS.device)
        return self.step(RecurrentState(memory, *self._first(memory)), ids)

    def step(self, state: Any, ids_R: Tensor) -> tuple[RecurrentState, Tensor]:
        output, (hidden, cell) = self.decoder(self.embedding(ids_R).unsqueeze(1), (state.hidden, state.cell))
        return RecurrentState(state.memory, hidden, cell), self._logits(state.memory, output)[:, 0]

    def description(self) -> dict[str, Any]:
        return self.config.model_dump()

    def _first(self, memory: Memory) -> LstmState:
        """The decoder's first state, from the mean encoder state."""
        weights = memory.mask_BS.to(memory.states_BSD.dtype)
        mean_BD = (memory.states_BSD * weights.unsqueeze(-1)).sum(1) / weights.sum(1, keepdim=True)
        both = self.bridge(mean_BD).tanh().view(len(mean_BD), 2, self.config.layers, -1)
        hidden, cell = both.permute(1, 2, 0, 3).contiguous().unbind(0)
        return hidden, cell

    def _run(self, memory: Memory, emb_BTD: Tensor) -> Projection:
        # Padding stands at the end and the LSTM runs forwards: it never reaches a real position.
        start = self.embedding.weight[self.vocabulary.bos_id].expand(len(emb_BTD), 1, -1)
        hidden_BUD, _ = self.decoder(self.dropout(torch.cat([start, emb_BTD], dim=1)), self._first(memory))
        return self._projection(memory, hidden_BUD)

    def _logits(self, memory: Memory, hidden_BUD: Tensor) -> Tensor:
        return self._projection(memory, hidden_BUD).logits()

    def _projection(self, memory: Memory, hidden_BUD: Tensor) -> Projection:
        scores_BUS = self.attention(hidden_BUD) @ memory.states_BSD.transpose(1, 2)
        weights_BUS = scores_BUS.masked_fill(~memory.mask_BS.unsqueeze(1), float("-inf")).softmax(-1)
        context_BUD = weights_BUS.to(memory.states_BSD.dtype) @ memory.states_BSD
        combined = self.combine(torch.cat([hidden_BUD, context_BUD], dim=-1)).tanh()
        return Projection(self.dropout(combined), self.embedding.weight, self.bias)


class TaggerConfig(BaseModel):
    """Sizes of the BiLSTM tagger (ENGINE §4.3: two layers and a linear layer)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    embedding: PositiveInt = 512
    """Width of the word embeddings; the output layer shares them."""
    hidden: PositiveInt = 512
    """Units in each direction."""
    layers: PositiveInt = 2
    """BiLSTM layers."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout between layers and before the output."""
    longest: PositiveInt = 256
    """Longest target, in tokens."""


class TaggerTranslator(NonautoregressiveModel):
    """A BiLSTM over the source, stretched to the target's length: position t reads source token ⌊t · S / T⌋.

    The paper gives it oracle lengths; a length head on the mean source embedding makes it usable without them.
    It sees the source alone: observed target tokens are ignored, so refinement does not change its output.
    """

    architecture = "tagger"

    def __init__(self, config: TaggerConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self.embedding = nn.Embedding(vocabulary.input_size, config.embedding)
        self.tagger = BiLSTM(config.embedding, config.hidden, config.layers, config.dropout)
        self.output = nn.Linear(2 * config.hidden, config.embedding)
        self.bias = nn.Parameter(torch.zeros(vocabulary.size))
        self.dropout = nn.Dropout(config.dropout)
        self.length = LengthHead(config.embedding, config.longest)
        nn.init.normal_(self.embedding.weight, std=config.embedding**-0.5)

    def encode(self, source: Input) -> Memory:
        source = text_of(source)
        states_BSD = self.embedding(source.ids_BS)
        weights = source.mask_BS.to(states_BSD.dtype).unsqueeze(-1)
        # The sum, not the mean: the length of the target follows the length of the source.
        summed_BD = (states_BSD * weights).sum(1)
        return Memory(states_BSD, source.mask_BS, self.length(summed_BD))

    def predict(self, memory: Memory, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        source_B, target_B = memory.mask_BS.sum(1), mask_BT.sum(1).clamp(min=1)
        positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
        index_BT = (positions_T * source_B[:, None] // target_B[:, None]).clamp(max=memory.mask_BS.shape[1] - 1)
        stretched_BTD = memory.states_BSD.gather(1, index_BT.unsqueeze(-1).expand(-1, -1, memory.states_BSD.shape[-1]))
        hidden_BTD = self.output(self.dropout(self.tagger(stretched_BTD, mask_BT)))
        weight_VD = self.embedding.weight[: self.vocabulary.size]
        return self.forbid(nn.functional.linear(hidden_BTD, weight_VD, self.bias))

    @property
    def longest(self) -> int:
        return self.config.longest

    def description(self) -> dict[str, Any]:
        return self.config.model_dump()
