"""Losses of probabilities, as sums: the loop divides by global counts."""

from __future__ import annotations

import torch
from torch import Tensor

from energymt.projected_log_probs import log_probs_projected
from energymt.records import Projection


def cross_entropy(
    logits_BTV: Tensor | Projection, targets_BT: Tensor, mask_BT: Tensor, smoothing: float = 0.0
) -> Tensor:
    """Σ over masked positions of the label-smoothed −log p, in nats, of logits or of what they are made from.

    The smoothing mass is spread evenly over the tokens that can stand (those whose logit is not -inf).
    """
    if isinstance(logits_BTV, Projection):
        return -log_probs_projected(logits_BTV, targets_BT, mask_BT, smoothing).sum()
    logits = logits_BTV[mask_BT]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logp = logits.log_softmax(-1)
    nll = -logp.gather(-1, targets_BT[mask_BT].unsqueeze(-1)).squeeze(-1)
    if smoothing == 0.0:
        return nll.sum()
    possible = logits > float("-inf")
    uniform = -logp.masked_fill(~possible, 0.0).sum(-1) / possible.sum(-1)
    return ((1.0 - smoothing) * nll + smoothing * uniform).sum()


def with_end(target_BT: Tensor, mask_BT: Tensor, eos_id: int) -> tuple[Tensor, Tensor]:
    """Targets and mask [B, T + 1] of an autoregressive model: the end token stands behind the last real one."""
    column = torch.zeros_like(target_BT[:, :1])
    target_BU = torch.cat([target_BT, column], dim=1)
    lengths_B1 = mask_BT.sum(1, keepdim=True)
    target_BU = target_BU.scatter(1, lengths_B1, eos_id)
    positions_U = torch.arange(target_BU.shape[1], device=target_BU.device)
    return target_BU, positions_U <= lengths_B1


def length_loss(length_logp_BL: Tensor, lengths_B: Tensor) -> Tensor:
    """Σ over sentences of −log p(T | x), in nats; lengths past the last one that the head knows count as the last."""
    known_B = lengths_B.clamp(min=1, max=length_logp_BL.shape[1] - 1)
    return -length_logp_BL.gather(1, known_B.unsqueeze(1)).sum()
