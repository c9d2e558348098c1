"""Relaxation operators: what turns a translator's logits into something an energy can take (ENGINE, Table 1).

    operator   value                     Jacobian
    SX         softmax(z)                exact
    STL        one-hot(argmax z)         identity on the logits
    SG         one-hot(argmax z + g)     that of softmax(z + g)
    ST         one-hot(argmax z)         that of softmax(z)
    GX         softmax(z + g)            exact

with Gumbel noise g. Temperature is 1, as in the paper.

`relax` is the definition, dense. `embed` (and `energies.likelihood`) are what energies call: equal to it in value and
gradient, but a one-hot is never made, probabilities and noise are never stored (the backward pass computes them again),
and the work goes block by block, so that intermediate values stay small, and on a CPU in its cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from energymt.noise import Noise

__all__ = ["OPERATORS", "Noise", "Operator", "embed", "operator", "perturbed", "relax"]


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
    return seen_by(name, logits_BTV, noise)


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
    ids_BT = hard_ids_of(name, logits_BTV, hard_ids_BT, noise)
    return _Embed.apply(logits_BTV, table_VD, ids_BT, name, noise)  # type: ignore[no-untyped-call]


BLOCK = {"cpu": 1 << 19, "cuda": 1 << 26}  # elements of a block
NARROWEST = 512  # columns of a block: below, matrix products lose more than the cache gives


def row_blocks(logits_BTV: Tensor) -> Iterator[slice]:
    """Sentences that are worked on together."""
    sentences, length, vocabulary = logits_BTV.shape
    return _cut(sentences, max(1, BLOCK[logits_BTV.device.type] // max(1, length * vocabulary)))


def _column_blocks(logits_BTV: Tensor) -> Iterator[slice]:
    sentences, length, vocabulary = logits_BTV.shape
    return _cut(vocabulary, max(NARROWEST, BLOCK[logits_BTV.device.type] // max(1, sentences * length)))


def _cut(total: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, total)) for start in range(0, total, size))


def exact_type(logits: Tensor) -> torch.dtype:
    """What probabilities are computed in: fp32, or fp64 for fp64."""
    return torch.promote_types(logits.dtype, torch.float32)


def log_norm(name: str, logits_BTV: Tensor, noise: Noise | None) -> Tensor:
    """log Σ_v exp of what the operator sees, [B, T, 1]."""
    parts = [seen_by(name, logits_BTV, noise, columns=c).logsumexp(-1) for c in _column_blocks(logits_BTV)]
    return torch.stack(parts, -1).logsumexp(-1, keepdim=True)


EVERY = slice(None)


def seen_by(name: str, logits_BTV: Tensor, noise: Noise | None, rows: slice = EVERY, columns: slice = EVERY) -> Tensor:
    """A block of what the operator sees."""
    block = logits_BTV[rows, :, columns]
    exact = block.to(exact_type(block))
    if not operator(name).noisy:
        return exact
    if noise is None:
        raise ValueError(f"operator {name} draws Gumbel noise: pass a Noise")
    start, stop, _ = columns.indices(logits_BTV.shape[-1])
    return exact + noise.select(rows).gumbel(block.shape[1], start, stop, exact.dtype)


@torch.no_grad()
def hard_ids_of(name: str, logits_BTV: Tensor, hard_ids_BT: Tensor | None, noise: Noise | None) -> Tensor | None:
    """The tokens that are the value of a hard operator, [B, T]; None for a soft one."""
    if not operator(name).hard:
        return None
    if hard_ids_BT is not None:
        return hard_ids_BT
    return torch.cat([seen_by(name, logits_BTV, noise, rows).argmax(-1) for rows in row_blocks(logits_BTV)])


def pull_back_(name: str, seen: Tensor, probs: Tensor | None, grad_probs: Tensor) -> Tensor:
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
        return pull_back_(ctx.name, seen, None, grads[0].clone()), None, None


class _Embed(torch.autograd.Function):
    """O(z) @ table and its gradient, by parts of the vocabulary."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, table: Tensor, ids: Tensor | None, name: str, noise: Noise | None) -> Tensor:
        device = logits.device.type
        # Under autocast the products run in its type, backward as forward.
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else table.dtype
        ctx.name, ctx.noise = name, noise
        if ids is not None:
            ctx.save_for_backward(logits, table, ids, None)
            return torch.nn.functional.embedding(ids, table)
        norm = log_norm(name, logits, noise)
        ctx.save_for_backward(logits, table, None, norm)
        out = norm.new_zeros((*logits.shape[:2], table.shape[1]))
        for columns in _column_blocks(logits):
            probs = seen_by(name, logits, noise, columns=columns).sub(norm).exp_()
            out += probs.to(ctx.dtype) @ table[columns].to(ctx.dtype)
        return out.to(ctx.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, table, ids, norm = ctx.saved_tensors
        grad = grads[0].to(ctx.dtype)
        grad_logits = _Embed.grad_logits(ctx, logits, table, norm, grad) if ctx.needs_input_grad[0] else None
        grad_table = _Embed.grad_table(ctx, logits, table, ids, norm, grad) if ctx.needs_input_grad[1] else None
        return grad_logits, grad_table, None, None, None

    @staticmethod
    def grad_logits(ctx: Any, logits: Tensor, table: Tensor, norm: Tensor | None, grad: Tensor) -> Tensor:
        """Two passes: the gradient of the probabilities, written where that of the logits will be; the Jacobian."""
        result = torch.empty_like(logits)
        if OPERATORS[ctx.name].jacobian == "identity":
            for columns in _column_blocks(logits):
                part = grad @ table[columns].to(ctx.dtype).T
                result[..., columns] = part.masked_fill_(logits[..., columns] == float("-inf"), 0.0)
            return result
        norm = log_norm(ctx.name, logits, ctx.noise) if norm is None else norm
        mean = torch.zeros_like(norm)  # Σ_v p_v · (gradient of p_v)
        for columns in _column_blocks(logits):
            probs = seen_by(ctx.name, logits, ctx.noise, columns=columns).sub(norm).exp_()
            part = grad @ table[columns].to(ctx.dtype).T
            mean += probs.mul_(part).sum(-1, keepdim=True)
            result[..., columns] = part
        for columns in _column_blocks(logits):
            probs = seen_by(ctx.name, logits, ctx.noise, columns=columns).sub(norm).exp_()
            result[..., columns] = probs.mul_(result[..., columns] - mean)
        return result

    @staticmethod
    def grad_table(
        ctx: Any, logits: Tensor, table: Tensor, ids: Tensor | None, norm: Tensor | None, grad: Tensor
    ) -> Tensor:
        """The gradient of the rows of the table."""
        result, grad_RD = torch.zeros_like(table), grad.flatten(0, 1)
        if ids is not None:
            return result.index_add_(0, ids.flatten(), grad_RD.to(table.dtype))
        assert norm is not None
        for columns in _column_blocks(logits):
            probs = seen_by(ctx.name, logits, ctx.noise, columns=columns).sub(norm).exp_()
            result[columns] = (probs.to(ctx.dtype).flatten(0, 1).T @ grad_RD).to(table.dtype)
        return result
