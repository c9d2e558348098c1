"""Prompt tuning: a few vectors before every source are learnt, and nothing else (Lester et al. 2021, arXiv:2104.08691).

The vectors are rows behind the vocabulary in the encoder's embeddings, so that a finished model is a plain one with a
longer table, and reads its prompt as it reads words.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from energymt.models.pretrained import without_advice


class PromptedEmbedding(nn.Module):
    """The rows of a frozen table, but for the last ones, which learn.

    Args:
        table: embeddings of words, and behind them of the prompt.
        tokens: of the prompt.
    """

    def __init__(self, table: nn.Embedding, tokens: int) -> None:
        super().__init__()
        self.table = table
        self.prompt = nn.Parameter(table.weight[-tokens:].detach().clone())

    def forward(self, ids_BS: Tensor) -> Tensor:
        """Embeddings [B, S, D]."""
        first = self.table.num_embeddings - len(self.prompt)
        scale = getattr(self.table, "embed_scale", 1.0)  # families whose embeddings scale themselves
        prompt_BSD = self.prompt[(ids_BS - first).clamp(min=0)] * scale
        return torch.where((ids_BS >= first).unsqueeze(-1), prompt_BSD, self.table(ids_BS))


def add_prompt(network: PreTrainedModel, tokens: int, words: int) -> None:
    """Give an encoder-decoder a prompt of so many vectors that begin as random words, and freeze all else.

    Args:
        network: whose table grows by `tokens` rows.
        tokens: of the prompt.
        words: rows of the table that are words.
    """
    rows: int = network.get_input_embeddings().num_embeddings
    network.requires_grad_(False)
    with without_advice():
        network.resize_token_embeddings(rows + tokens, mean_resizing=False)
    network.requires_grad_(False)
    table: Any = network.get_encoder().get_input_embeddings()
    with torch.no_grad():
        table.weight[rows:] = table.weight[torch.randint(words, (tokens,))]
    network.get_encoder().set_input_embeddings(PromptedEmbedding(table, tokens))


def without_prompts(network: PreTrainedModel) -> PreTrainedModel:
    """The plain network that says the same: a copy whose table holds the prompt, or itself if it learns none."""
    if not isinstance(network.get_encoder().get_input_embeddings(), PromptedEmbedding):
        return network
    plain = copy.deepcopy(network)
    learnt: Any = plain.get_encoder().get_input_embeddings()
    with torch.no_grad():
        learnt.table.weight[-len(learnt.prompt) :] = learnt.prompt
    plain.get_encoder().set_input_embeddings(learnt.table)
    return plain
