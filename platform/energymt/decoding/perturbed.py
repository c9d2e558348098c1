"""Decoding from encoder states that a proxy's gradient has nudged (NAP, arXiv 2405.01601).

    g = ∂ merit(e) / ∂e           e' = e + α · n(e) · g / |g|

merit is the metric that the proxy predicts of a sentence's output, turned so that more is better. What |g| and n mean
is a choice (the paper's own is not known): `relative`, the default, takes both per state, |g_i| and |e_i|, so that α is
the length of a state's step in lengths of the state; `sequence` takes both over all states of a sentence; `unit` takes
|g_i| per state and leaves n out. Padding stays as it is.

One encoder pass and one backward pass through the proxy alone; the model gets no gradient, and decodes as ever: greedy,
beam search, sampling, mask-predict.

Axes of this room: B sentences, S states, D their width, A values of α.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from energymt.errors import ConfigurationError
from energymt.models.proxy import QualityProxy
from energymt.models.translator import Memory, TranslationModel
from energymt.records import Input

Norm = Literal["relative", "sequence", "unit"]
M = TypeVar("M", bound=TranslationModel)


@dataclass(frozen=True)
class Perturbation:
    """A step along a proxy's gradient.

    Attributes:
        proxy: of the model whose states are nudged.
        alphas: lengths of the step. One is taken as it is; of several, each sentence gets that of which most gain is to
            be expected (0 may stand among them).
        norm: what a length is measured in.
        steps: the way is gone in so many parts, with a new gradient before each.
        trust: a sentence is nudged only where the expected gain is more than this many held-out errors (root mean
            square); 0 nudges all.

    The expected gain is what the proxy promises, and the error that of its predictions; where it was tried on held-out
    text what such a step should do (`energymt.models.gains`), it is the kept part of the promise, and the error that of
    a gain.

    Raises:
        ConfigurationError: an alpha or a trust that is no finite number, no step, a proxy that knows nothing.
    """

    proxy: QualityProxy
    alphas: tuple[float, ...]
    norm: Norm = "relative"
    steps: int = 1
    trust: float = 0.0

    def __post_init__(self) -> None:
        if not self.alphas or not torch.tensor(self.alphas).isfinite().all():
            shown = ", ".join(f"{alpha:g}" for alpha in self.alphas) or "nothing"
            raise ConfigurationError(f"Alpha is the length of a step, a finite number, and not {shown}.")
        if self.steps < 1:
            raise ConfigurationError(f"A perturbation takes one step at least, and not {self.steps}.")
        if not (self.trust >= 0 and torch.tensor(self.trust).isfinite()):
            raise ConfigurationError(f"Trust is a number of errors, at least 0, and not {self.trust:g}.")
        if float(self.proxy.scale) == 0.0:
            raise ConfigurationError(
                "The proxy knows nothing of its metric (its correlation on held-out data was not above 0), and its "
                "gradient points nowhere: train it longer, or on more sentences."
            )

    def __call__(self, memory: Memory) -> Memory:
        """The same sentences with nudged states."""
        ends = self._ends(memory)
        if len(ends) == 1 and self.trust == 0.0:
            return ends[0]
        gain_AB = self.promises(memory, ends)
        if self.tried:
            gain_AB = gain_AB * gain_AB.new_tensor([self._kept(alpha) for alpha in self.alphas])[:, None]
        order_A = torch.tensor([abs(alpha) for alpha in self.alphas], device=gain_AB.device).argsort(stable=True)
        gain_B, best_B = gain_AB[order_A].max(0)
        best_B = order_A[best_B]  # of equal gains that of the smallest step
        states_ABSD = torch.stack([end.states_BSD for end in ends])
        states_BSD = states_ABSD[best_B, torch.arange(len(best_B), device=best_B.device)]
        if self.trust > 0.0:
            error_B = gain_AB.new_tensor([self._error(alpha) for alpha in self.alphas])[best_B]
            moved_B11 = (gain_B > self.trust * error_B)[:, None, None]
            states_BSD = torch.where(moved_B11, states_BSD, memory.states_BSD)
        return replace(memory, states_BSD=states_BSD)

    @property
    def tried(self) -> bool:
        """Whether it is known what steps of each length have come to."""
        return all(self._key(alpha) in self.proxy.gains for alpha in self.alphas if alpha != 0.0)

    def _key(self, alpha: float) -> tuple[str, int, float]:
        return self.norm, self.steps, alpha

    def _kept(self, alpha: float) -> float:
        return 0.0 if alpha == 0.0 else self.proxy.gains[self._key(alpha)].kept

    def _error(self, alpha: float) -> float:
        if not self.tried:
            return float(self.proxy.error)
        return 0.0 if alpha == 0.0 else self.proxy.gains[self._key(alpha)].error

    @torch.no_grad()
    def promises(self, memory: Memory, ends: Sequence[Memory] | None = None) -> Tensor:
        """What the proxy promises of each α, [A, B] in the metric's unit, more is better: its merit there minus here.

        Args:
            memory: the model's own states.
            ends: where each α leads to, if that is known.
        """
        before_B = self.proxy.merit(memory.states_BSD, memory.mask_BS)
        ends = self._ends(memory) if ends is None else ends
        return torch.stack([self.proxy.merit(end.states_BSD, end.mask_BS) - before_B for end in ends])

    def each(self, memory: Memory) -> Memory:
        """A · B rows, the values of α side by side for each sentence: a sentence of α = 0 is as it was."""
        rows_R = torch.arange(len(memory.mask_BS), device=memory.mask_BS.device).repeat_interleave(len(self.alphas))
        states_BASD = torch.stack([end.states_BSD for end in self._ends(memory)], dim=1)
        return replace(memory.select(rows_R), states_BSD=states_BASD.flatten(0, 1))

    def _ends(self, memory: Memory) -> list[Memory]:
        """The states that each α leads to; of a single step all have the same direction."""
        if self.steps > 1 or len(self.alphas) == 1:
            return [self.moved(memory, alpha) for alpha in self.alphas]
        direction_BSD = self.direction(memory)
        return [
            memory if alpha == 0.0 else replace(memory, states_BSD=memory.states_BSD + alpha * direction_BSD)
            for alpha in self.alphas
        ]

    def moved(self, memory: Memory, alpha: float) -> Memory:
        """States at the end of the way for one α, trusted or not; for α = 0 the memory itself."""
        if alpha == 0.0:
            return memory
        for _ in range(self.steps):
            states_BSD = memory.states_BSD + alpha / self.steps * self.direction(memory)
            memory = replace(memory, states_BSD=states_BSD)
        return memory

    def direction(self, memory: Memory) -> Tensor:
        """n(e) · g / |g|, 0 on padding: [B, S, D], in the states' own precision."""
        gradient_BSD = merit_gradient(self.proxy, memory)
        states_BSD = memory.states_BSD.float().masked_fill(~memory.mask_BS.unsqueeze(-1), 0.0)
        axes = (1, 2) if self.norm == "sequence" else (2,)
        largest = gradient_BSD.abs().amax(dim=axes, keepdim=True)
        # Where there is no gradient (padding) there is no direction. A small one has squares that are 0 in float32.
        gradient_BSD = torch.where(largest > 0, gradient_BSD / largest, 0.0)
        length = gradient_BSD.norm(dim=axes, keepdim=True).clamp(min=1.0)
        reach = 1.0 if self.norm == "unit" else states_BSD.norm(dim=axes, keepdim=True)
        return (gradient_BSD * (reach / length)).to(memory.states_BSD.dtype)


def merit_gradient(proxy: QualityProxy, memory: Memory) -> Tensor:
    """∂ merit / ∂ state of each sentence, [B, S, D] in float32; 0 on padding. It works where gradients are off."""
    with torch.inference_mode(False), torch.enable_grad():
        states_BSD = memory.states_BSD.detach().clone().float().requires_grad_(True)
        merit_B = proxy.merit(states_BSD, memory.mask_BS.clone())
        (gradient_BSD,) = torch.autograd.grad(merit_B.sum(), states_BSD)
    return gradient_BSD


def perturbed(model: M, change: Callable[[Memory], Memory]) -> M:
    """A model that shares all weights with `model`, and whose encoder's states are changed before anybody sees them.

    Whatever decodes a translator decodes this one.
    """
    return _with_encoder(model, lambda source: change(model.encode(source)))


def side_by_side(model: M, perturbation: Perturbation) -> M:
    """A model for sources whose rows stand A times one behind the other: row r gets the α of r mod A.

    Every sentence is encoded and differentiated once, and all its rows are decoded as one batch.
    """
    several = len(perturbation.alphas)

    def encode(source: Input) -> Memory:
        first_B = torch.arange(0, len(source), several, device=source.mask_BS.device)
        return perturbation.each(model.encode(source.select(first_B)))

    return _with_encoder(model, encode)


def _with_encoder(model: M, encode: Callable[[Input], Memory]) -> M:
    twin = copy.copy(model)  # the same modules under the same names
    object.__setattr__(twin, "encode", encode)
    return twin
