"""How much an energy weighs beside the cross-entropy: from the gradients of both, known one by one.

With g_S the gradient of the labelled part, g_E that of the energy, and r(n) a ramp from 0 to 1 over the first steps:

    ratio        w_E = r · weight · |g_S| / |g_E|         the energy's gradient has a set share of the other's norm
    constant     w_E = r · weight
    published    w_E = 0.001 · min(1, n / 4000),  w_S = max(0, 1 − 10 w_E)         (code of QE-EBM)
    projection   as ratio, of what is left of g_E without its part against g_S      (PCGrad, Yu et al. 2020)
    gradnorm     weights that learn to make norms follow the rates of training      (GradNorm, Chen et al. 2018)

Whatever it is, the gradient of the step is w_S g_S + w_E g_E. An energy whose gradient fades, for it has nothing more
to say, is not amplified: ratio and projection take |g_E| for at least a tenth of its mean over the ramp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import Field
from torch import Tensor

from energymt.configuration import Section

PUBLISHED_WEIGHT, PUBLISHED_STEPS = 0.001, 4000
FADED = 0.1  # of the mean norm of the energy's gradient over the ramp
TINY = 1e-12

Kind = Literal["ratio", "constant", "published", "projection", "gradnorm"]


class BalanceConfig(Section):
    """How an unlabelled loss is weighed against the cross-entropy."""

    kind: Kind = "ratio"
    """How the weight is found: ratio, constant, published, projection or gradnorm (docs/qe_ebm.md)."""
    weight: float = Field(default=0.3, ge=0, allow_inf_nan=False)
    """The share of the norm (`ratio`, `projection`), or the weight itself (`constant`)."""
    ramp: float = Field(default=0.1, ge=0, le=1)
    """Share of the run over which it grows from 0."""
    asymmetry: float = Field(default=0.5, ge=0)
    """GradNorm's α: how much a part that trains slowly is favoured (code of QE-EBM: 0.5)."""
    rate: float = Field(default=0.025, gt=0)
    """Learning rate of GradNorm's weights (Chen et al. 2018: 0.025)."""


@dataclass
class Balance:
    """The weights of one run, (labelled, unlabelled)."""

    config: BalanceConfig
    steps: int  # of the run
    learnt: list[float] = field(default_factory=lambda: [1.0, 1.0])  # GradNorm's
    first: list[float] = field(default_factory=list)  # losses of the first step, GradNorm's
    ramp_norms: list[float] = field(default_factory=lambda: [0.0, 0.0])  # of g_E over the ramp: sum and number

    def weigh(self, gram_PP: Tensor, step: int, losses: tuple[float, float]) -> tuple[float, float]:
        """Weights of the labelled and of the unlabelled gradient.

        Args:
            gram_PP: their scalar products, labelled first.
            step: of the run, from 0.
            losses: of both parts.
        """
        labelled, cross, unlabelled = (float(gram_PP[a, b]) for a, b in ((0, 0), (0, 1), (1, 1)))
        ramp = (step + 1) / max(1.0, self.config.ramp * self.steps)
        weight = min(1.0, ramp) * self.config.weight
        if self.config.kind == "published":
            weight = PUBLISHED_WEIGHT * min(1.0, step / PUBLISHED_STEPS)
            return max(0.0, 1.0 - 10.0 * weight), weight
        if self.config.kind == "gradnorm":
            return self._gradnorm((labelled**0.5, unlabelled**0.5), losses)
        if self.config.kind == "constant" or unlabelled <= TINY or labelled <= TINY:
            return 1.0, weight
        if ramp <= 1.0:
            self.ramp_norms = [self.ramp_norms[0] + unlabelled**0.5, self.ramp_norms[1] + 1.0]
        least = (FADED * self.ramp_norms[0] / max(1.0, self.ramp_norms[1])) ** 2
        if self.config.kind == "ratio" or cross >= 0:
            return 1.0, weight * (labelled / max(least, unlabelled)) ** 0.5
        left = unlabelled - cross * cross / labelled  # squared norm of g_E without its part along g_S
        if left <= TINY * unlabelled:
            return 1.0, 0.0
        scale = weight * (labelled / max(least, left)) ** 0.5
        return 1.0 - scale * cross / labelled, scale

    def _gradnorm(self, norms: tuple[float, float], losses: tuple[float, float]) -> tuple[float, float]:
        """The present weights; then they go a step towards norms in proportion to (L / L_0)^α."""
        now = (self.learnt[0], self.learnt[1])
        if min(norms) == 0.0:  # a part is not there, and neither is its loss
            return now
        self.first = self.first or [max(TINY, loss) for loss in losses]
        rates = [max(TINY, loss) / first for loss, first in zip(losses, self.first, strict=True)]
        mean_rate = sum(rates) / 2
        norm = sum(weight * norm for weight, norm in zip(self.learnt, norms, strict=True)) / 2
        wanted = [norm * (rate / mean_rate) ** self.config.asymmetry for rate in rates]
        # The gradient of Σ |w_i n_i − wanted_i| in w_i, the wanted norm held fixed; in mean norms: no unit counts.
        for place in (0, 1):
            gap = now[place] * norms[place] - wanted[place]
            self.learnt[place] -= self.config.rate * ((gap > 0) - (gap < 0)) * norms[place] / max(TINY, sum(norms) / 2)
        self.learnt = [max(TINY, weight) for weight in self.learnt]
        total = sum(self.learnt)
        self.learnt = [2.0 * weight / total for weight in self.learnt]
        return now

    def state(self) -> dict[str, list[float]]:
        """What it learnt, for a checkpoint."""
        return {"learnt": self.learnt, "first": self.first, "ramp_norms": self.ramp_norms}

    def load(self, state: Mapping[str, list[float]]) -> None:
        """Go on from a checkpoint."""
        self.learnt, self.first = list(state["learnt"]), list(state["first"])
        self.ramp_norms = list(state.get("ramp_norms", self.ramp_norms))
