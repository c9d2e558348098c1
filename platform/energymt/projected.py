"""`operators.embed` for a vocabulary too large for logits: from the translator's last hidden states.

    z = h Wᵀ + b        embed = O(z) E

with W the output matrix and E the energy's embedding table. Nothing of size [B, T, V] is made: the expected embedding
is attention over the vocabulary (queries h, keys W, values E), and the backward pass computes its chunks again, noise
included (Dao et al. 2022, arXiv:2205.14135).

The time goes into matrix products with W and E, so what counts is their number:

    operator     forward     backward to h               to W as well
    SX, GX       z, p E      z, G Eᵀ, one sum            + 1
    ST, SG       z           z, G Eᵀ, two sums           as SX
    STL          z           G Eᵀ, one sum               + 1

with p = softmax(z) and G the gradient of the embeddings. (Tokens given to a hard operator save the z of its forward
pass.) The softmax Jacobian wants ā = Σ_v p_v (G Eᵀ)_v before its first product with W. That is G · p E, which soft
operators have; ST and SG compute p E where W learns, and else keep a second sum over W. So do all in half precision:
there G · p E and G Eᵀ are rounded apart, which for a sure translator (p near a corner) is more than the gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding

from energymt.chunked_logits import ChunkedLogits, argmax, attend, attend_back, product, product_type
from energymt.noise import Noise
from energymt.operators import operator
from energymt.records import Projection


def embed_projected(
    name: str,
    projection: Projection,
    table_VD: Tensor,
    hard_ids_BT: Tensor | None = None,
    noise: Noise | None = None,
) -> Tensor:
    """Expected embeddings O(z) @ table, [B, T, D], of the logits z that a projection stands for.

    Equal to `operators.embed(name, projection.logits(), ...)` in value and gradient. The gradient reaches hidden
    states, output matrix, bias and table, those that ask for one. Under autocast the products run in its type.

    Raises:
        ConfigurationError: for an unknown operator.
        ValueError: SG or GX without a Noise.
    """
    hidden_BTH, matrix_VH, bias_V = projection.hidden_BTH, projection.matrix_VH, projection.bias_V
    learns = torch.is_grad_enabled() and (matrix_VH.requires_grad or (bias_V is not None and bias_V.requires_grad))
    return _EmbedProjected.apply(  # type: ignore[no-untyped-call]
        hidden_BTH, matrix_VH, bias_V, table_VD, hard_ids_BT, name, noise, learns
    )


@torch.no_grad()
def hard_ids_of(
    name: str, projection: Projection, hard_ids_BT: Tensor | None = None, noise: Noise | None = None
) -> Tensor | None:
    """The tokens that are the value of a hard operator, [B, T]; None for a soft one. As `operators.hard_ids_of`."""
    if not operator(name).hard:
        return None
    if hard_ids_BT is not None:
        return hard_ids_BT
    hidden_BTH, matrix_VH, bias_V = projection.hidden_BTH, projection.matrix_VH, projection.bias_V
    logits = ChunkedLogits.of(name, hidden_BTH, matrix_VH, bias_V, noise, product_type(matrix_VH))
    return argmax(logits).view(hidden_BTH.shape[:2])


class _EmbedProjected(torch.autograd.Function):
    """O(h Wᵀ + b) E and its gradients, by chunks of the vocabulary."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        matrix: Tensor,
        bias: Tensor | None,
        table: Tensor,
        ids: Tensor | None,
        name: str,
        noise: Noise | None,
        learns: bool,
    ) -> Tensor:
        ctx.name, ctx.noise, ctx.inner, ctx.outer = name, noise, product_type(matrix), product_type(table)
        logits, kind = ChunkedLogits.of(name, hidden, matrix, bias, noise, ctx.inner), operator(name)
        # Whether the backward pass can take ā from p E.
        ctx.mean_known = kind.jacobian == "softmax" and ctx.outer.itemsize > 2 and (learns or not kind.hard)
        norm, soft, found = None, None, None
        if ctx.mean_known or not kind.hard:
            norm, soft, found = attend(logits, table, ctx.outer, find=kind.hard and ids is None)
        elif ids is None:
            found = argmax(logits)
        if kind.hard:
            ids = ids if found is None else found.view(hidden.shape[:2])
            assert ids is not None
            out = embedding(ids, table)
        else:
            assert soft is not None
            ids, soft = None, soft.to(ctx.outer)
            out = soft.view(*hidden.shape[:2], -1)
        ctx.save_for_backward(hidden, matrix, bias, table, ids, norm, soft)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, matrix, bias, table, ids, norm, soft = ctx.saved_tensors
        to_hidden, to_matrix, to_bias, to_table = ctx.needs_input_grad[:4]
        logits = ChunkedLogits.of(ctx.name, hidden, matrix, bias, ctx.noise, ctx.inner)
        grad_ND = grads[0].flatten(0, 1).to(ctx.outer)
        grad_hidden, mean_N1 = None, None
        if (to_hidden or to_matrix or to_bias) and operator(ctx.name).jacobian == "softmax":
            near_ND = embedding(ids, table).flatten(0, 1) if soft is None else soft
            mean_N1 = (grad_ND.to(logits.exact) * near_ND).sum(-1, keepdim=True)
            if not ctx.mean_known:
                grad_hidden, norm, mean_N1 = attend_back(logits, table, grad_ND, mean_N1)
        wanted = _Gradients(
            torch.zeros_like(logits.hidden_NH, dtype=logits.exact) if to_hidden and grad_hidden is None else None,
            torch.empty_like(matrix) if to_matrix else None,
            torch.empty_like(bias) if to_bias else None,
            torch.zeros_like(table) if to_table and ids is None else None,
        )
        if any(part is not None for part in wanted):
            wanted.fill(logits, table, grad_ND, norm, mean_N1)
        grad_hidden = wanted.hidden_NH if grad_hidden is None else grad_hidden
        grad_table = wanted.table_VD
        if to_table and ids is not None:
            grad_table = torch.zeros_like(table).index_add_(0, ids.flatten(), grad_ND.to(table.dtype))
        grad_hidden = grad_hidden.to(hidden.dtype).view_as(hidden) if grad_hidden is not None and to_hidden else None
        return grad_hidden, wanted.matrix_VH, wanted.bias_V, grad_table, None, None, None, None


class _Gradients(NamedTuple):
    """The gradients that are asked for and come out of one pass over the vocabulary."""

    hidden_NH: Tensor | None
    matrix_VH: Tensor | None
    bias_V: Tensor | None
    table_VD: Tensor | None

    def fill(
        self, logits: ChunkedLogits, table: Tensor, grad_ND: Tensor, norm_N1: Tensor | None, mean_N1: Tensor | None
    ) -> None:
        """Write them all; `hidden_NH` and the table's start as zeros. Without a norm, the Jacobian is the identity."""
        for columns in logits.chunks():
            probs_NC = None if norm_N1 is None else logits.seen(columns).sub_(norm_N1).exp_()
            if self.table_VD is not None:
                assert probs_NC is not None
                self.table_VD[columns] = product(probs_NC.to(grad_ND.dtype).T, grad_ND)
            if self.hidden_NH is None and self.matrix_VH is None and self.bias_V is None:
                continue
            part_NC = product(grad_ND, table[columns].to(grad_ND.dtype).T)
            if probs_NC is not None:
                assert mean_N1 is not None
                part_NC = probs_NC.mul_(part_NC - mean_N1)
            elif logits.bias_V is not None:
                part_NC.masked_fill_(logits.bias_V[columns] == float("-inf"), 0.0)
            if self.bias_V is not None:
                self.bias_V[columns] = part_NC.sum(0)
            part_NC = part_NC.to(logits.hidden_NH.dtype)
            if self.hidden_NH is not None:
                self.hidden_NH.add_(product(part_NC, logits.rows(columns)))
            if self.matrix_VH is not None:
                self.matrix_VH[columns] = product(part_NC.T, logits.hidden_NH)
