"""Translations that a sound quality estimator must like less than the right one: how an energy can be cheated.

A translator that follows the gradient of an estimator finds what the estimator likes. So before one is used as an
energy it is asked what it makes of outputs that score high where an estimator has holes (see `PROBES`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from energymt.metrics.significance import Interval, interval
from energymt.metrics.translation import mean

Probe = Callable[[int, Sequence[str], Sequence[str], np.random.Generator], str]


def _shuffled(row: int, sources: Sequence[str], golds: Sequence[str], random: np.random.Generator) -> str:
    words = golds[row].split()
    return " ".join(words[i] for i in random.permutation(len(words)))


def _halved(row: int, sources: Sequence[str], golds: Sequence[str], random: np.random.Generator) -> str:
    words = golds[row].split()
    return " ".join(words[: len(words) // 2])


def _other(row: int, sources: Sequence[str], golds: Sequence[str], random: np.random.Generator) -> str:
    return golds[(row + 1 + random.integers(max(1, len(golds) - 1))) % len(golds)]


def _numbers(row: int, sources: Sequence[str], golds: Sequence[str], random: np.random.Generator) -> str:
    """Every digit becomes another one."""
    return "".join(str((int(c) + 1 + random.integers(9)) % 10) if c in "0123456789" else c for c in golds[row])


PROBES: dict[str, Probe] = {
    "empty": lambda row, sources, golds, random: "",
    "words shuffled": _shuffled,
    "second half left out": _halved,
    "source copied": lambda row, sources, golds, random: sources[row],
    "said twice": lambda row, sources, golds, random: f"{golds[row]} {golds[row]}",
    "translation of another source": _other,
    "numbers changed": _numbers,
}


@dataclass(frozen=True)
class ProbeResult:
    """One kind of wrong translation against the right ones."""

    name: str
    sentences: int
    """Sources to which it applies: only there does it differ from the right translation."""
    wins: Interval
    """Share of them where the right translation scores higher, from 0 to 1; chance is 0.5, and a tie is no win."""
    margin: float | None
    """Mean score of the right minus the wrong one, in standard deviations of the right ones' scores; None where those
    are all equal."""

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {
            "probe": self.name,
            "sentences": self.sentences,
            "wins": self.wins.to_dict(),
            "margin": self.margin,
        }


def run_probes(
    score: Callable[[Sequence[str], Sequence[str]], Sequence[float]],
    sources: Sequence[str],
    golds: Sequence[str],
    wrong_language: Sequence[str] | None = None,
    *,
    seed: int = 1,
) -> list[ProbeResult]:
    """Ask a scorer about every probe.

    Args:
        score: of (sources, translations), higher is better.
        sources, golds: right pairs.
        wrong_language: the same sentences in a third language.
        seed: of shuffles and draws.
    """
    gold_N = np.array(score(sources, golds), dtype=np.float64)
    made = {
        name: [probe(row, sources, golds, np.random.default_rng([seed, row])) for row in range(len(golds))]
        for name, probe in PROBES.items()
    }
    if wrong_language is not None:
        made["wrong language"] = list(wrong_language)
    spread = float(gold_N.std())
    found = []
    for name, texts in made.items():
        rows = [row for row, text in enumerate(texts) if text.split() != golds[row].split()]
        if not rows:
            continue
        wrong = np.array(score([sources[row] for row in rows], [texts[row] for row in rows]), dtype=np.float64)
        margins = gold_N[rows] - wrong
        wins = interval(mean((margins > 0).astype(np.float64).tolist()))
        found.append(ProbeResult(name, len(rows), wins, float(margins.mean()) / spread if spread > 0 else None))
    return found
