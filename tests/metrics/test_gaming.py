"""Probes of an estimator: one that knows the right translation, one that counts letters, one that is blind to the
source; and what every probe makes of a sentence.
"""

import math
from itertools import pairwise

import numpy as np
import pytest

from energymt.metrics.gaming import PROBES, ProbeResult, run_probes

SOURCES = [
    "ein Hund läuft über 2 Wiesen .",
    "drei Kinder spielen im Garten .",
    "eine Frau liest 14 Bücher .",
    "vier Männer schlafen lange",
    "das Pferd frisst Gras .",
    "Regen fällt auf 3 Dächer .",
]
GOLDS = [
    "a dog runs over 2 meadows .",
    "three children play in the garden .",
    "a woman reads 14 books .",
    "four men sleep long",
    "the horse eats grass .",
    "rain falls on 3 roofs .",
]
FRENCH = [f"{text} bien sûr" for text in SOURCES]


def bigrams(text: str) -> set[tuple[str, str]]:
    words = ["", *text.split(), ""]
    return set(pairwise(words))


def overlap(text: str, other: str) -> float:
    """The share of pairs of neighbouring words that both have."""
    one, two = bigrams(text), bigrams(other)
    return len(one & two) / len(one | two)


def oracle(sources, translations) -> list[float]:
    """Knows the right translation of every source; the more letters it sees the surer it is."""
    right = dict(zip(SOURCES, GOLDS, strict=True))
    return [
        overlap(text, right[source]) + 1e-3 * len(right[source])
        for source, text in zip(sources, translations, strict=True)
    ]


def letters(sources, translations) -> list[float]:
    """The longer the better."""
    return [float(len(text)) for text in translations]


def fluent(sources, translations) -> list[float]:
    """A model of the target language, blind to the source: the pairs of words that it knows, less those that it does
    not, and what is said twice is said once too often.
    """
    known = set().union(*map(bigrams, GOLDS))
    return [
        sum(1.0 if pair in known else -1.0 for pair in bigrams(text)) / len(bigrams(text)) - 0.01 * len(text.split())
        for text in translations
    ]


def probed(score, **options) -> dict[str, ProbeResult]:
    return {item.name: item for item in run_probes(score, SOURCES, GOLDS, **options)}


def wins(score, **options) -> dict[str, float]:
    return {name: item.wins.value for name, item in probed(score, **options).items()}


# -------------------------------------------------------------------------------------------------------- three scorers


def test_who_knows_the_right_translation_is_not_cheated() -> None:
    found = probed(oracle, wrong_language=FRENCH)
    assert list(found) == [*PROBES, "wrong language"]
    for item in found.values():
        assert (item.wins.value, item.wins.low, item.wins.high) == (1.0, 1.0, 1.0), item.name
        assert item.margin > 1


def test_who_counts_letters_is_cheated_by_what_is_long() -> None:
    found = wins(letters, wrong_language=FRENCH)
    assert found["empty"] == found["second half left out"] == 1.0
    assert found["words shuffled"] == found["numbers changed"] == 0.0  # of the same length: a tie is no win
    assert found["said twice"] == found["wrong language"] == 0.0
    assert 0.0 < found["translation of another source"] < 1.0
    margins = {name: item.margin for name, item in probed(letters).items()}
    assert margins["words shuffled"] == 0.0 and margins["said twice"] < 0 < margins["empty"]


def test_who_does_not_read_the_source_is_cheated_by_a_translation_of_another() -> None:
    found = wins(fluent, wrong_language=FRENCH)
    assert 0.0 < found["translation of another source"] < 1.0  # chance
    for name in ("empty", "words shuffled", "source copied", "said twice", "wrong language"):
        assert found[name] == 1.0, name


def test_the_margin_is_in_standard_deviations_of_the_right_ones() -> None:
    lengths = np.array([len(text) for text in GOLDS])
    assert probed(letters)["empty"].margin == pytest.approx(lengths.mean() / lengths.std())
    assert probed(lambda *sides: [1e6 * value for value in letters(*sides)])["empty"].margin == pytest.approx(
        lengths.mean() / lengths.std()
    )


def test_there_is_no_margin_where_all_right_ones_score_the_same() -> None:
    found = probed(lambda sources, texts: [1.0 if text in GOLDS else 0.0 for text in texts])
    assert {item.margin for item in found.values()} == {None}
    assert found["empty"].wins.value == 1.0 and found["translation of another source"].wins.value == 0.0
    assert found["empty"].to_dict() == {
        "probe": "empty",
        "sentences": 6,
        "wins": {"value": 1.0, "low": 1.0, "high": 1.0},
        "margin": None,
    }


# ----------------------------------------------------------------------------------------------------------- the probes


@pytest.fixture
def asked() -> dict[str, list[tuple[str, str]]]:
    """What is asked about the sentences above: source and translation, by the probe."""
    calls: list[list[tuple[str, str]]] = []

    def score(sources, translations) -> list[float]:
        calls.append(list(zip(sources, translations, strict=True)))
        return [0.0] * len(translations)

    found = run_probes(score, SOURCES, GOLDS, FRENCH)
    assert calls[0] == list(zip(SOURCES, GOLDS, strict=True))
    return dict(zip([item.name for item in found], calls[1:], strict=True))


def test_every_probe_stands_with_its_source_and_is_wrong(asked) -> None:
    right = dict(zip(SOURCES, GOLDS, strict=True))
    for name, pairs in asked.items():
        assert [source for source, _ in pairs] == [source for source in SOURCES if source in dict(pairs)]
        assert all(text != right[source] for source, text in pairs), name
        assert len(pairs) == (3 if name == "numbers changed" else 6), name


def test_what_a_probe_makes_of_a_translation(asked) -> None:
    right = dict(zip(SOURCES, GOLDS, strict=True))
    for source, text in asked["words shuffled"]:
        assert sorted(text.split()) == sorted(right[source].split())
    for source, text in asked["second half left out"]:
        words = right[source].split()
        assert text.split() == words[: len(words) // 2]
    for source, text in asked["translation of another source"]:
        assert text in GOLDS and text != right[source]
    for source, text in asked["numbers changed"]:
        assert len(text) == len(right[source])
        differing = [(new, old) for new, old in zip(text, right[source], strict=True) if new != old]
        assert differing and all(new.isdecimal() and old.isdecimal() for new, old in differing)
        assert len(differing) == sum(letter.isdecimal() for letter in right[source])
    assert {text for _, text in asked["empty"]} == {""}
    assert asked["source copied"] == list(zip(SOURCES, SOURCES, strict=True))
    assert asked["said twice"] == [(source, f"{gold} {gold}") for source, gold in zip(SOURCES, GOLDS, strict=True)]
    assert asked["wrong language"] == list(zip(SOURCES, FRENCH, strict=True))


def test_only_sentences_that_a_probe_makes_wrong_are_counted() -> None:
    """One word is not shuffled, another has no number, a name is its own translation, and two spaces are one."""
    sources, golds = ["Anna", "Otto  7", "ja"], ["Anna", "Otto  7", "yes"]
    found = {item.name: item.sentences for item in run_probes(letters, sources, golds, ["Anna", "Otto 7", "oui"])}
    assert found["empty"] == found["said twice"] == found["second half left out"] == 3
    assert found["source copied"] == found["wrong language"] == found["numbers changed"] == 1
    assert found.get("words shuffled", 0) <= 1
    alone = [item.name for item in run_probes(letters, ["ja"], ["yes"])]
    assert alone == ["empty", "second half left out", "source copied", "said twice"]


def test_the_seed_decides_what_is_shuffled() -> None:
    def texts(seed: int) -> list[str]:
        seen: list[str] = []
        run_probes(lambda _, texts: seen.extend(texts) or [0.0] * len(texts), SOURCES, GOLDS, seed=seed)
        return seen

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


def test_another_translation_is_any_of_the_others() -> None:
    random = [np.random.default_rng(seed) for seed in range(300)]
    drawn = [PROBES["translation of another source"](2, SOURCES, GOLDS, one) for one in random]
    counts = [drawn.count(text) for text in GOLDS]
    assert counts[2] == 0
    assert all(abs(count - 60) < 5 * math.sqrt(60) for row, count in enumerate(counts) if row != 2)


def test_the_interval_narrows_with_the_sentences() -> None:
    def half(sources, translations) -> list[float]:
        """Finds every other empty translation worse."""
        return [
            1.0 if text else (0.0 if int(source) % 2 else 2.0)
            for source, text in zip(sources, translations, strict=True)
        ]

    widths = []
    for count in (40, 1000):
        sources = [str(number) for number in range(count)]
        (found,) = [item for item in run_probes(half, sources, sources) if item.name == "empty"]
        assert found.wins.low < found.wins.value == 0.5 < found.wins.high
        widths.append(found.wins.high - found.wins.low)
    assert widths[0] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(40), abs=0.06)
    assert widths[1] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(1000), abs=0.02)
