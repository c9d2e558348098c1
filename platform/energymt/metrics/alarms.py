"""Alarms of metric gaming: when the dev values of a run say that a translator cheats its estimator.

The *baseline* of most detectors is the start model, the first of the history. A start that could not translate yet is
none: then it is the evaluation of the best chrF (see `AlarmConfig`), so that a run from random weights, whose outputs
change in every way while it learns, raises no alarm before that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from energymt.metrics.detectors import (
    CHRF,
    FOOLED,
    FROZEN,
    HELD_OUT,
    JUDGE,
    KL,
    OVERLAP,
    PREFIX,
    QUALITY,
    SOFT,
    SOFT_GAP,
    SPREAD,
    WATCHES,
    AlarmConfig,
    Watch,
)

__all__ = ["PREFIX", "Alarm", "AlarmConfig", "alarms"]

Values = Mapping[str, float]


@dataclass(frozen=True)
class Alarm:
    """One detector that went off at the last evaluation."""

    detector: str
    """A key of `AlarmConfig`, or two_scorers, frozen_scorer, not_finite."""
    since: int
    """The first evaluation, counted from 0, from which on it has been going off without a break."""
    sentence: str
    """What, since when, what to do."""


def alarms(history: Sequence[Values], config: AlarmConfig) -> list[Alarm]:
    """The alarms of the last evaluation of a history.

    Args:
        history: the values of every evaluation so far in order, the start model's first: those that a trainable
            reports (all higher-is-better), and `indicators` with `PREFIX` before their names. What is absent raises
            no alarm; what is not finite does.
        config: thresholds.
    """
    if not history:
        return []
    rows = _finite(history)
    spread = next((row[SPREAD] for row in rows if row.get(SPREAD, 0.0) > 0), None)
    if spread is not None:
        for row in rows:
            if QUALITY in row and SOFT in row:
                row[SOFT_GAP] = (row[SOFT] - row[QUALITY]) / spread
    start = _baseline(rows, config)
    overlap = next((name for name in OVERLAP if name in rows[-1]), OVERLAP[0])
    pairs = [(trained, held_out) for trained in (QUALITY, FROZEN) for held_out in (JUDGE, overlap)]
    apart = [_diverged("two_scorers", *pair, rows, spread, config) for pair in pairs]
    found = [
        _not_finite(history),
        next((alarm for alarm in apart if alarm is not None), None),
        _diverged("frozen_scorer", QUALITY, FROZEN, rows, spread, config),
        _fooled(rows, config),
    ]
    if start is not None:
        found += [_moved(name, watch, rows, start, getattr(config, name)) for name, watch in WATCHES.items()]
    return [alarm for alarm in found if alarm is not None]


def _finite(history: Sequence[Values]) -> list[dict[str, float]]:
    rows = [{name: value for name, value in row.items() if math.isfinite(value)} for row in history]
    rows[0].setdefault(KL, 0.0)  # of the start model from itself
    return rows


def _baseline(rows: Sequence[dict[str, float]], config: AlarmConfig) -> int | None:
    """The evaluation that values are compared with; None as long as none could translate."""
    if CHRF not in rows[0]:
        return 0
    best = max((i for i, row in enumerate(rows) if CHRF in row), key=lambda i: rows[i][CHRF])
    if rows[best][CHRF] < config.least_chrf:
        return None
    return 0 if rows[0][CHRF] >= config.translates * rows[best][CHRF] else best


def _not_finite(history: Sequence[Values]) -> Alarm | None:
    read = {QUALITY, SOFT, FROZEN, *HELD_OUT, *(watch.name for watch in WATCHES.values())}

    def broken(row: Values) -> list[str]:
        return [name for name in row if (name in read or name.startswith(PREFIX)) and not math.isfinite(row[name])]

    last = len(history) - 1
    for place in (last, 0):  # one at the start leaves the detectors without a baseline
        if names := broken(history[place]):
            since = place
            while since > 0 and broken(history[since - 1]):
                since -= 1
            return Alarm(
                "not_finite",
                since,
                f"{', '.join(names)} is no finite number at evaluation {place} (the first such evaluation is {since}): "
                f"look at the loss and the estimator's scores there, and go back to the checkpoint before it.",
            )
    return None


def _diverged(
    detector: str, trained: str, held_out: str, rows: Sequence[Values], spread: float | None, config: AlarmConfig
) -> Alarm | None:
    """The trained score rises while another falls."""
    both = [i for i, row in enumerate(rows) if trained in row and held_out in row]
    if spread is None or not both or both[-1] != len(rows) - 1:
        return None
    best = max(both, key=lambda i: (rows[i][held_out], i))
    below = [i for i in both if i > best]
    rise = rows[-1][trained] - rows[best][trained]
    if len(below) < config.scorers_fall or rise < config.scorers_rise * spread:
        return None
    return Alarm(
        detector,
        below[0],
        f"{trained} rose by {rise:.3g} ({rise / spread:.2g} standard deviations) since evaluation "
        f"{best}, while {held_out} fell from {rows[best][held_out]:.4g} to {rows[-1][held_out]:.4g} and has been lower "
        f"for {len(below)} evaluations: take the checkpoint of evaluation {best}, and give the energy less weight.",
    )


def _fooled(rows: Sequence[Values], config: AlarmConfig) -> Alarm | None:
    """The estimator does not tell right translations from wrong ones of some kind."""
    last = len(rows) - 1
    if rows[last].get(FOOLED, 0.0) <= config.fooled:
        return None
    since = last
    while since > 0 and rows[since - 1].get(FOOLED, 0.0) > config.fooled:
        since -= 1
    kinds = {name: value for name, value in rows[last].items() if name.startswith(f"{FOOLED}/")}
    worst = max(kinds, key=lambda name: kinds[name], default=FOOLED)
    return Alarm(
        "fooled",
        since,
        f"{worst} is {rows[last][FOOLED]:.3g}: of so many sentences the estimator likes such a wrong translation as "
        f"well as the right one, beyond its bound of {config.fooled:g} since evaluation {since}; teach it with such "
        f"outputs as bad ones (`energymt data judge`), or use another.",
    )


def _moved(detector: str, watch: Watch, rows: Sequence[Values], start: int, bound: float) -> Alarm | None:
    """A value beyond its bound."""
    places = [i for i in range(start, len(rows)) if watch.name in rows[i]]
    if not places or places[-1] != len(rows) - 1:
        return None
    base = None if watch.absolute and places[0] != start else places[0]
    value_there = math.nan if base is None else rows[base][watch.name]
    worse = [i for i in places if watch.worse(rows[i][watch.name], value_there) > bound]
    if not worse or worse[-1] != places[-1]:
        return None
    since = places[-1]
    for i in reversed(places):
        if i not in worse:
            break
        since = i
    came_from = "" if base is None else f", from {value_there:.3g} at evaluation {base}"
    return Alarm(
        detector,
        since,
        f"{watch.name} is {rows[-1][watch.name]:.3g}{came_from}, and has been beyond its bound of {bound:g} "
        f"since evaluation {since}: {watch.advice}.",
    )
