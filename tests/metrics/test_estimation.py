"""Agreement with judgements: scipy's numbers, intervals that cover, and differences on the same sentences."""

import json
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from energymt.errors import DataError
from energymt.metrics.estimation import CORRELATIONS, agreements, correlations, kendall, pearson, spearman

SCIPY = {"pearson": scipy.stats.pearsonr, "spearman": scipy.stats.spearmanr, "kendall": scipy.stats.kendalltau}
SOME = [0.3, -1.2, 0.9, 0.0, 2.2, 0.4]


def array(values) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def drawn(count: int, seed: int, strength: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Judgements, and scores that follow them."""
    random = np.random.default_rng(seed)
    judgements = random.normal(size=count)
    return judgements, strength * judgements + random.normal(size=count)


# -------------------------------------------------------------------------------------------------------- correlations


@pytest.mark.parametrize("name", CORRELATIONS)
@pytest.mark.parametrize("ties", [0, 1])
def test_the_numbers_are_those_of_scipy(name: str, ties: int) -> None:
    for seed in range(20):
        judgements, scores = drawn(5 + 3 * seed, seed)
        if ties:
            judgements, scores = judgements.round(), scores.round()
        assert CORRELATIONS[name](scores, judgements) == pytest.approx(SCIPY[name](scores, judgements)[0], abs=1e-12)


pairs = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=2, max_size=8)


@given(pairs)
def test_few_values_with_many_ties(values: list[tuple[int, int]]) -> None:
    scores, judgements = array(values).T
    for name, found in correlations(scores, judgements).items():
        constant = len(set(scores)) == 1 or len(set(judgements)) == 1
        wanted = 0.0 if constant else SCIPY[name](scores, judgements)[0]
        assert found == pytest.approx(wanted, abs=1e-12)
        assert CORRELATIONS[name](judgements, scores) == pytest.approx(found, abs=1e-12)
        assert CORRELATIONS[name](-scores, judgements) == pytest.approx(-found, abs=1e-12)


def test_by_hand() -> None:
    found = correlations([1, 2, 3, 4], [1, 3, 2, 40])
    assert found == pytest.approx({"pearson": 58 / (5 * 1085) ** 0.5, "spearman": 0.8, "kendall": 4 / 6})
    assert correlations([1, 1, 2], [5, 7, 7])["kendall"] == pytest.approx(1 / 2)  # τ-b: 1 / √(2 · 2)


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e-300, 1e12])
@pytest.mark.parametrize("correlation", [pearson, spearman, kendall])
def test_a_constant_says_nothing(correlation, value: float) -> None:
    """0.1 is one whose mean is another number: 0.1 + 0.1 + 0.1 > 0.3."""
    for size in (2, 3, 6):
        constant = np.full(size, value)
        assert correlation(constant, array(SOME[:size])) == 0.0
        assert correlation(array(SOME[:size]), constant) == 0.0
        assert correlation(constant, np.full(size, 0.1)) == 0.0


def test_scale_and_place_change_nothing() -> None:
    judgements, scores = drawn(50, 3)
    wanted = correlations(scores, judgements)
    assert correlations(1e-9 * scores + 4, 1e6 * judgements - 3) == pytest.approx(wanted, abs=1e-5)
    assert correlations(1e-180 * scores, judgements).keys() == wanted.keys()
    assert correlations(scores, scores) == pytest.approx(dict.fromkeys(wanted, 1.0))
    assert max(correlations(scores, 3 * scores + 1).values()) <= 1.0


def test_a_score_that_is_no_number_is_not_hidden() -> None:
    """Training stops at it."""
    found = correlations([*SOME[:5], math.nan], SOME)
    assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("scores, judgements", [([1.0], [2.0]), ([], []), ([1.0, 2.0], [1.0, 2.0, 3.0])])
def test_too_few_or_uneven_numbers_are_refused(scores: list[float], judgements: list[float]) -> None:
    parts = f"two at least: there are {len(scores)} and {len(judgements)}"
    with pytest.raises(DataError, match=parts):
        correlations(scores, judgements)
    with pytest.raises(DataError, match=parts):
        agreements({"a": scores}, judgements, samples=5)


# ----------------------------------------------------------------------------------------------------------- intervals


def test_the_whole_set_has_its_own_numbers_and_stands_in_its_interval() -> None:
    judgements, scores = drawn(200, 1)
    (found,) = agreements({"a": scores.tolist()}, judgements, samples=300)
    assert (found.name, found.sentences) == ("a", 200)
    for name, value in correlations(scores, judgements).items():
        own = found.correlations[name]
        assert own.value == value
        assert own.low < value < own.high


def test_pearson_s_interval_is_that_of_statistics() -> None:
    """Fisher's z of a normal pair has a standard error of 1/√(N − 3)."""
    judgements, scores = drawn(500, 2)
    (found,) = agreements({"a": scores.tolist()}, judgements, samples=400)
    own = found.correlations["pearson"]
    centre, spread = np.arctanh(own.value), 1.96 / np.sqrt(497)
    assert own.low == pytest.approx(np.tanh(centre - spread), abs=0.02)
    assert own.high == pytest.approx(np.tanh(centre + spread), abs=0.02)


def test_nineteen_intervals_of_twenty_cover_the_truth() -> None:
    true = {"pearson": 1 / np.sqrt(2)}  # of a judgement and itself with as much noise
    true["spearman"] = 6 / np.pi * np.arcsin(true["pearson"] / 2)
    true["kendall"] = 2 / np.pi * np.arcsin(true["pearson"])
    covered = dict.fromkeys(true, 0)
    for seed in range(30):
        judgements, scores = drawn(50, 100 + seed)
        (found,) = agreements({"a": scores.tolist()}, judgements, samples=50)
        for name, value in true.items():
            covered[name] += found.correlations[name].low <= value <= found.correlations[name].high
    assert all(25 <= count <= 30 for count in covered.values()), covered


def test_the_same_numbers_twice_give_the_same_intervals() -> None:
    judgements, scores = drawn(40, 5)
    both = [agreements({"a": scores.tolist()}, judgements, samples=50) for _ in range(2)]
    assert both[0] == both[1]
    other = agreements({"b": scores.tolist()}, judgements.tolist(), samples=50)
    assert other[0].correlations == both[0][0].correlations


# -------------------------------------------------------------------------------------------------- paired differences


def test_the_first_minus_each_other_stands_behind_them() -> None:
    judgements, scores = drawn(60, 4)
    scorers = {"good": scores.tolist(), "same": (2 * scores + 1).tolist(), "mirrored": (-scores).tolist()}
    found = agreements(scorers, judgements, samples=100)
    assert [item.name for item in found] == [*scorers, "good − same", "good − mirrored"]
    good, _, _, same, mirrored = (item.correlations for item in found)
    for name in CORRELATIONS:
        # The same order of sentences: no difference in any resample.
        assert [same[name].value, same[name].low, same[name].high] == pytest.approx([0, 0, 0], abs=1e-12)
        # r − (−r) = 2r, in every resample.
        wanted = [2 * good[name].value, 2 * good[name].low, 2 * good[name].high]
        assert [mirrored[name].value, mirrored[name].low, mirrored[name].high] == pytest.approx(wanted, abs=1e-12)
    assert len(found) == 5 and all(item.sentences == 60 for item in found)


def test_a_paired_difference_is_seen_where_the_intervals_overlap() -> None:
    """Two scorers with the same noise, one with more of it."""
    judgements, scores = drawn(400, 6, strength=0.7)
    worse = scores + 0.8 * np.random.default_rng(7).normal(size=400)
    better, other, difference = agreements({"a": scores.tolist(), "b": worse.tolist()}, judgements, samples=200)
    for name in ("pearson", "spearman"):
        assert better.correlations[name].low < other.correlations[name].high
        assert difference.correlations[name].low > 0


def test_plain_values_for_json() -> None:
    judgements, scores = drawn(20, 8)
    found = agreements({"a": scores.tolist(), "b": judgements.tolist()}, judgements, samples=20)
    plain = json.loads(json.dumps([item.to_dict() for item in found]))
    assert [item["scorer"] for item in plain] == ["a", "b", "a − b"]
    assert plain[1]["sentences"] == 20
    assert plain[1]["kendall"] == pytest.approx({"value": 1.0, "low": 1.0, "high": 1.0})
