"""From all layers of an encoder to one vector a sentence, as COMET does it: a learnt mix of layers, then pooling.

Axes of this room: J positions of an encoder's input, special tokens included; N layers, the embeddings being the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

DROPPED = -1e20  # the weight of a layer that layer dropout takes out


def sparsemax(weights_N: Tensor) -> Tensor:
    """The Euclidean projection onto the simplex (Martins and Astudillo 2016, Algorithm 1): small weights become 0."""
    falling_N, _ = (weights_N - weights_N.max()).sort(descending=True)
    excess_N = falling_N.cumsum(0) - 1
    counts_N = torch.arange(1, len(weights_N) + 1, device=weights_N.device, dtype=weights_N.dtype)
    support = (counts_N * falling_N > excess_N).sum()
    threshold = excess_N[support - 1] / support
    return (weights_N - weights_N.max() - threshold).clamp(min=0)


TRANSFORMATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda weights_N: weights_N.softmax(0),
    "sparsemax": sparsemax,
}


def exact(values: Tensor) -> Tensor:
    """In float32 at least: an encoder may compute in bf16, and what is made of its states may not."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class LayerMix(nn.Module):
    """γ · Σ_n s_n · h_n over the layers, s = softmax(w) or sparsemax(w); w and γ are learnt. In float32 at least.

    Args:
        layers: N.
        transformation: a key of `TRANSFORMATIONS`.
        layer_norm: whether each h_n is first brought to mean 0 and variance 1 over all real positions of its sentence.
        dropout: chance that a layer is left out of the mix; in training alone.
    """

    def __init__(self, layers: int, transformation: str, *, layer_norm: bool, dropout: float) -> None:
        super().__init__()
        self.weights_N = nn.Parameter(torch.zeros(layers))
        self.gamma = nn.Parameter(torch.ones(1))
        self.transform = TRANSFORMATIONS[transformation]
        self.layer_norm = layer_norm
        self.dropout = dropout

    def forward(self, states_N: Sequence[Tensor], mask_BJ: Tensor, *, first_only: bool = False) -> Tensor:
        """The mix [B, J, D] of N states [B, J, D]; [B, 1, D] with `first_only`, which spares the other positions."""
        weights_N: Tensor = self.weights_N
        if self.training and self.dropout:
            weights_N = weights_N.masked_fill(torch.rand_like(weights_N) <= self.dropout, DROPPED)
        mixed = exact(states_N[0].new_zeros(()))
        for share, state_BJD in zip(self.transform(weights_N).unbind(), states_N, strict=True):
            piece = exact(state_BJD[:, :1] if first_only else state_BJD)
            if self.layer_norm:
                mean_B11, variance_B11 = _moments(exact(state_BJD), mask_BJ)
                piece = (piece - mean_B11) / (variance_B11 + 1e-12).sqrt()
            mixed = mixed + share * piece
        return self.gamma * mixed


def _moments(state_BJD: Tensor, mask_BJ: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance over real positions and width together, each [B, 1, 1]."""
    mask_BJ1 = mask_BJ.unsqueeze(-1)
    count_B11 = mask_BJ1.sum((1, 2), keepdim=True) * state_BJD.shape[-1]
    mean_B11 = (state_BJD * mask_BJ1).sum((1, 2), keepdim=True) / count_B11
    variance_B11 = (((state_BJD - mean_B11) * mask_BJ1) ** 2).sum((1, 2), keepdim=True) / count_B11
    return mean_B11, variance_B11


def _first(states_BJD: Tensor, mask_BJ: Tensor) -> Tensor:
    return states_BJD[:, 0]


def _average(states_BJD: Tensor, mask_BJ: Tensor) -> Tensor:
    return states_BJD.masked_fill(~mask_BJ.unsqueeze(-1), 0.0).sum(1) / mask_BJ.sum(1, keepdim=True)


def _maximum(states_BJD: Tensor, mask_BJ: Tensor) -> Tensor:
    return states_BJD.masked_fill(~mask_BJ.unsqueeze(-1), float("-inf")).amax(1)


POOLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cls": _first, "avg": _average, "max": _maximum}
"""(states_BJD, mask_BJ) -> vector_BD: the first token, the mean or the maximum over real positions."""
