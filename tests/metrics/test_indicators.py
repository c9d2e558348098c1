"""Indicators of gaming: outputs that cheat in one way move its indicator, honest ones none, and no text breaks one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energymt.metrics.indicators import indicators

SOURCES = [
    "Ein kleiner Hund rennt am Strand entlang .",
    "Drei Kinder bauen im Garten ein Haus aus Holz .",
    "Die alte Frau liest ihrem Enkel ein Buch vor .",
    "Zwei Männer warten im Regen auf den Bus .",
    "Der Koch schneidet Zwiebeln in einer großen Küche .",
    "Ein Mädchen malt mit Kreide auf die Straße .",
    "Am Abend spielt die Kapelle auf dem Marktplatz .",
    "Der Läufer mit der Nummer 17 führt seit 20 Minuten .",
]
REFERENCES = [
    "A small dog runs along the beach .",
    "Three children build a wooden house in the garden .",
    "The old woman reads a book to her grandson .",
    "Two men wait for the bus in the rain .",
    "The cook chops onions in a large kitchen .",
    "A girl draws with chalk on the street .",
    "In the evening the band plays on the market square .",
    "The runner with number 17 has led for 20 minutes .",
]
HONEST = [
    "A little dog runs along the beach .",
    "Three children build a house of wood in the garden .",
    "The old woman reads her grandson a book .",
    "Two men wait in the rain for the bus .",
    "The cook chops onions in a large kitchen .",
    "A girl draws on the street with chalk .",
    "In the evening the band plays on the square .",
    "The runner with number 17 leads for 20 minutes .",
]
FRENCH = [
    "Un petit chien court le long de la plage .",
    "Trois enfants construisent une maison en bois dans le jardin .",
    "La vieille dame lit un livre à son petit-fils .",
    "Deux hommes attendent le bus sous la pluie .",
    "Le cuisinier coupe des oignons dans une grande cuisine .",
    "Une fille dessine à la craie dans la rue .",
    "Le soir , la fanfare joue sur la place du marché .",
    "Le coureur numéro 17 mène depuis 20 minutes .",
]
SHARES = (
    *("empty", "short", "at_limit", "known_tokens", "script_share", "repeated"),
    *("copied_tokens", "copied_outputs", "duplicates", "wrong_numbers"),
)


def of(translations, **more) -> dict[str, float]:
    return indicators(SOURCES, translations, REFERENCES, **more)


def with_first(text: str) -> dict[str, float]:
    """One output of eight is this."""
    return of([text, *HONEST[1:]])


def test_honest_outputs_move_nothing():
    found = of(HONEST)
    for name in ("empty", "short", "repeated", "copied_outputs", "copied_tokens", "duplicates"):
        assert found[name] == 0.0
    assert found["script_share"] == 1.0
    assert found["known_tokens"] > 0.9
    assert found["length_ratio_5"] > 0.8 and found["length_ratio_95"] < 1.2
    assert found["length_ratio_50"] == pytest.approx(1.0, abs=0.05)
    assert found["distinct_2"] == pytest.approx(1.0, abs=0.1) and found["compression"] == pytest.approx(1.0, abs=0.1)
    assert not {"at_limit", "quality_spread", "shuffled_gap"} & set(found), "nobody gave lengths or scores"


def test_references_are_like_themselves():
    found = of(REFERENCES)
    assert [found[f"length_ratio_{q}"] for q in (5, 50, 95)] == [1.0, 1.0, 1.0]
    assert found["distinct_2"] == found["compression"] == found["known_tokens"] == found["script_share"] == 1.0


def test_lengths():
    assert of([" ".join(text.split()[:3]) for text in REFERENCES])["length_ratio_50"] < 0.4
    assert of([f"{text} {text}" for text in REFERENCES])["length_ratio_5"] == pytest.approx(2.0)
    assert with_first(" \t")["empty"] == with_first("Small dog .")["short"] == with_first("")["short"] == 1 / 8
    assert with_first("Small dog runs")["short"] == 0.0, "three words"
    assert indicators(["Hallo"], ["Hello ."], ["Hello !"])["short"] == 0.0, "its reference is no longer"
    assert indicators(["a"], ["b"], [""]) == indicators(["a"], ["b"], [" "]), "nothing is divided by nothing"
    assert "length_ratio_50" not in indicators(["a"], ["b"], [""])


def test_outputs_at_the_limit():
    ids = [[1] * 10, [1] * 9, *([1, 2, 3] for _ in SOURCES[2:])]
    assert of(HONEST, token_ids=ids, max_lengths=[10] * 8)["at_limit"] == 1 / 8
    assert of(HONEST, token_ids=ids, max_lengths=[11] * 8)["at_limit"] == 0.0


@pytest.mark.parametrize(
    "reference, same, foreign",
    [
        ("the red cat sleeps", "ÀÉ ﬁrm ª Ａ", "кот спит"),
        ("рыжий кот спит", "пёс ест", "the cat"),
        ("लाल बिल्ली सो रही है", "कुत्ता खाता है", "the cat"),
        ("红色的猫在睡觉", "狗在吃饭㐀", "the cat"),
        ("赤い猫が寝ている", "赤い猫が寝ている", "кот спит"),
    ],
)
def test_scripts(reference, same, foreign):
    def share(text: str) -> float:
        return indicators(["x"], [text], [reference])["script_share"]

    assert share(same) == 1.0 == share(f"{same} 3 , !")
    assert share(foreign) == 0.0


def test_a_rare_script_of_the_references_is_no_licence():
    """Chinese text names people in Latin letters; English is still another language."""
    references = ["他在北京工作了很多年现在住在上海", "Tom 喜欢猫"]
    assert indicators(["a", "b"], ["He worked there for years", "Tom likes cats"], references)["script_share"] < 0.2
    mixed = ["a ккк ккк 猫猫猫 ककक"]
    assert indicators(["x"], mixed, mixed)["script_share"] == 1.0, "not above it by a rounding"
    assert "script_share" not in indicators(["a"], ["12 !"], ["b"]), "no letter, no script"


def test_another_language_of_the_same_script_has_other_words():
    assert of(FRENCH)["script_share"] > 0.99
    assert of(FRENCH)["known_tokens"] < 0.3 < 0.9 < of(HONEST)["known_tokens"]


def test_repetition_is_against_the_source():
    assert with_first("A dog and a dog and a dog and a dog runs .")["repeated"] == 1 / 8
    assert with_first("no no no runs .")["repeated"] == 0.0, "three times are no more than three"
    assert with_first("no no no no runs .")["repeated"] == 1 / 8
    said = "nein nein ja nein nein ja"
    assert indicators([said], ["no no yes no no yes"], [said])["repeated"] == 0.0, "so does the source"
    assert indicators([""], ["no no no"], [said])["repeated"] == 0.0
    assert [indicators([text], ["no no no no"], [said])["repeated"] for text in ("ja ja", "ja")] == [0.0, 1.0]
    pairs = ["a b a c a d a e", "a b c a b d a b e a b", "b a c a d a e a"]
    assert [indicators([pairs[0]], [text], ["x"])["repeated"] for text in pairs] == [0.0, 1.0, 0.0], "pairs count alone"
    assert indicators(["一只狗"], ["狗狗狗狗"], ["a dog"])["repeated"] == 1.0, "ideographs are tokens"


def test_variety_is_relative_to_the_references():
    one = of(["A man in a shirt is standing on the street ."] * 8)
    assert one["distinct_2"] < 0.3 and one["compression"] > 1.5
    assert one["duplicates"] == 1.0


def test_duplicates_need_different_sources():
    assert of([*HONEST[:6], "The same .", "The  same ."])["duplicates"] == 2 / 8
    assert indicators(["a", "a"], ["b", "b"], ["b", "b"])["duplicates"] == 0.0


def test_copies():
    copied = of([*SOURCES[:2], *HONEST[2:]])
    assert copied["copied_outputs"] == 2 / 8
    assert copied["copied_tokens"] == pytest.approx((7 + 9) / (8 + 10 + sum(len(text.split()) for text in HONEST[2:])))
    assert with_first(f"The dog {' '.join(SOURCES[0].split()[4:])}")["copied_tokens"] > 0.03, "half a copy"
    names = ["Anna Maria Berger", "Berlin"]
    kept = indicators(names, names, names)
    assert kept["copied_outputs"] == kept["copied_tokens"] == 0.0, "so does the reference"


def test_numbers_are_those_of_source_or_reference():
    sources = [f"Im Jahr {1900 + i} kamen {i} Gäste" for i in range(20)]
    right = [f"In {1900 + i} there came {i} guests" for i in range(20)]
    wrong = [right[0].replace("1900", "1901"), right[1].replace("1 g", "one g"), f"{right[2]} 7", *right[3:]]
    assert indicators(sources, right, right)["wrong_numbers"] == 0.0
    assert indicators(sources, wrong, right)["wrong_numbers"] == 3 / 20
    assert indicators(sources, wrong, wrong)["wrong_numbers"] == 0.0, "so do the references"
    assert indicators(sources, [text.replace("19", "१९") for text in right], right)["wrong_numbers"] == 0.0
    assert "wrong_numbers" not in indicators(sources[1:], wrong[1:], right[1:]), "fewer than 20 say nothing"


def test_a_score_that_sees_its_source_falls_with_shuffled_ones():
    right = dict(zip(HONEST, SOURCES, strict=True))
    asked = []

    def sees(sources, translations):
        asked.append(list(sources))
        return [
            float(right[text] == source) + 0.01 * len(text) for source, text in zip(sources, translations, strict=True)
        ]

    def blind(sources, translations):
        return [float(len(text)) for text in translations]

    scores = sees(SOURCES, HONEST)
    found = of(HONEST, scores=scores, score=sees)
    assert found["quality_spread"] == pytest.approx(np.std(scores))
    assert found["shuffled_gap"] == pytest.approx(1.0 / np.std(scores))
    assert len(asked) == 2 and sorted(asked[1]) == sorted(SOURCES)
    assert all(one != other for one, other in zip(*asked, strict=True))
    assert of(HONEST, scores=blind(SOURCES, HONEST), score=blind)["shuffled_gap"] == 0.0
    assert of(HONEST, scores=[1.0] * 8, score=lambda s, t: [1.0] * 8)["shuffled_gap"] == 0.0
    ten = [str(i) for i in range(10)]
    assert np.std([0.3] * 10) > 0.0, "a rounding"
    assert indicators(ten, ten, ten, scores=[0.3] * 10, score=lambda s, t: [0.1] * 10)["shuffled_gap"] == 0.0


def test_sentences_without_a_score_are_left_out():
    scores = [math.nan, *range(7)]
    found = of(HONEST, scores=scores, score=lambda sources, translations: [0.0] * 7 + [math.nan])
    assert found["quality_spread"] == pytest.approx(np.std(range(7)))
    assert found["shuffled_gap"] == pytest.approx(np.mean(range(6)) / np.std(range(7)))
    assert math.isnan(of(HONEST, scores=[math.nan] * 8)["quality_spread"]), "and an alarm sees it"


def test_lists_that_do_not_fit_are_refused():
    for lists in ((["a"], ["b", "c"], ["d"]), (["a", "b"], ["c"], ["d"]), (["a"], ["b"], ["c", "d"])):
        with pytest.raises(ValueError, match=r"shorter|longer"):
            indicators(*lists)


ANY = (
    st.text(max_size=30)
    | st.text(alphabet="a b1.", max_size=30)
    | st.sampled_from(["", " ", "\ud800", "猫" * 9, "٣ ½ ²"])
)
NUMBERS = st.floats(-1e6, 1e6)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(ANY, ANY, ANY, NUMBERS, NUMBERS, st.integers(0, 5)), max_size=25))
def test_indicators_of_any_texts_are_finite_and_in_range(rows):
    sources, translations, references, scores, shuffled, limits = ([row[k] for row in rows] for k in range(6))
    found = indicators(
        sources,
        translations,
        references,
        token_ids=[[7] * len(text) for text in translations],
        max_lengths=limits,
        scores=scores,
        score=lambda s, t: shuffled,
    )
    assert all(math.isfinite(value) for value in found.values()), found
    assert all(0.0 <= found[name] <= 1.0 for name in SHARES if name in found), found
    assert all(found[name] >= 0.0 for name in found if name != "shuffled_gap")
    assert all(" " not in name for name in found)
    if found.keys() >= {"length_ratio_5"}:
        assert found["length_ratio_5"] <= found["length_ratio_50"] <= found["length_ratio_95"]


def test_no_sentence_is_no_accusation():
    found = indicators([], [], [], token_ids=[], max_lengths=[], scores=[], score=lambda s, t: [])
    assert found and set(found.values()) == {0.0} and set(found) <= set(SHARES)
