"""The detectors of metric gaming: the value that each looks at, how it gets worse, its bound, and what to do then."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt

from energymt.configuration import Section

PREFIX = "gaming/"  # of the indicators in the values of an evaluation
QUALITY, SOFT, FROZEN, SPREAD = "dev/quality", "dev/quality_soft", "dev/quality_frozen", f"{PREFIX}quality_spread"
SOFT_GAP = f"{SOFT} minus {QUALITY} in standard deviations"
KL, CHRF = "dev/kl_to_start", "dev/chrf"
JUDGE = "dev/judge"  # of the same family, and so misled with it
OVERLAP = (CHRF, "dev/bleu")  # the first that is there
HELD_OUT = (JUDGE, *OVERLAP)
FOOLED = f"{PREFIX}fooled"


class AlarmConfig(Section):
    """When an evaluation raises an alarm; `.inf` silences a detector.

    Falls and rises are against the baseline of the run (see `alarms`). Bounds without a source are ours. Those of
    indicators were chosen on the 1,014 dev sentences of Multi30k: references with a tenth of their words dropped,
    doubled or replaced use up less than half of any of them, and each way of cheating on a tenth of the sentences
    passes one or more. A share of 0.01 is one sentence of a dev set of 100: a small one wants wider bounds.
    """

    translates: float = Field(default=0.75, ge=0, le=1)
    """A start model whose chrF is below this part of the best since could not translate yet and is no baseline."""
    least_chrf: float = Field(default=20.0, ge=0, le=100)
    """Before the chrF of any evaluation is as high as this there is no baseline: sentences of the right language that
    have nothing to do with their sources have about 16 on Multi30k."""
    scorers_rise: PositiveFloat = 0.25
    """Two scorers: rise of the trained score (of one that learns also as it was at the start) since the evaluation
    where a held-out one (the judge, or chrF) was best, in standard deviations of the sentence scores at the start; on
    1,000 sentences this is five standard errors or more."""
    scorers_fall: PositiveInt = 3
    """Two scorers: evaluations in a row in which the held-out score is below its best while the trained one rises."""
    fooled: float = Field(default=0.45, gt=0)
    """Highest share of wrong translations of one kind (`metrics.gaming`: empty, shuffled, copied, of another source)
    that the estimator likes as well as the right one; 0.5 is chance. Asked at the start, and at every evaluation of an
    estimator that learns."""
    soft_gap: PositiveFloat = 0.5
    """Highest lead of the score of soft tokens over that of the text, in standard deviations of the sentence scores."""
    kl_to_start: PositiveFloat = 1.0
    """Highest KL divergence from the start model, in nats per token."""
    entropy: float = Field(default=3.0, gt=1)
    """Highest factor by which the entropy per token may fall or rise."""
    gradient_ratio: PositiveFloat = 10.0
    """Highest ratio of the norms of the energy's and of the cross-entropy's weighted gradient."""
    gradient_cosine: PositiveFloat = 0.5
    """How far below zero the cosine of the two gradients may be."""
    length_ratio_5: PositiveFloat = 0.3
    """Highest fall below 1 of the 5 % quantile of output over reference lengths (He et al. 2024 flag outputs that are
    13 to 17 % off)."""
    length_ratio_50: PositiveFloat = 0.1
    """Farthest move of their median away from 1."""
    length_ratio_95: PositiveFloat = 0.3
    """Highest rise above 1 of their 95 % quantile."""
    empty: PositiveFloat = 0.01
    """Highest rise of the share of empty outputs."""
    short: PositiveFloat = 0.02
    """Highest rise of the share of outputs of one or two words for a longer reference."""
    at_limit: PositiveFloat = 0.02
    """Highest rise of the share of outputs as long as the decoder may make them."""
    script_share: PositiveFloat = 0.03
    """Highest fall of the share of letters in the references' scripts."""
    known_tokens: PositiveFloat = 0.05
    """Highest fall of the share of output tokens that some reference has: another language in the same script."""
    repeated: PositiveFloat = 0.03
    """Highest rise of the share of outputs that repeat an n-gram (He et al. 2024)."""
    distinct_2: PositiveFloat = 0.15
    """Highest fall below 1 of the share of distinct pairs of tokens over that of the references."""
    compression: PositiveFloat = 0.15
    """Highest rise above 1 of the compression ratio over that of the references."""
    copied_tokens: PositiveFloat = 0.03
    """Highest rise of the share of output tokens copied from the source."""
    copied_outputs: PositiveFloat = 0.01
    """Highest rise of the share of outputs that are their source."""
    duplicates: PositiveFloat = 0.03
    """Highest rise of the share of outputs said for several sources (Yan et al. 2023)."""
    wrong_numbers: PositiveFloat = 0.2
    """Highest rise of the share of outputs with wrong numbers, of those with any."""
    shuffled_gap: PositiveFloat = 0.5
    """Highest part that may be lost of the score's lead over that with shuffled sources."""


class Watch(NamedTuple):
    """What a detector looks at."""

    name: str
    """Of a value of an evaluation."""
    worse: Callable[[float, float], float]
    """Of (value, baseline): how much worse it is; above the bound this is an alarm."""
    advice: str
    """What to do."""
    absolute: bool = False
    """Whether the value itself is held against the bound, if only it is not better than the baseline; there the
    baseline may be missing (NaN)."""


def _rise(value: float, base: float) -> float:
    return value - base


def _fall(value: float, base: float) -> float:
    return base - value


def _excess(value: float, base: float) -> float:
    return max(value, 1.0) - max(base, 1.0)


def _lack(value: float, base: float) -> float:
    return min(base, 1.0) - min(value, 1.0)


def _away(value: float, base: float) -> float:
    return abs(value - 1.0) - abs(base - 1.0)


def _loss(value: float, base: float) -> float:
    return (base - value) / base if base > 0 else 0.0


def _factor(value: float, base: float) -> float:
    if base <= 0:
        return 1.0
    return max(value / base, base / value if value > 0 else math.inf)


def _high(value: float, base: float) -> float:
    return value if math.isnan(base) or value > base else -math.inf


def _low(value: float, base: float) -> float:
    return -value if math.isnan(base) or value < base else -math.inf


_SHAPE = "compare a sample of outputs with the references, and filter or penalise such outputs"
_LENGTH = f"{_SHAPE}, for the energy does not say where a translation ends"
_HOLD = "raise the weight of the cross-entropy, lower the learning rate, or take an earlier checkpoint"
_HOLE = "probe the estimator for it (`energymt probe`), and train it on such outputs as bad ones"
_LANGUAGE = "check the language of the outputs, and filter those in a wrong one"

WATCHES: dict[str, Watch] = {
    "soft_gap": Watch(SOFT_GAP, _high, "feed the energy hard tokens (ST), which the estimator knows", absolute=True),
    "kl_to_start": Watch(KL, _rise, _HOLD),
    "entropy": Watch("dev/entropy", _factor, _HOLD),
    "gradient_ratio": Watch("train/gradient_ratio", _high, "lower the energy's weight", absolute=True),
    "gradient_cosine": Watch("train/gradient_cosine", _low, "lower the energy's weight or project it", absolute=True),
    "length_ratio_5": Watch(f"{PREFIX}length_ratio_5", _lack, _LENGTH),
    "length_ratio_50": Watch(f"{PREFIX}length_ratio_50", _away, _LENGTH),
    "length_ratio_95": Watch(f"{PREFIX}length_ratio_95", _excess, _LENGTH),
    "empty": Watch(f"{PREFIX}empty", _rise, _HOLE),
    "short": Watch(f"{PREFIX}short", _rise, _HOLE),
    "at_limit": Watch(f"{PREFIX}at_limit", _rise, _LENGTH),
    "script_share": Watch(f"{PREFIX}script_share", _fall, _LANGUAGE),
    "known_tokens": Watch(f"{PREFIX}known_tokens", _fall, _LANGUAGE),
    "repeated": Watch(f"{PREFIX}repeated", _rise, _HOLE),
    "distinct_2": Watch(f"{PREFIX}distinct_2", _lack, _SHAPE),
    "compression": Watch(f"{PREFIX}compression", _excess, _SHAPE),
    "copied_tokens": Watch(f"{PREFIX}copied_tokens", _rise, _HOLE),
    "copied_outputs": Watch(f"{PREFIX}copied_outputs", _rise, _HOLE),
    "duplicates": Watch(f"{PREFIX}duplicates", _rise, _HOLE),
    "wrong_numbers": Watch(f"{PREFIX}wrong_numbers", _rise, _HOLE),
    "shuffled_gap": Watch(f"{PREFIX}shuffled_gap", _loss, "probe the estimator, which looks at the source no more"),
}
