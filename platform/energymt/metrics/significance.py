"""How sure one may be: intervals for one system, and paired tests between two.

*Bootstrap* (Koehn 2004): draw as many sentences as the test set has, with replacement, and score each sample.
*Approximate randomisation* (Riezler and Maxwell 2005): swap the two systems' outputs sentence by sentence with
probability 1/2; under the null hypothesis this changes nothing. Both work on the rows of `Statistics`, so BLEU and
chrF are never tokenised again, and any ratio or mean (energy, repetition) is tested by the same code.

Samples depend on the seed and the number of sentences alone: two scores, or two pairs of systems, see the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from energymt.errors import DataError
from energymt.metrics.translation import Statistics

SAMPLES = 1000
SEED = 12345
Sums = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A score and its 95 % bootstrap interval (percentiles)."""

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same sentences.

    `difference` is first - second, `low` and `high` its 95 % interval by paired bootstrap (percentiles). Both p values
    are two-sided: the chance of a difference at least this large if the systems were equal.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p_bootstrap: float
    p_randomisation: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def interval(system: Statistics, *, samples: int = SAMPLES, seed: int = SEED) -> Interval:
    """The score of one system with its 95 % bootstrap interval."""
    _require_sentences(system)
    drawn = np.array([system.score(counts_B @ system.rows_BC) for counts_B in _resamples(len(system), samples, seed)])
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(system.total(), float(low), float(high))


def compare(first: Statistics, second: Statistics, *, samples: int = SAMPLES, seed: int = SEED) -> Comparison:
    """Paired bootstrap and approximate randomisation between two systems on the same sentences.

    Raises:
        DataError: if they were not scored on the same number of sentences.
    """
    differences = bootstrap_differences(first, second, samples=samples, seed=seed)
    low, high = np.percentile(differences, [2.5, 97.5])
    observed = first.total() - second.total()
    return Comparison(
        first=first.total(),
        second=second.total(),
        difference=observed,
        low=float(low),
        high=float(high),
        # The bootstrap distribution lies around the observed difference; shifted to 0 it is that of equal systems.
        p_bootstrap=_p_value(differences - differences.mean(), observed),
        p_randomisation=_p_value(swapped_differences(first, second, samples=samples, seed=seed), observed),
    )


def bootstrap_differences(
    first: Statistics, second: Statistics, *, samples: int = SAMPLES, seed: int = SEED
) -> NDArray[np.float64]:
    """first - second on each bootstrap sample, the same sentences for both; [samples]."""
    _require_pair(first, second)
    return _differences(
        first.score,
        second.score,
        ((counts_B @ first.rows_BC, counts_B @ second.rows_BC) for counts_B in _resamples(len(first), samples, seed)),
    )


def swapped_differences(
    first: Statistics, second: Statistics, *, samples: int = SAMPLES, seed: int = SEED
) -> NDArray[np.float64]:
    """first - second after swapping each sentence's pair with probability 1/2; [samples]."""
    _require_pair(first, second)
    random = np.random.default_rng(seed)
    sums_C = first.rows_BC.sum(0) + second.rows_BC.sum(0)

    def swaps() -> Iterator[tuple[Sums, Sums]]:
        for _ in range(samples):
            swap_B1 = random.random(len(first))[:, None] < 0.5
            shuffled_C = np.where(swap_B1, second.rows_BC, first.rows_BC).sum(0)
            yield shuffled_C, sums_C - shuffled_C

    return _differences(first.score, second.score, swaps())


def _differences(
    first: Callable[[Sums], float], second: Callable[[Sums], float], pairs: Iterator[tuple[Sums, Sums]]
) -> NDArray[np.float64]:
    return np.array([first(one_C) - second(other_C) for one_C, other_C in pairs])


def _resamples(sentences: int, samples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each sentence was drawn, one sample at a time (a matrix of all would be large for a large corpus)."""
    random = np.random.default_rng(seed)
    for _ in range(samples):
        yield np.bincount(random.integers(sentences, size=sentences), minlength=sentences).astype(np.float64)


def _p_value(null: NDArray[np.float64], observed: float) -> float:
    # Equal differences count, whatever the rounding; + 1 keeps the test conservative (Noreen 1989).
    extreme = int((np.abs(null) >= abs(observed) - 1e-9).sum())
    return (extreme + 1) / (len(null) + 1)


def _require_sentences(system: Statistics) -> None:
    if not len(system):
        raise DataError("There is nothing to resample: the test set holds no sentence.")


def _require_pair(first: Statistics, second: Statistics) -> None:
    _require_sentences(first)
    if len(first) != len(second):
        raise DataError(
            f"A paired test needs both systems on the same sentences, but one has {len(first)} and the other "
            f"{len(second)}: translate the same file with both."
        )
