"""Logits that exist a chunk of the vocabulary at a time: z = h Wᵀ + b, for vocabularies too large for [B, T, V].

What is asked of them are sums over the vocabulary, so they are kept as in attention by chunks: an online softmax
(Milakov & Gimelshein 2018, arXiv:1805.02867; Rabe & Staats 2021, arXiv:2112.05682).

Axes of this room: N = B·T positions; H width of the hidden states; C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from energymt.noise import Noise
from energymt.operators import operator

WIDTH = {"cpu": 4096, "cuda": 16384}
"""Tokens of a chunk: on a CPU the fastest of 512 to 8,192 for 256 positions; on CUDA blocks of 16 MiB for as many."""


@dataclass(frozen=True)
class ChunkedLogits:
    """What an operator sees: z, or z + g for SG and GX."""

    hidden_NH: Tensor  # in the type of the products
    matrix_VH: Tensor
    bias_V: Tensor | None
    noise: Noise | None
    length: int  # T
    exact: torch.dtype  # of the logits: at least fp32

    @staticmethod
    def of(
        name: str,
        hidden_BTH: Tensor,
        matrix_VH: Tensor,
        bias_V: Tensor | None,
        noise: Noise | None,
        dtype: torch.dtype,
    ) -> ChunkedLogits:
        """The logits of an operator; `dtype` is that of the products."""
        noisy = operator(name).noisy
        if noisy and noise is None:
            raise ValueError(f"operator {name} draws Gumbel noise: pass a Noise")
        hidden_NH, exact = hidden_BTH.flatten(0, 1).to(dtype), torch.promote_types(dtype, torch.float32)
        return ChunkedLogits(hidden_NH, matrix_VH, bias_V, noise if noisy else None, hidden_BTH.shape[1], exact)

    def chunks(self) -> Iterator[slice]:
        size, width = len(self.matrix_VH), WIDTH[self.matrix_VH.device.type]
        return (slice(start, min(start + width, size)) for start in range(0, size, width))

    def rows(self, columns: slice) -> Tensor:
        """The output matrix of a chunk, [C, H]."""
        return self.matrix_VH[columns].to(self.hidden_NH.dtype)

    def seen(self, columns: slice) -> Tensor:
        """The logits of a chunk, [N, C]; the caller may overwrite them."""
        block_NC = product(self.hidden_NH, self.rows(columns).T).to(self.exact)
        if self.bias_V is not None:
            block_NC += self.bias_V[columns]
        if self.noise is not None:
            block_NC += self.noise.gumbel(self.length, columns.start, columns.stop, self.exact).flatten(0, 1)
        return block_NC

    def lowest(self) -> Tensor:
        """The maximum over no token, [N, 1]. It is finite: a chunk may hold nothing but forbidden tokens (−inf)."""
        size, least = (len(self.hidden_NH), 1), torch.finfo(self.exact).min
        return torch.full(size, least, dtype=self.exact, device=self.hidden_NH.device)


def product_type(weight: Tensor) -> torch.dtype:
    """What products with a weight run in: its own type, or that of autocast."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, of two matrices."""
    onednn = left.dtype == torch.float32 and left.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if onednn and left.numel() > 0:
        # oneDNN, a part of torch. For fp32 `@` is MKL, which does not use AVX-512 on AMD: measured, twice as slow.
        return torch.ops.mkldnn._linear_pointwise(left, right.T, None, "none", [], "")
    return left @ right


def argmax(logits: ChunkedLogits) -> Tensor:
    """The token of the highest logit, the first of equals, [N]."""
    top_N1 = logits.lowest()
    ids_N = torch.zeros(len(top_N1), dtype=torch.long, device=top_N1.device)
    for columns in logits.chunks():
        seen_NC = logits.seen(columns)
        higher_N1 = torch.maximum(top_N1, seen_NC.amax(-1, keepdim=True))
        _find(ids_N, seen_NC, higher_N1 > top_N1, columns.start)
        top_N1 = higher_N1
    return ids_N


def pick(logits: ChunkedLogits, ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """log Σ exp z, and the logit of one token a position, [N, 1] each."""
    norms, picked_N1 = [], logits.lowest()
    for columns in logits.chunks():
        seen_NC = logits.seen(columns)
        norms.append(seen_NC.logsumexp(-1))
        here_N1, place_N1 = places(columns, ids_N)
        picked_N1 = torch.where(here_N1, seen_NC.gather(1, place_N1), picked_N1)
    return torch.stack(norms, -1).logsumexp(-1, keepdim=True), picked_N1


def places(columns: slice, ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """Whether the token of a position is in a chunk, and its column there (else some column), [N, 1] each."""
    ids_N1 = ids_N.unsqueeze(1)
    here_N1 = (ids_N1 >= columns.start) & (ids_N1 < columns.stop)
    return here_N1, (ids_N1 - columns.start).masked_fill(~here_N1, 0)


def _find(ids_N: Tensor, seen_NC: Tensor, rises_N1: Tensor, start: int) -> None:
    """Write the argmax where the maximum rises: in few rows, and on a CPU an argmax costs ten times an amax."""
    rows_R = rises_N1.squeeze(-1).nonzero().squeeze(-1)
    ids_N[rows_R] = seen_NC[rows_R].argmax(-1) + start


class _Part(NamedTuple):
    """A chunk in an online softmax."""

    columns: slice
    weights_NC: Tensor  # exp(z − m), with m the maximum up to here
    shrink_N1: Tensor  # what sums up to here are multiplied by, for m has grown
    top_N1: Tensor  # m


def _online_softmax(logits: ChunkedLogits, ids_N: Tensor | None = None) -> Iterator[_Part]:
    """The chunks in their order; writes the argmax into `ids_N`."""
    top_N1 = logits.lowest()
    for columns in logits.chunks():
        seen_NC = logits.seen(columns)
        higher_N1 = torch.maximum(top_N1, seen_NC.amax(-1, keepdim=True))
        if ids_N is not None:
            _find(ids_N, seen_NC, higher_N1 > top_N1, columns.start)
        yield _Part(columns, seen_NC.sub_(higher_N1).exp_(), (top_N1 - higher_N1).exp_(), higher_N1)
        top_N1 = higher_N1


def attend(
    logits: ChunkedLogits, table_VD: Tensor, dtype: torch.dtype, find: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """log Σ exp z [N, 1], softmax(z) @ table [N, D], and where asked to `find` it the argmax [N]."""
    total_N1 = torch.zeros_like(logits.lowest())
    mixed_ND = total_N1.new_zeros(len(total_N1), table_VD.shape[1])
    ids_N = torch.zeros(len(total_N1), dtype=torch.long, device=total_N1.device) if find else None
    for part in _online_softmax(logits, ids_N):
        total_N1.mul_(part.shrink_N1).add_(part.weights_NC.sum(-1, keepdim=True))
        mixed_ND.mul_(part.shrink_N1).add_(product(part.weights_NC.to(dtype), table_VD[part.columns].to(dtype)))
    return part.top_N1 + total_N1.log(), mixed_ND / total_N1, ids_N


def attend_back(
    logits: ChunkedLogits, table_VD: Tensor, grad_ND: Tensor, near_N1: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of the hidden states, Σ p (a − ā) W [N, H], with a = G Eᵀ and its mean ā = Σ p a not known before.

    It is Σ p (a − δ) W − (ā − δ) Σ p W for every δ; with δ (`near_N1`) near ā, half precision rounds small numbers
    only. Gives log Σ exp z and ā [N, 1] too.
    """
    moments_2N1 = torch.zeros_like(logits.lowest()).repeat(2, 1, 1)
    sums_2NH = moments_2N1.new_zeros(2, *logits.hidden_NH.shape)
    for part in _online_softmax(logits):
        gain_NC = product(grad_ND, table_VD[part.columns].to(grad_ND.dtype).T) - near_N1
        both_2NC = torch.stack([gain_NC.mul_(part.weights_NC), part.weights_NC])
        moments_2N1.mul_(part.shrink_N1).add_(both_2NC.sum(-1, keepdim=True))
        sum_MH = product(both_2NC.flatten(0, 1).to(logits.hidden_NH.dtype), logits.rows(part.columns))
        sums_2NH.mul_(part.shrink_N1).add_(sum_MH.view_as(sums_2NH))
    total_N1 = moments_2N1[1]
    rise_N1 = moments_2N1[0] / total_N1
    return (sums_2NH[0] - rise_N1 * sums_2NH[1]) / total_N1, part.top_N1 + total_N1.log(), near_N1 + rise_N1
