"""Relaxation operators: what turns a translator's logits into something an energy can take (ENGINE, Table 1).

    operator   value                     Jacobian
    SX         softmax(z)                exact
    STL        one-hot(argmax z)         identity on the logits
    SG         one-hot(argmax z + g)     that of softmax(z + g)
    ST         one-hot(argmax z)         that of softmax(z)
    GX         softmax(z + g)            exact

with Gumbel noise g. Temperature is 1, as in the paper.

`relax` is the definition, dense. `embed` and `log_likelihood` are what energies call: equal to it in value and
gradient, but a one-hot is never made, probabilities and noise are never stored (the backward pass computes them again),
and the work goes through the batch in blocks of a few sentences, whose intermediate values stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from energymt.noise import Noise

__all__ = ["OPERATORS", "Noise", "Operator", "embed", "log_likelihood", "operator", "perturbed", "relax"]


class Operator(NamedTuple):
    """One row of ENGINE Table 1."""

    hard: bool  # the value is a one-hot vector
    noisy: bool  # Gumbel noise is added to the logits
    jacobian: str  # "softmax" or "identity"


OPERATORS: dict[str, Operator] = {
    "SX": Operator(hard=False, noisy=False, jacobian="softmax"),
    "STL": Operator(hard=True, noisy=False, jacobian="identity"),
    "SG": Operator(hard=True, noisy=True, jacobian="softmax"),
    "ST": Operator(hard=True, noisy=False, jacobian="softmax"),
    "GX": Operator(hard=False, noisy=True, jacobian="softmax"),
}


def operator(name: str) -> Operator:
    """The operator of that name; a KeyError becomes a sentence."""
    try:
        return OPERATORS[name]
    except KeyError:
        from energymt.errors import ConfigurationError

        raise ConfigurationError(f"Unknown operator {name!r}; choose one of {', '.join(OPERATORS)}.") from None


def perturbed(name: str, logits_BTV: Tensor, noise: Noise | None) -> Tensor:
    """The logits that the operator sees: z, or z + g for SG and GX. Shape [B, T, V], at least fp32."""
    seen_BTV = logits_BTV.to(_exact(logits_BTV))
    if not operator(name).noisy:
        return seen_BTV
    if noise is None:
        raise ValueError(f"operator {name} draws Gumbel noise: pass a Noise")
    return seen_BTV + noise.gumbel(logits_BTV.shape[1], 0, logits_BTV.shape[2], seen_BTV.dtype)


def relax(name: str, logits_BTV: Tensor, hard_ids_BT: Tensor | None = None, noise: Noise | None = None) -> Tensor:
    """O(z) as a dense tensor [B, T, V], with the Jacobian of ENGINE Table 1.

    `hard_ids_BT` replaces the argmax as the value of a hard operator (a sampled token). Logits of -inf get no mass
    and no gradient. The dense value is for inspection and tests; energies use `embed` and `log_likelihood`.
    """
    seen_BTV = perturbed(name, logits_BTV, noise)
    if not OPERATORS[name].hard:
        return seen_BTV.softmax(-1)
    ids_BT = seen_BTV.detach().argmax(-1) if hard_ids_BT is None else hard_ids_BT
    return _StraightThrough.apply(seen_BTV, ids_BT, name)  # type: ignore[no-untyped-call]


def embed(
    name: str,
    logits_BTV: Tensor,
    table_VD: Tensor,
    hard_ids_BT: Tensor | None = None,
    noise: Noise | None = None,
) -> Tensor:
    """Expected embeddings O(z) @ table, [B, T, D]: place O1 of ENGINE (what feeds the teacher's decoder).

    Equal to `relax(...) @ table_VD` in value and gradient. A hard operator looks its rows up.
    """
    ids_BT = _hard_ids(name, logits_BTV, hard_ids_BT, noise)
    return _Embed.apply(logits_BTV, table_VD, ids_BT, name, noise)  # type: ignore[no-untyped-call]


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
    ids_BT = _hard_ids(name, logits_BTV, hard_ids_BT, noise)
    return _LogLikelihood.apply(  # type: ignore[no-untyped-call]
        logits_BTV, scores_BUV, mask_BT, eos_id, ids_BT, name, noise
    )


# Elements of the blocks in which a batch is worked through: on a CPU a block stays in the cache.
BLOCK = {"cpu": 1 << 19, "cuda": 1 << 26}


def _blocks(logits_BTV: Tensor) -> Iterator[slice]:
    sentences, length, vocabulary = logits_BTV.shape
    size = max(1, BLOCK.get(logits_BTV.device.type, 1 << 24) // max(1, length * vocabulary))
    return (slice(start, start + size) for start in range(0, sentences, size))


def _exact(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _seen(name: str, logits_BTV: Tensor, noise: Noise | None, rows: slice) -> Tensor:
    return perturbed(name, logits_BTV[rows], None if noise is None else noise.select(rows))


@torch.no_grad()
def _hard_ids(name: str, logits_BTV: Tensor, hard_ids_BT: Tensor | None, noise: Noise | None) -> Tensor | None:
    if not operator(name).hard:
        return None
    if hard_ids_BT is not None:
        return hard_ids_BT
    return torch.cat([_seen(name, logits_BTV, noise, rows).argmax(-1) for rows in _blocks(logits_BTV)])


def _pull_back_(name: str, seen: Tensor, probs: Tensor | None, grad_probs: Tensor) -> Tensor:
    """The gradient of the logits from that of the operator's output, by the Jacobian; overwrites `grad_probs`.

    `probs` is softmax(seen), where it is known already.
    """
    if OPERATORS[name].jacobian == "identity":
        return grad_probs.masked_fill_(seen == float("-inf"), 0.0)
    probs = seen.softmax(-1) if probs is None else probs
    grad_probs.masked_fill_(probs == 0, 0.0)
    return grad_probs.sub_((probs * grad_probs).sum(-1, keepdim=True)).mul_(probs)


class _StraightThrough(torch.autograd.Function):
    """one-hot(ids) forward; the softmax or identity Jacobian backward."""

    @staticmethod
    def forward(ctx: Any, seen: Tensor, ids: Tensor, name: str) -> Tensor:
        ctx.save_for_backward(seen)
        ctx.name = name
        return torch.zeros_like(seen).scatter_(-1, ids.unsqueeze(-1), 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (seen,) = ctx.saved_tensors
        return _pull_back_(ctx.name, seen, None, grads[0].clone()), None, None


class _Embed(torch.autograd.Function):
    """O(z) @ table, and its gradient, block by block."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, table: Tensor, ids: Tensor | None, name: str, noise: Noise | None) -> Tensor:
        ctx.save_for_backward(logits, table, ids)
        device = logits.device.type
        # Under autocast the products run in its type, backward as forward.
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else table.dtype
        ctx.name, ctx.noise = name, noise
        if ids is not None:
            return torch.nn.functional.embedding(ids, table)
        weight = table.to(ctx.dtype)
        out = weight.new_empty((*logits.shape[:2], table.shape[1]))
        for rows in _blocks(logits):
            torch.matmul(_seen(name, logits, noise, rows).softmax(-1).to(ctx.dtype), weight, out=out[rows])
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, table, ids = ctx.saved_tensors
        grad = grads[0].to(ctx.dtype)
        grad_logits = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        grad_table = torch.zeros_like(table) if ctx.needs_input_grad[1] else None
        weight = table.to(ctx.dtype).T
        for rows in _blocks(logits):
            seen = _seen(ctx.name, logits, ctx.noise, rows)
            probs = seen.softmax(-1) if ids is None else None
            if grad_table is not None and probs is not None:
                grad_table += (probs.to(ctx.dtype).flatten(0, 1).T @ grad[rows].flatten(0, 1)).to(table)
            if grad_logits is not None:
                grad_logits[rows] = _pull_back_(ctx.name, seen, probs, (grad[rows] @ weight).to(seen.dtype))
        if grad_table is not None and ids is not None:
            grad_table.index_add_(0, ids.flatten(), grad.flatten(0, 1).to(table))
        return grad_logits, grad_table, None, None, None


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
        exact, steps = _exact(scores), logits.shape[1]
        norm = scores.logsumexp(-1) if scores.dtype == exact else scores.to(exact).logsumexp(-1)
        if ids is not None:
            picked = scores[:, :steps].gather(-1, ids.unsqueeze(-1)).squeeze(-1).to(exact)
        else:
            picked = norm.new_empty(mask.shape)
            for rows in _blocks(logits):
                probs = _seen(name, logits, noise, rows).softmax(-1)
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
        for rows in _blocks(logits):
            values = scores[rows].to(norm.dtype) - norm[rows].unsqueeze(-1)
            seen = _seen(ctx.name, logits, ctx.noise, rows)
            probs = seen.softmax(-1) if ids is None else None
            if grad_logits is not None:
                pulled = _pull_back_(ctx.name, seen, probs, values[:, :steps].clone())
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
