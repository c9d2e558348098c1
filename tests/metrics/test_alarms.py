"""Alarms of gaming: each cheat sets off its own detector, from the evaluation where it began; an honest run none."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from energymt.metrics.alarms import PREFIX, AlarmConfig, alarms
from energymt.metrics.detectors import HELD_OUT, WATCHES
from energymt.metrics.indicators import indicators
from energymt.metrics.translation import chrf

CONFIG = AlarmConfig()
START = {
    "dev/quality": 0.70,
    "dev/quality_soft": 0.68,
    "dev/quality_frozen": 0.70,
    "dev/judge": -4.0,
    "dev/chrf": 55.0,
    "dev/bleu": 30.0,
    "dev/entropy": 1.5,
    "dev/kl_to_start": 0.0,
    "gaming/quality_spread": 0.1,
    "gaming/shuffled_gap": 1.8,
    "gaming/length_ratio_5": 0.75,
    "gaming/length_ratio_50": 1.0,
    "gaming/length_ratio_95": 1.3,
    "gaming/empty": 0.0,
    "gaming/short": 0.0,
    "gaming/at_limit": 0.0,
    "gaming/known_tokens": 0.93,
    "gaming/script_share": 1.0,
    "gaming/repeated": 0.01,
    "gaming/distinct_2": 0.9,
    "gaming/compression": 1.05,
    "gaming/copied_tokens": 0.01,
    "gaming/copied_outputs": 0.0,
    "gaming/duplicates": 0.005,
    "gaming/wrong_numbers": 0.1,
}
TRAINED = {**START, "train/gradient_ratio": 0.8, "train/gradient_cosine": 0.05, "dev/kl_to_start": 0.1}
# What each detector must see, beside a value that it must not mind.
CHEATS = {
    "soft_gap": ("dev/quality_soft", 0.76, 0.74),
    "kl_to_start": ("dev/kl_to_start", 1.1, 0.9),
    "entropy": ("dev/entropy", 0.4, 0.6),
    "gradient_ratio": ("train/gradient_ratio", 11.0, 9.0),
    "gradient_cosine": ("train/gradient_cosine", -0.6, -0.4),
    "length_ratio_5": ("gaming/length_ratio_5", 0.4, 0.5),
    "length_ratio_50": ("gaming/length_ratio_50", 0.88, 0.92),
    "length_ratio_95": ("gaming/length_ratio_95", 1.7, 1.5),
    "empty": ("gaming/empty", 0.015, 0.005),
    "short": ("gaming/short", 0.03, 0.01),
    "at_limit": ("gaming/at_limit", 0.03, 0.01),
    "known_tokens": ("gaming/known_tokens", 0.87, 0.89),
    "script_share": ("gaming/script_share", 0.96, 0.98),
    "repeated": ("gaming/repeated", 0.05, 0.03),
    "distinct_2": ("gaming/distinct_2", 0.74, 0.76),
    "compression": ("gaming/compression", 1.25, 1.15),
    "copied_tokens": ("gaming/copied_tokens", 0.05, 0.03),
    "copied_outputs": ("gaming/copied_outputs", 0.02, 0.005),
    "duplicates": ("gaming/duplicates", 0.04, 0.03),
    "wrong_numbers": ("gaming/wrong_numbers", 0.35, 0.25),
    "shuffled_gap": ("gaming/shuffled_gap", 0.8, 1.0),
}


def raised(history, config=CONFIG) -> list[str]:
    return [alarm.detector for alarm in alarms(history, config)]


def run(name: str, values, **more) -> list[dict[str, float]]:
    """A start, then an evaluation for each value."""
    return [START, *({**TRAINED, name: value, **more} for value in values)]


# ------------------------------------------------------------------------------------------------------------ one value


def test_every_detector_is_tried():
    assert set(CHEATS) == set(WATCHES) <= set(AlarmConfig.model_fields)


@pytest.mark.parametrize("detector", CHEATS)
def test_a_cheat_sets_off_its_detector_and_no_other(detector):
    name, bad, good = CHEATS[detector]
    assert raised(run(name, [good])) == []
    assert raised(run(name, [good, bad])) == [detector]
    assert raised(run(name, [bad, good])) == [], "it is over"
    [alarm] = alarms(run(name, [good, bad, good, bad, bad]), CONFIG)
    assert alarm.since == 4 and "since evaluation 4" in alarm.sentence and name in alarm.sentence
    assert f"{bad:.3g}" in alarm.sentence or detector == "soft_gap"  # which is a difference
    assert re.fullmatch(r"[^:]+: [^.].+[^.]\.", alarm.sentence), "what: what to do."
    silent = CONFIG.model_copy(update={detector: math.inf})
    assert raised(run(name, [bad]), silent) == []


@pytest.mark.parametrize("detector", CHEATS)
def test_what_the_start_already_does_is_no_cheat(detector):
    """A bad start that stays as it is, or gets better."""
    name, bad, good = CHEATS[detector]
    start = {**TRAINED, name: bad}
    history = [start, start, {**TRAINED, name: good}]
    assert not any(raised(history[: i + 1]) for i in range(len(history)))


@pytest.mark.parametrize("value", [5.0, 0.0])
def test_entropy_may_neither_collapse_nor_dissolve(value):
    assert raised(run("dev/entropy", [value])) == ["entropy"]


def test_a_better_chrf_does_not_excuse_what_the_start_did_not_do():
    assert raised(run("gaming/empty", [0.015], **{"dev/chrf": 60.0})) == ["empty"]


def test_lengths_that_come_back_to_one_are_welcome():
    start = {**START, "gaming/length_ratio_5": 1.3, "gaming/length_ratio_50": 1.6, "gaming/length_ratio_95": 2.4}
    garbage = {**start, "gaming/distinct_2": 1.4, "gaming/compression": 0.7}
    assert raised([garbage, TRAINED]) == []


def test_what_is_absent_is_not_judged():
    assert alarms([], CONFIG) == []
    assert raised([{}]) == raised([{}, {}]) == raised([START, {}]) == raised([START]) == []
    assert raised([{"dev/chrf": 50.0}, {"gaming/empty": 0.5}]) == [], "without a baseline"
    assert raised([{}, {"gaming/empty": 0.0}, {}, {"gaming/empty": 0.5}]) == ["empty"], "the first there is"
    assert raised([{}, {"dev/kl_to_start": 2.0}]) == ["kl_to_start"], "the start is no distance from itself"
    assert raised([{}, {"train/gradient_ratio": 20.0}]) == ["gradient_ratio"], "the start has no gradients"


@pytest.mark.parametrize("name", [*START, "train/gradient_ratio", "train/gradient_cosine", "gaming/of_mine"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_an_alarm(name, value):
    broken = {**TRAINED, name: value}
    [alarm] = alarms([START, TRAINED, broken, broken], CONFIG)
    assert alarm.detector == "not_finite" and alarm.since == 2 and name in alarm.sentence
    assert raised([START, broken, TRAINED]) == []
    assert raised([{**START, name: value}, TRAINED]) == ["not_finite"], "nothing to compare with"
    assert raised([START, {**TRAINED, "train/loss": math.nan}]) == [], "the loop's own business"


# ---------------------------------------------------------------------------------------------------------- two scorers


def scorers(quality, held_out, name="dev/chrf", **more) -> list[dict[str, float]]:
    rows = [{"dev/quality": q, name: h, **more} for q, h in zip(quality, held_out, strict=True)]
    rows[0]["gaming/quality_spread"] = 0.1
    return rows


@pytest.mark.parametrize("name", [*HELD_OUT, "dev/quality_frozen"])
def test_a_trained_score_that_leaves_the_others_behind(name):
    detector = "frozen_scorer" if name == "dev/quality_frozen" else "two_scorers"
    history = scorers([0.7, 0.71, 0.72, 0.73, 0.75], [50, 51, 50.5, 50, 49], name)
    [alarm] = alarms(history, CONFIG)
    assert alarm.detector == detector and alarm.since == 2
    assert "since evaluation 1" in alarm.sentence and "51 to 49" in alarm.sentence and "0.04" in alarm.sentence
    assert raised(history[:-1]) == [], "two evaluations are not three"
    assert raised(history, CONFIG.model_copy(update={"scorers_fall": 4})) == []
    assert raised(history, CONFIG.model_copy(update={"scorers_rise": 0.45})) == [], "0.4 standard deviations"


def test_a_fall_in_one_step_is_a_fall():
    assert raised(scorers([0.7, 0.8, 0.8, 0.8], [50, 44, 44.2, 44.1])) == ["two_scorers"]


def test_every_other_scorer_counts():
    """A judge that learnt what the trained one learnt is misled with it; references are not."""
    better, worse = [50, 51, 52, 53], [50, 49, 48, 47]
    for judge, overlap, falls in ((better, better, None), (better, worse, "dev/chrf"), (worse, better, "dev/judge")):
        history = scorers([0.7, 0.8, 0.9, 1.0], judge, "dev/judge")
        found = alarms([{**row, "dev/chrf": v} for row, v in zip(history, overlap, strict=True)], CONFIG)
        assert [alarm.detector for alarm in found] == ([] if falls is None else ["two_scorers"])
        assert falls is None or f"while {falls} fell" in found[0].sentence


def test_an_estimator_that_learns_is_also_watched_as_it_was():
    """Its own scores may go anywhere; the translator may still cheat what it was taught by at first."""
    history = scorers([0.4, -1.0, -3.0, -4.7], [50, 49, 48, 47])
    assert raised(history) == []
    frozen = [{**row, "dev/quality_frozen": value} for row, value in zip(history, [0.4, 0.5, 0.6, 0.7], strict=True)]
    [alarm] = alarms(frozen, CONFIG)
    assert alarm.detector == "two_scorers" and alarm.sentence.startswith("dev/quality_frozen rose by 0.3")


def test_an_estimator_that_cannot_tell_right_from_wrong():
    sound = {**START, "gaming/fooled": 0.3, "gaming/fooled/empty": 0.1, "gaming/fooled/said_twice": 0.3}
    holed = {**sound, "gaming/fooled": 0.6, "gaming/fooled/empty": 0.6}
    assert raised([sound]) == []
    [alarm] = alarms([holed], CONFIG)
    assert alarm.detector == "fooled" and alarm.since == 0 and alarm.sentence.startswith("gaming/fooled/empty is 0.6")
    assert [alarm.since for alarm in alarms([sound, holed, holed], CONFIG)] == [1]
    assert raised([holed, sound]) == []
    assert raised([holed], CONFIG.model_copy(update={"fooled": 0.7})) == []


def test_neither_overfitting_nor_a_plateau_is_gaming():
    assert raised(scorers([0.7, 0.8, 0.79, 0.78, 0.77], [50, 55, 54, 53, 52])) == [], "both fall"
    quality = [0.5, 0.7, 0.8] + [0.8 + 0.002 * (-1) ** i for i in range(20)]
    overlap = [20, 50, 56] + [55.8 + 0.3 * math.sin(7 * i) for i in range(20)]
    history = scorers(quality, overlap)
    assert not any(raised(history[: i + 1]) for i in range(len(history)))
    assert raised([{**row, "gaming/quality_spread": 0.0} for row in scorers([0, 1, 2, 3], [9, 8, 7, 6])]) == []


# ----------------------------------------------------------------------------------------------------------- whole runs


def test_a_run_from_random_weights_learns_in_peace():
    """Its outputs change in every way, from loops at the limit over nothing at all to sentences."""
    loops = {**START, "dev/chrf": 4.0, "gaming/at_limit": 1.0, "gaming/length_ratio_5": 3.0, "dev/entropy": 8.0}
    nothing = {**TRAINED, "dev/chrf": 1.0, "gaming/empty": 1.0, "gaming/length_ratio_5": 0.0, "dev/kl_to_start": 7.0}
    poor = {**TRAINED, "dev/chrf": 25.0, "gaming/repeated": 0.3, "gaming/duplicates": 0.2, "dev/kl_to_start": 6.0}
    good = {**TRAINED, "dev/chrf": 60.0, "dev/kl_to_start": 6.5}
    history = [loops, nothing, poor, good, {**good, "dev/chrf": 59.5}]
    assert not any(raised(history[: i + 1]) for i in range(len(history)))
    cheats = {**good, "dev/chrf": 58.0, "gaming/empty": 0.05}
    [alarm] = alarms([*history, cheats], CONFIG)
    assert alarm.detector == "empty" and "evaluation 3" in alarm.sentence


BETTER = {
    **dict.fromkeys(("dev/quality", "dev/quality_frozen", "dev/judge", "dev/chrf", "dev/bleu"), 1),
    **dict.fromkeys(("gaming/shuffled_gap", "gaming/known_tokens", "gaming/script_share", "train/gradient_cosine"), 1),
    **dict.fromkeys(("gaming/empty", "gaming/short", "gaming/at_limit", "gaming/repeated", "gaming/duplicates"), -1),
    **dict.fromkeys(("gaming/copied_tokens", "gaming/copied_outputs", "gaming/wrong_numbers"), -1),
    **dict.fromkeys(("train/gradient_ratio", "dev/quality_soft"), -1),
}
TO_ONE = [name for name in START if "length" in name or name in ("gaming/distinct_2", "gaming/compression")]


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_no_history_that_only_gets_better_raises_an_alarm(data):
    length = data.draw(st.integers(1, 6))
    rows = [{"gaming/quality_spread": 0.1} for _ in range(length)]
    value = st.floats(0, 3)
    for name, sign in BETTER.items():
        drawn = sorted(data.draw(st.lists(value, min_size=length, max_size=length)), key=lambda x: sign * x)
        for row, number in zip(rows, drawn, strict=True):
            row[name] = 30 * number if name == "dev/chrf" else number
    for name in TO_ONE:
        side = data.draw(st.sampled_from([-1, 1]))
        drawn = sorted(data.draw(st.lists(st.floats(0, 1), min_size=length, max_size=length)), reverse=True)
        for row, number in zip(rows, drawn, strict=True):
            row[name] = 1 + side * number
    for end in range(1, length + 1):
        assert raised(rows[:end]) == []


NUMBER = st.none() | st.floats() | st.sampled_from([0.0, 1.0, 50.0])
ROW = st.fixed_dictionaries({name: NUMBER for name in TRAINED})


@settings(deadline=None, max_examples=100)
@given(st.lists(ROW, max_size=5), st.booleans())
def test_no_history_is_too_strange(drawn, fill):
    history = [{name: value for name, value in row.items() if value is not None} for row in drawn]
    if fill:
        history = [START, *history]
    found = alarms(history, CONFIG)
    assert all(0 <= alarm.since < len(history) and alarm.sentence.endswith(".") for alarm in found)
    assert len({alarm.detector for alarm in found}) == len(found)
    bad = [name for row in history[:1] + history[-1:] for name, value in row.items() if not math.isfinite(value)]
    assert bool(bad) == ("not_finite" in {alarm.detector for alarm in found})


SUBJECTS = ["A dog", "Two men", "The old woman", "A child", "Three girls", "The cook", "My neighbour", "A nurse"]
DOINGS = ["runs along the beach", "waits for the bus", "reads a long book", "eats soup in the kitchen", "sings loudly"]
PLACES = ["in the rain", "near the old bridge", "after a hard day"]
SOURCES = {"A dog": "Ein Hund", "Two men": "Zwei Männer", "The old woman": "Die alte Frau", "A child": "Ein Kind"}


def evaluation(outputs, sources, references) -> dict[str, float]:
    found = {f"{PREFIX}{name}": value for name, value in indicators(sources, outputs, references).items()}
    return {**found, "dev/chrf": chrf(outputs, references).total()}


def test_sentences_that_cheat_and_sentences_that_do_not():
    references = [f"{who} {does} {where} ." for who in SUBJECTS for does in DOINGS for where in PLACES]
    sources = [
        f"{SOURCES.get(text[:5].strip(), 'Jemand')} tut etwas , Nummer {i} ." for i, text in enumerate(references)
    ]
    start = [text.replace("old ", "").replace("long ", "thick ") for text in references]
    history = [evaluation(start, sources, references), evaluation(references, sources, references)]
    assert raised(history) == []

    def cheat(change) -> list[str]:
        outputs = [change(i, text) if i % 5 == 0 else text for i, text in enumerate(references)]
        return raised([*history, evaluation(outputs, sources, references)])

    assert {"copied_tokens", "copied_outputs", "known_tokens"} <= set(cheat(lambda i, text: sources[i]))
    assert {"empty", "length_ratio_5"} <= set(cheat(lambda i, text: ""))
    assert {"short", "duplicates"} <= set(cheat(lambda i, text: text.split()[0]))
    assert {"repeated", "length_ratio_95"} <= set(cheat(lambda i, text: text.replace(" .", " very very very very .")))
    assert "script_share" in cheat(lambda i, text: "Мужчина ждёт автобус под дождём .")
    assert "duplicates" in cheat(lambda i, text: "A man waits for the bus in the rain .")


# ------------------------------------------------------------------------------------------------------------- settings


def test_thresholds_are_checked():
    for wrong in ({"empty": -0.1}, {"entropy": 1.0}, {"translates": 2.0}, {"scorers_fall": 0}, {"nonsense": 1}):
        with pytest.raises(ValidationError):
            AlarmConfig(**wrong)
    assert all(field.description for field in AlarmConfig.model_fields.values())
