"""How well scores of translations agree with judgements: correlations with intervals, and paired differences.

Pearson's r, Spearman's ρ and Kendall's τ-b; intervals and tests by bootstrap over sentences (see `significance`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata

from energymt.errors import DataError
from energymt.metrics.significance import SAMPLES, SEED, Interval

Values = NDArray[np.float64]


def pearson(scores_N: Values, judgements_N: Values) -> float:
    """Pearson's r; 0 where one side is constant, which says nothing of the other."""
    if _constant(scores_N) or _constant(judgements_N):  # whose mean may differ from it by a rounding
        return 0.0
    centred, other = scores_N - scores_N.mean(), judgements_N - judgements_N.mean()
    scale = np.linalg.norm(centred) * np.linalg.norm(other)
    return float(np.clip(centred @ other / scale, -1.0, 1.0)) if scale != 0 else 0.0


def spearman(scores_N: Values, judgements_N: Values) -> float:
    """Spearman's ρ: Pearson's r of ranks, ties at their mean rank."""
    return pearson(rankdata(scores_N), rankdata(judgements_N))


def kendall(scores_N: Values, judgements_N: Values) -> float:
    """Kendall's τ-b; 0 where one side is constant."""
    if _constant(scores_N) or _constant(judgements_N):
        return 0.0
    return float(kendalltau(scores_N, judgements_N).statistic)


CORRELATIONS: dict[str, Callable[[Values, Values], float]] = {
    "pearson": pearson,
    "spearman": spearman,
    "kendall": kendall,
}


@dataclass(frozen=True)
class Agreement:
    """One scorer against the judgements: each correlation with its 95 % interval."""

    name: str
    sentences: int
    correlations: dict[str, Interval]

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "scorer": self.name,
            "sentences": self.sentences,
            **{key: value.to_dict() for key, value in self.correlations.items()},
        }


def correlations(scores: Sequence[float] | Values, judgements: Sequence[float] | Values) -> dict[str, float]:
    """All three.

    Raises:
        DataError: of different lengths, or fewer than two.
    """
    scores_N, judgements_N = _pair(scores, judgements)
    return {name: correlation(scores_N, judgements_N) for name, correlation in CORRELATIONS.items()}


def agreements(
    scorers: dict[str, Sequence[float]], judgements: Sequence[float] | Values, *, samples: int = SAMPLES
) -> list[Agreement]:
    """Every scorer against the judgements, and, behind the first, the first minus each other on the same resamples.

    Raises:
        DataError: of different lengths, or fewer than two.
    """
    pairs = {name: _pair(scores, judgements) for name, scores in scorers.items()}
    size = len(next(iter(pairs.values()))[0])
    random = np.random.default_rng(SEED)
    drawn: dict[str, dict[str, list[float]]] = {name: {key: [] for key in CORRELATIONS} for name in scorers}
    for _ in range(samples):
        rows = random.integers(size, size=size)
        for name, (scores_N, judgements_N) in pairs.items():
            for key, correlation in CORRELATIONS.items():
                drawn[name][key].append(correlation(scores_N[rows], judgements_N[rows]))
    whole = {name: correlations(*pair) for name, pair in pairs.items()}
    found = [
        Agreement(name, size, {key: _interval(whole[name][key], drawn[name][key]) for key in CORRELATIONS})
        for name in scorers
    ]
    first, *others = scorers
    for name in others:
        differences = {
            key: _interval(whole[first][key] - whole[name][key], np.subtract(drawn[first][key], drawn[name][key]))
            for key in CORRELATIONS
        }
        found.append(Agreement(f"{first} − {name}", size, differences))
    return found


def _constant(values_N: Values) -> bool:
    return bool(values_N.min() == values_N.max())


def _interval(value: float, drawn: Sequence[float] | Values) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def _pair(scores: Sequence[float] | Values, judgements: Sequence[float] | Values) -> tuple[Values, Values]:
    scores_N, judgements_N = np.asarray(scores, dtype=np.float64), np.asarray(judgements, dtype=np.float64)
    if len(scores_N) != len(judgements_N) or len(scores_N) < 2:
        raise DataError(
            f"A correlation needs as many scores as judgements, and two at least: there are {len(scores_N)} and "
            f"{len(judgements_N)}."
        )
    return scores_N, judgements_N
