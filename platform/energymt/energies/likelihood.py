"""The log-likelihood of relaxed sentences: place O2 of ENGINE, fused with the teacher's softmax and the last token.

Nothing of the size of a vocabulary is stored besides the logits themselves; the backward pass goes through the batch by
sentences and writes each gradient once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from energymt.operators import Noise, exact_type, hard_ids_of, log_norm, pull_back_, row_blocks, seen_by


def log_likelihood(
    name: str,
    logits_BTV: Tensor,
    scores_BUV: Tensor,
    mask_BT: Tensor,
    eos_id: int,
    hard_ids_BT: Tensor | None = None,
    noise: Noise | None = None,
) -> Tensor:
    """log p of relaxed sentences, [B] in nats: place O2 of ENGINE (what picks the teacher's log-probabilities).

        Σ_{t ≤ T_b} O(z_t)ᵀ log softmax(s_t)  +  log softmax(s_{T_b + 1})[eos]

    with s the teacher's logits `scores_BUV`, U = T + 1, and T_b the real tokens of a sentence (`mask_BT`). Equal to the
    formula over `relax(...)` in value and gradient, where 0 · (−∞) counts as 0.
    """
    ids_BT = hard_ids_of(name, logits_BTV, hard_ids_BT, noise)
    return _LogLikelihood.apply(  # type: ignore[no-untyped-call]
        logits_BTV, scores_BUV, mask_BT, eos_id, ids_BT, name, noise
    )


class _LogLikelihood(torch.autograd.Function):
    """The log-likelihood of relaxed sentences under the softmax of `scores`, and its gradient, block by block."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        scores: Tensor,
        mask: Tensor,
        eos_id: int,
        ids: Tensor | None,
        name: str,
        noise: Noise | None,
    ) -> Tensor:
        exact, steps = exact_type(scores), logits.shape[1]
        norm = log_norm("SX", scores, None).squeeze(-1)
        if ids is not None:
            picked = scores[:, :steps].gather(-1, ids.unsqueeze(-1)).squeeze(-1).to(exact)
        else:
            picked = norm.new_empty(mask.shape)
            for rows in row_blocks(logits):
                probs = seen_by(name, logits, noise, rows).softmax(-1)
                picked[rows] = (probs * scores[rows, :steps].masked_fill(probs == 0, 0.0)).sum(-1)
        lengths = mask.sum(1)
        sentences = torch.arange(len(mask), device=mask.device)
        end = scores[sentences, lengths, eos_id].to(exact) - norm[sentences, lengths]
        ctx.save_for_backward(logits, scores, mask, ids, norm)
        ctx.eos_id, ctx.name, ctx.noise = eos_id, name, noise
        return (picked - norm[:, :steps]).masked_fill(~mask, 0.0).sum(1) + end

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, scores, mask, ids, norm = ctx.saved_tensors
        grad_logits = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        grad_scores = torch.empty_like(scores) if ctx.needs_input_grad[1] else None
        steps = logits.shape[1]
        lengths = mask.sum(1, keepdim=True)
        grad_BT1 = (grads[0].unsqueeze(1) * mask).unsqueeze(-1)
        # Rows of the teacher that count: the tokens, and the one behind the last, which must say eos.
        counted = torch.arange(scores.shape[1], device=mask.device) <= lengths
        grad_BU1 = (grads[0].unsqueeze(1) * counted).unsqueeze(-1)
        for rows in row_blocks(logits):
            values = scores[rows].to(norm.dtype) - norm[rows].unsqueeze(-1)
            seen = seen_by(ctx.name, logits, ctx.noise, rows)
            probs = seen.softmax(-1) if ids is None else None
            if grad_logits is not None:
                pulled = pull_back_(ctx.name, seen, probs, values[:, :steps].clone())
                grad_logits[rows] = pulled.mul_(grad_BT1[rows])
            if grad_scores is not None:
                part = values.exp_().mul_(-grad_BU1[rows])
                tokens = part[:, :steps]
                if ids is not None:
                    tokens.scatter_add_(-1, ids[rows].unsqueeze(-1), grad_BT1[rows])
                else:
                    tokens.addcmul_(probs, grad_BT1[rows])
                part[torch.arange(len(part), device=part.device), lengths[rows, 0], ctx.eos_id] += grads[0][rows]
                grad_scores[rows] = part
        return grad_logits, grad_scores, None, None, None, None, None
