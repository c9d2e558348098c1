"""Relaxation operators: what turns a translator's logits into something an energy can take (ENGINE, Table 1).

    operator   value                     Jacobian
    SX         softmax(z)                exact
    STL        one-hot(argmax z)         identity on the logits
    SG         one-hot(argmax z + g)     that of softmax(z + g)
    ST         one-hot(argmax z)         that of softmax(z)
    GX         softmax(z + g)            exact

with Gumbel noise g. A one-hot value is never stored: `embed` looks rows up, `expect` picks entries out, and the
Jacobian is applied in the backward pass alone. Temperature is 1, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


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


@dataclass(frozen=True)
class Noise:
    """The Gumbel noise of a batch, by name: a function of (seed, step, stream, sentence, position, token) alone.

    The same numbers come out however a batch is cut, padded or ordered, in vocabulary chunks or whole, on CPU and on
    CUDA; nothing is stored. `stream` tells two draws of one step apart (ENGINE draws for O1 and O2 independently).
    """

    seed: int
    step: int
    sentence_ids_B: Tensor  # int64
    stream: int = 0

    def draw(self, stream: int) -> Noise:
        """The same noise source, another independent draw."""
        return replace(self, stream=stream)

    def to(self, device: torch.device) -> Noise:
        return replace(self, sentence_ids_B=self.sentence_ids_B.to(device))

    def gumbel(self, length: int, start: int, stop: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Gumbel(0, 1) noise [B, length, stop - start] for the tokens start..stop-1 of the vocabulary."""
        return -torch.log(-torch.log(self.uniform(length, start, stop, dtype)))

    def uniform(self, length: int, start: int, stop: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform noise in (0, 1), [B, length, stop - start], under the same key."""
        device = self.sentence_ids_B.device
        key_B = _mix64(self.sentence_ids_B ^ _mix64(torch.tensor(self.seed * 8191 + self.stream, device=device)))
        key_B = _mix64(key_B + self.step)
        positions_T = torch.arange(length, device=device)
        key_BT1 = _mix64(key_B[:, None] ^ (positions_T * 0x632BE59BD9B4E019))[..., None]
        first, second = _as_int32(key_BT1), _as_int32(key_BT1 >> 32)
        tokens_V = _as_int32(torch.arange(start, stop, device=device) * 0x9E3779B9)
        bits = _mix32(tokens_V ^ first, second)
        # 24 bits, shifted by a half: u is never 0 nor 1, and both logarithms are finite.
        return (_shift32(bits, 8).to(dtype) + 0.5) / float(1 << 24)


def _as_int32(value: Tensor) -> Tensor:
    """The low 32 bits, as a signed integer."""
    low = value & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)


def _shift32(value: Tensor, places: int) -> Tensor:
    """Logical shift to the right of a signed 32-bit integer (torch's own shift keeps the sign)."""
    return (value >> places) & ((1 << (32 - places)) - 1)


def _mix32(value: Tensor, offset: Tensor) -> Tensor:
    """A 32-bit finaliser (multiply and xor-shift), with a second key added between its rounds."""
    value = (value ^ _shift32(value, 16)) * 0x21F0AAAD
    value = value + offset
    value = (value ^ _shift32(value, 15)) * 0x735A2D97
    return value ^ _shift32(value, 15)


def _mix64(value: Tensor) -> Tensor:
    """A 64-bit finaliser on wrapping integers; the constants are odd and fit a signed 64-bit integer."""
    value = (value ^ ((value >> 30) & 0x3FFFFFFFF)) * 0x3F58476D1CE4E5B9
    value = (value ^ ((value >> 27) & 0x1FFFFFFFFF)) * 0x14D049BB133111EB
    return value ^ ((value >> 31) & 0x1FFFFFFFF)


def operator(name: str) -> Operator:
    """The operator of that name; a KeyError becomes a sentence."""
    try:
        return OPERATORS[name]
    except KeyError:
        from energymt.errors import ConfigurationError

        raise ConfigurationError(f"Unknown operator {name!r}; choose one of {', '.join(OPERATORS)}.") from None


def perturbed(name: str, logits_BTV: Tensor, noise: Noise | None) -> Tensor:
    """The logits that the operator sees: z, or z + g for SG and GX. Shape [B, T, V]."""
    if not operator(name).noisy:
        return logits_BTV
    if noise is None:
        raise ValueError(f"operator {name} draws Gumbel noise: pass a Noise")
    return logits_BTV + noise.gumbel(logits_BTV.shape[1], 0, logits_BTV.shape[2], logits_BTV.dtype)


def _hard_ids(name: str, seen_BTV: Tensor, hard_ids_BT: Tensor | None) -> Tensor | None:
    if not OPERATORS[name].hard:
        return None
    return seen_BTV.argmax(-1) if hard_ids_BT is None else hard_ids_BT


def relax(name: str, logits_BTV: Tensor, hard_ids_BT: Tensor | None = None, noise: Noise | None = None) -> Tensor:
    """O(z) as a dense tensor [B, T, V], with the Jacobian of ENGINE Table 1.

    `hard_ids_BT` replaces the argmax as the value of a hard operator (a sampled token). Logits of -inf get no mass
    and no gradient. The dense value is for inspection and tests; energies use `embed` and `expect`.
    """
    seen_BTV = perturbed(name, logits_BTV, noise)
    ids_BT = _hard_ids(name, seen_BTV.detach(), hard_ids_BT)
    if ids_BT is None:
        return seen_BTV.softmax(-1)
    return _StraightThrough.apply(seen_BTV, ids_BT, OPERATORS[name].jacobian)  # type: ignore[no-untyped-call]


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
    seen_BTV = perturbed(name, logits_BTV, noise)
    ids_BT = _hard_ids(name, seen_BTV.detach(), hard_ids_BT)
    if ids_BT is None:
        return seen_BTV.softmax(-1).to(table_VD.dtype) @ table_VD
    return _HardEmbed.apply(seen_BTV, table_VD, ids_BT, OPERATORS[name].jacobian)  # type: ignore[no-untyped-call]


def expect(
    name: str,
    logits_BTV: Tensor,
    values_BTV: Tensor,
    hard_ids_BT: Tensor | None = None,
    noise: Noise | None = None,
) -> Tensor:
    """Expected values Σ_v O(z)_v · values_v, [B, T]: place O2 of ENGINE (values are the teacher's log-probabilities).

    Equal to `(relax(...) * values_BTV).sum(-1)` in value and gradient, where 0 · (−∞) counts as 0.
    """
    seen_BTV = perturbed(name, logits_BTV, noise)
    ids_BT = _hard_ids(name, seen_BTV.detach(), hard_ids_BT)
    if ids_BT is None:
        probs_BTV = seen_BTV.softmax(-1)
        return (probs_BTV * values_BTV.masked_fill(probs_BTV == 0, 0.0)).sum(-1)
    return _HardExpect.apply(seen_BTV, values_BTV, ids_BT, OPERATORS[name].jacobian)  # type: ignore[no-untyped-call]


def _through_jacobian(jacobian: str, logits: Tensor, grad_probs: Tensor) -> Tensor:
    """The gradient of the logits from that of the operator's output, by the Jacobian of that row."""
    if jacobian == "identity":
        return grad_probs.masked_fill(logits == float("-inf"), 0.0)
    probs = logits.softmax(-1)
    grad_probs = grad_probs.masked_fill(probs == 0, 0.0)
    return probs * (grad_probs - (probs * grad_probs).sum(-1, keepdim=True))


class _StraightThrough(torch.autograd.Function):
    """one-hot(ids) forward; the softmax or identity Jacobian backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, jacobian: str) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.jacobian = jacobian
        return torch.zeros_like(logits).scatter_(-1, ids.unsqueeze(-1), 1.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        return _through_jacobian(ctx.jacobian, logits, grads[0]), None, None


class _HardEmbed(torch.autograd.Function):
    """table[ids] forward; backward as if it had been one-hot @ table."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, table: Tensor, ids: Tensor, jacobian: str) -> Tensor:
        ctx.save_for_backward(logits, table, ids)
        ctx.jacobian = jacobian
        return torch.nn.functional.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, table, ids = ctx.saved_tensors
        (grad,) = grads
        grad_logits = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_logits = _through_jacobian(ctx.jacobian, logits, (grad @ table.T).to(logits.dtype))
        if ctx.needs_input_grad[1]:
            grad_table = torch.zeros_like(table).index_add_(0, ids.flatten(), grad.flatten(0, 1))
        return grad_logits, grad_table, None, None


class _HardExpect(torch.autograd.Function):
    """values[ids] forward; backward as if it had been (one-hot · values)."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, values: Tensor, ids: Tensor, jacobian: str) -> Tensor:
        ctx.save_for_backward(logits, values, ids)
        ctx.jacobian = jacobian
        return values.gather(-1, ids.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, values, ids = ctx.saved_tensors
        grad = grads[0].unsqueeze(-1)
        grad_logits = grad_values = None
        if ctx.needs_input_grad[0]:
            grad_logits = grad * _through_jacobian(ctx.jacobian, logits, values.to(logits.dtype))
        if ctx.needs_input_grad[1]:
            grad_values = torch.zeros_like(values).scatter_(-1, ids.unsqueeze(-1), grad)
        return grad_logits, grad_values, None, None
