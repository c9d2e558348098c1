import random
import time

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from energymt.errors import DataError
from energymt.metrics import significance, translation
from energymt.metrics.significance import compare, interval

WORDS = [f"w{i}" for i in range(30)]


def outputs(references, errors, seed):
    draw = random.Random(seed)
    return [
        " ".join(draw.choice(WORDS) if draw.random() < errors else word for word in text.split()) for text in references
    ]


@pytest.fixture(scope="module")
def references():
    draw = random.Random(0)
    return [" ".join(draw.choices(WORDS, k=draw.randint(5, 20))) for _ in range(200)]


def test_resampled_bleu_equals_scoring_the_resampled_texts(references):
    hypotheses = outputs(references, 0.3, seed=1)
    first = translation.bleu(hypotheses, references)
    nothing = translation.bleu(references, references)
    differences = significance.bootstrap_differences(first, nothing, samples=3, seed=7)
    random_indices = np.random.default_rng(7)
    for difference in differences:
        drawn = random_indices.integers(200, size=200)
        score = BLEU().corpus_score([hypotheses[i] for i in drawn], [[references[i] for i in drawn]]).score
        assert difference == pytest.approx(score - 100.0, abs=1e-9)


def test_a_clearly_better_system_is_found_better(references):
    better, worse = outputs(references, 0.2, seed=1), outputs(references, 0.35, seed=2)
    for score in (translation.bleu, translation.chrf):
        result = compare(score(better, references), score(worse, references), samples=500)
        assert result.difference == pytest.approx(result.first - result.second) and result.difference > 0
        assert 0 < result.low < result.difference < result.high
        assert result.p_bootstrap < 0.01 and result.p_randomisation < 0.01
        swapped = compare(score(worse, references), score(better, references), samples=500)
        assert swapped.difference == pytest.approx(-result.difference)
        assert (swapped.low, swapped.high) == (pytest.approx(-result.high), pytest.approx(-result.low))


def test_the_same_system_twice_is_no_difference(references):
    system = translation.bleu(outputs(references, 0.3, seed=1), references)
    result = compare(system, system, samples=200)
    assert (result.difference, result.low, result.high) == (0.0, 0.0, 0.0)
    assert result.p_bootstrap == 1.0 and result.p_randomisation == 1.0


def test_systems_of_equal_quality_are_rarely_told_apart():
    """Under the null hypothesis p is uniform: about one pair in twenty falls under 0.05."""
    draw = np.random.default_rng(3)
    small = 0
    for seed in range(100):
        first, second = (translation.mean(draw.normal(size=60).tolist()) for _ in range(2))
        result = compare(first, second, samples=200, seed=seed)
        small += result.p_randomisation < 0.05
        assert abs(result.p_bootstrap - result.p_randomisation) < 0.25
    assert 0 < small < 14


def test_the_interval_of_a_mean_is_that_of_statistics():
    values = np.random.default_rng(5).normal(10.0, 2.0, size=400)
    found = interval(translation.mean(values.tolist()), samples=2000)
    spread = 1.96 * values.std() / 20.0
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - spread, abs=0.05)
    assert found.high == pytest.approx(values.mean() + spread, abs=0.05)


def test_a_paired_test_sees_what_unpaired_intervals_hide():
    hard = np.random.default_rng(1).normal(50.0, 30.0, size=300)
    first, second = translation.mean((hard - 1.0).tolist()), translation.mean((hard + np.sin(hard)).tolist())
    assert interval(first).high > interval(second).low
    result = compare(first, second)
    assert result.high < 0 and result.p_bootstrap < 0.01


def test_repetition_is_compared_as_a_ratio_of_sums():
    first = translation.repetition([["a", "a"], ["a", "b", "c", "d"]] * 30)
    second = translation.repetition([["a", "b"], ["a", "b", "c", "d"]] * 30)
    result = compare(first, second, samples=300)
    assert result.difference == pytest.approx(1 / 6)
    assert result.low > 0 and result.p_randomisation < 0.01


def test_the_seed_decides():
    values = translation.mean(np.random.default_rng(1).normal(size=50).tolist())
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)


def test_a_thousand_samples_of_a_test_set_take_little_time(references):
    first, second = (translation.bleu(outputs(references, 0.3, seed), references) for seed in (1, 2))
    start = time.perf_counter()
    compare(first, second)
    assert time.perf_counter() - start < 5.0


def test_systems_on_different_test_sets_are_refused():
    with pytest.raises(DataError, match="one has 2 and the other 3"):
        compare(translation.mean([1.0, 2.0]), translation.mean([1.0, 2.0, 3.0]))
    with pytest.raises(DataError, match="no sentence"):
        interval(translation.mean([]))
