"""Log-probabilities of given tokens for a vocabulary too large for logits: from the translator's last hidden states.

    z = h Wᵀ + b        log p(y) = z_y − log Σ_v exp z_v

What cross-entropy and policy gradients ask of a translator. Nothing of size [B, T, V] is made: the forward pass keeps
log Σ exp z and nothing else, and the backward pass makes each chunk of the vocabulary again (Wijmans et al. 2024,
arXiv:2411.09009). Of the matrix products, which take the time, there is one more than over dense logits: z twice, and
one for each of the gradients of h and W.

Axes of this room: N real positions, padding left out; H width of the hidden states; C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from energymt.chunked_logits import ChunkedLogits, pick, places, product, product_type
from energymt.records import Projection


def log_probs_projected(projection: Projection, target_BT: Tensor, mask_BT: Tensor, smoothing: float = 0.0) -> Tensor:
    """Σ_v q_v log p_v of each position, [B, T] in nats, 0 on padding; at least fp32.

    q has 1 − `smoothing` on the target, and spreads the rest evenly over the tokens that can stand (whose bias is not
    −inf); without smoothing this is log p of the target. The gradient reaches hidden states, output matrix and bias,
    those that ask for one. Under autocast the products run in its type.
    """
    hidden_NH = projection.hidden_BTH[mask_BT]
    found_N = _LogProbs.apply(  # type: ignore[no-untyped-call]
        hidden_NH, projection.matrix_VH, projection.bias_V, target_BT[mask_BT], smoothing
    )
    return found_N.new_zeros(mask_BT.shape).masked_scatter(mask_BT, found_N)


class _LogProbs(torch.autograd.Function):
    """q · log softmax(h Wᵀ + b) and its gradient, by chunks of the vocabulary."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, matrix: Tensor, bias: Tensor | None, ids: Tensor, smoothing: float) -> Tensor:
        ctx.inner, ctx.smoothing = product_type(matrix), smoothing
        logits = _logits(hidden, matrix, bias, ctx.inner)
        norm_N1, wanted_N1 = pick(logits, ids)
        ctx.save_for_backward(hidden, matrix, bias, ids, norm_N1)
        if smoothing > 0.0:
            wanted_N1 = (1.0 - smoothing) * wanted_N1 + _mean_logit(logits, _shares(logits, smoothing))
        return (wanted_N1 - norm_N1).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, matrix, bias, ids, norm_N1 = ctx.saved_tensors
        to_hidden, to_matrix, to_bias = ctx.needs_input_grad[:3]
        logits = _logits(hidden, matrix, bias, ctx.inner)
        share_V = _shares(logits, ctx.smoothing) if ctx.smoothing > 0.0 else None
        grad_hidden = torch.zeros_like(hidden, dtype=logits.exact) if to_hidden else None
        grad_matrix = torch.empty_like(matrix) if to_matrix else None
        grad_bias = torch.empty_like(bias) if to_bias else None
        for columns in logits.chunks():
            # q − p, times the gradient of the position
            part_NC = logits.seen(columns).sub_(norm_N1).exp_().neg_()
            if share_V is not None:
                part_NC += share_V[columns]
            here_N1, place_N1 = places(columns, ids)
            part_NC.scatter_add_(1, place_N1, here_N1.to(part_NC.dtype) * (1.0 - ctx.smoothing))
            part_NC *= grads[0].unsqueeze(1)
            if grad_bias is not None:
                grad_bias[columns] = part_NC.sum(0)
            inner_NC = part_NC.to(ctx.inner)
            if grad_hidden is not None:
                grad_hidden += product(inner_NC, logits.rows(columns))
            if grad_matrix is not None:
                grad_matrix[columns] = product(inner_NC.T, logits.hidden_NH)
        return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_matrix, grad_bias, None, None


def _logits(hidden_NH: Tensor, matrix_VH: Tensor, bias_V: Tensor | None, dtype: torch.dtype) -> ChunkedLogits:
    return ChunkedLogits.of("SX", hidden_NH.unsqueeze(0), matrix_VH, bias_V, None, dtype)


def _shares(logits: ChunkedLogits, smoothing: float) -> Tensor:
    """What smoothing gives each token, [V]."""
    stands_V = torch.ones_like(logits.matrix_VH[:, 0], dtype=logits.exact)
    if logits.bias_V is not None:
        stands_V = (logits.bias_V > float("-inf")).to(logits.exact)
    return stands_V * (smoothing / stands_V.sum())


def _mean_logit(logits: ChunkedLogits, share_V: Tensor) -> Tensor:
    """Σ_v share_v z_v, [N, 1], by way of one mean row of W. Sums, and no products: autocast would round those."""
    mean_H = share_V.new_zeros(logits.matrix_VH.shape[1])
    for columns in logits.chunks():
        mean_H += (logits.rows(columns).to(logits.exact) * share_V[columns].unsqueeze(1)).sum(0)
    mean_N1 = (logits.hidden_NH.to(logits.exact) * mean_H).sum(-1, keepdim=True)
    if logits.bias_V is None:
        return mean_N1
    return mean_N1 + (share_V * logits.bias_V.masked_fill(share_V == 0, 0.0)).sum()
