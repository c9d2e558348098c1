import math

import pytest
import torch

from energymt.decoding import DecodingOptions, Translator, autoregressive, mask_predict
from energymt.decoding.rerank import by_energy, rerank, rerank_by_consensus, rerank_texts
from energymt.energies import AutoregressiveEnergy, WeightedEnergy
from energymt.errors import ConfigurationError
from energymt.records import Hypothesis

SIZE = 16


class Table:
    """An energy by number of tokens; through predictions alone."""

    unit = "energy"

    def __init__(self, values):
        self.values = values

    def __call__(self, source, prediction):
        return torch.tensor([self.values[n] for n in prediction.mask_BT.sum(1).tolist()])


def hypotheses(*lengths):
    return [Hypothesis(tuple([7] * n), -1.0, -1.0 * n, {"length_logp": -0.5}) for n in lengths]


def test_lists_are_sorted_by_energy_and_hold_it(batch):
    energy = Table({0: 9.0, 1: 3.0, 2: 1.0, 4: 2.0})
    found = rerank(
        [hypotheses(1, 2, 4), hypotheses(0), [], hypotheses(4, 2)], batch([[5], [6], [7], [8]]), energy, SIZE
    )
    assert [[len(item.ids) for item in items] for items in found] == [[2, 4, 1], [0], [], [2, 4]]
    assert found[0][0].extra == {"length_logp": -0.5, "energy": 1.0}


def test_equal_energies_keep_their_order_and_nan_comes_last(batch):
    energy = Table({1: 1.0, 2: math.nan, 3: 1.0, 4: 0.5})
    [found] = rerank([hypotheses(2, 3, 1, 4)], batch([[5]]), energy, SIZE)
    assert [len(item.ids) for item in found] == [4, 3, 1, 2]


def test_nothing_to_rank(batch):
    assert rerank([[], []], batch([[5], [6]]), Table({}), SIZE) == [[], []]


def test_a_teacher_ranks_its_own_n_best_list_by_total(model, batch, sentences):
    source = batch(sentences(6))
    found = autoregressive.decode(model, source, beam=4, n_best=4)
    energy = AutoregressiveEnergy(model)
    ranked = rerank(found, source, energy, SIZE)
    changed = 0
    for before, after in zip(found, ranked, strict=True):
        assert [item.extra["energy"] for item in after] == pytest.approx([-item.total for item in after], abs=1e-4)
        by_total = sorted(before, key=lambda item: -item.total)
        assert [item.ids for item in after] == [item.ids for item in by_total]
        changed += by_total != before
    assert changed, "total and score agree everywhere: the test sees nothing"


def test_the_short_way_and_the_way_through_predictions_agree(transformer, batch, sentences):
    source = batch(sentences(5))
    found = autoregressive.decode(transformer, source, beam=3, n_best=3)
    energy = AutoregressiveEnergy(transformer)
    short = rerank(found, source, energy, SIZE)
    long = rerank(found, source, WeightedEnergy({"teacher": (1.0, energy)}), SIZE)
    for one, two in zip(short, long, strict=True):
        assert [item.ids for item in one] == [item.ids for item in two]
        assert [item.extra["energy"] for item in one] == pytest.approx([item.extra["energy"] for item in two], abs=1e-3)


def test_an_energy_picks_the_length_of_a_parallel_translation(masked, transformer, batch, sentences):
    source = batch(sentences(5))
    energy = AutoregressiveEnergy(transformer)
    everything = mask_predict.decode(masked, source, length_beam=4, n_best=4)
    picked = mask_predict.decode(masked, source, length_beam=4, rank=by_energy(energy, SIZE))
    best = [items[0] for items in rerank(everything, source, energy, SIZE)]
    assert [items[0].ids for items in picked] == [item.ids for item in best]
    assert [-items[0].extra["rank"] for items in picked] == pytest.approx(
        [item.extra["energy"] for item in best], abs=1e-3
    )
    assert [items[0].ids for items in picked] != [items[0].ids for items in everything], "the test sees nothing"


# ----------------------------------------------------------------------------------------------------------- by text


def by_last_digit(sources, translations):
    """A score of text, with ties: the last digit of a translation; for another line than line 5, its opposite."""
    return [
        int(text[-1:] or 0) * (1 if source == "5" else -1) for source, text in zip(sources, translations, strict=True)
    ]


def texts(*words):
    return [(text, Hypothesis((), -1.0, -1.0, {"length_logp": -0.5})) for text in words]


def test_texts_are_sorted_by_the_score_of_them_and_their_source():
    found = rerank_texts([texts("a1", "b3", "c2"), [], texts("a1", "b3", "c2")], ["5", "6", "7"], by_last_digit)
    assert [[text for text, _ in items] for items in found] == [["b3", "c2", "a1"], [], ["a1", "c2", "b3"]]
    assert [item.extra for _, item in found[2]] == [{"length_logp": -0.5, "quality": -n} for n in (1, 2, 3)]


def test_texts_of_equal_score_keep_their_order_and_nan_comes_last():
    scores = {"a": 1.0, "b": math.nan, "c": 1.0, "d": 2.0}
    [found] = rerank_texts([texts("b", "c", "a", "d")], ["5"], lambda _, lines: [scores[line] for line in lines])
    assert [text for text, _ in found] == ["d", "c", "a", "b"]


@pytest.mark.parametrize("name, width", [("transformer", "beam"), ("masked", "length_beam")])
def test_a_translator_ranks_all_its_candidates_by_their_text(name, width, request, sentences):
    model = request.getfixturevalue(name)
    # Two spaces are not in the tokens: the score is one of the text.
    lines = [*(" ".join(map(str, words)) for words in sentences(12)), "", "5", "6  7"]
    everything = Translator(model, DecodingOptions(**{width: 4}, n_best=4)).translate(lines)
    ranked = rerank_texts(everything[:12] + everything[13:], lines[:12] + lines[13:], by_last_digit)
    seen = []

    def score(sources, translations):
        seen.extend(sources)
        return by_last_digit(sources, translations)

    for n_best in (1, 2):
        options = DecodingOptions(**{width: 4}, n_best=n_best, tokens_per_batch=60)
        translator = Translator(model, options, quality=score)
        found = translator.translate(lines)
        assert found[12] == [("", Hypothesis((), 0.0, 0.0))]
        assert [[text for text, _ in items] for items in found[:12] + found[13:]] == [
            [text for text, _ in items[:n_best]] for items in ranked
        ]
        assert all("quality" in item.extra for items in found[:12] for _, item in items)
        # What takes ids has no text to ask about.
        ids = [model.vocabulary.encode_source(line) for line in lines[:12]]
        assert [[item.ids for item in items] for items in translator.translate_ids(ids)] == [
            [item.ids for _, item in items[:n_best]] for items in everything[:12]
        ]
    assert set(seen) == set(lines) - {""}
    first = [items[0][0] for items in everything]
    assert first[:12] + first[13:] != [items[0][0] for items in ranked], "the test sees nothing"


def overlap(sources, translations, references):
    """Words in common, and a bonus for the source's own word."""
    rows = zip(sources, translations, references, strict=True)
    return [len({*own.split()} & {*other.split()}) + 0.25 * (source in own) for source, own, other in rows]


def test_consensus_prefers_what_the_other_candidates_say():
    item = Hypothesis((7,), -1.0, -1.0)
    first = [(text, item) for text in ("x y", "a b c", "a b", "a b")]
    second = [("only", item)]
    [ranked, alone, none] = rerank_by_consensus([first, second, []], ["q", "a", "b"], overlap)
    assert [text for text, _ in ranked] == ["a b c", "a b", "a b", "x y"]
    assert [round(found.extra["quality"], 3) for _, found in ranked] == [1.333, 1.333, 1.333, 0.0]
    assert alone == [("only", item.with_extra(quality=0.0))] and none == []
    [[(text, best), *_]] = rerank_by_consensus([[("a b", item), ("q c", item), ("q d", item)]], ["q"], overlap)
    assert text == "q c" and best.extra["quality"] == pytest.approx((0.25 + 1.25) / 2)


def test_equal_candidates_are_compared_once():
    item, asked = Hypothesis((7,), -1.0, -1.0), []

    def once(*columns):
        asked.extend(zip(*columns, strict=True))
        return overlap(*columns)

    drawn = [[(text, item) for text in ("a b", "a b", "a c", "a b", "d", "a c")], [("a b", item), ("a c", item)]]
    found = rerank_by_consensus(drawn, ["q", "a b"], once)
    assert len(asked) == len(set(asked)) == 8 + 2, "three texts against each other and two against themselves"
    for source, before, after in zip(["q", "a b"], drawn, found, strict=True):
        words = [text for text, _ in before]
        means = []
        for place, own in enumerate(words):
            others = words[:place] + words[place + 1 :]
            means.append(sum(overlap([source] * len(others), [own] * len(others), others)) / len(others))
        order = sorted(range(len(words)), key=lambda row: -means[row])
        assert [text for text, _ in after] == [words[row] for row in order]
        assert [best.extra["quality"] for _, best in after] == [means[row] for row in order]


def test_candidates_are_drawn_by_the_sentence_and_the_seed_alone(transformer, sentences):
    texts = [" ".join(map(str, ids)) for ids in sentences(5)]
    options = DecodingOptions(samples=6, n_best=6, max_length=5)
    found = Translator(transformer, options).translate(texts)
    again = Translator(transformer, options.model_copy(update={"tokens_per_batch": 1})).translate(texts[::-1])[::-1]
    other = Translator(transformer, options.model_copy(update={"seed": 2})).translate(texts)
    for one, two, third in zip(found, again, other, strict=True):
        assert [item.ids for _, item in one] == [item.ids for _, item in two]
        assert [item.total for _, item in one] == pytest.approx([item.total for _, item in two], rel=1e-4)
        assert [item.score for _, item in one] == sorted((item.score for _, item in one), reverse=True)
        assert {item.ids for _, item in one} != {item.ids for _, item in third}
    assert len({item.ids for one in found for _, item in one}) > 10
    energy = AutoregressiveEnergy(transformer)
    ranked = Translator(transformer, options, energy=energy).translate(texts)
    for one, two in zip(found, ranked, strict=True):
        assert sorted(item.ids for _, item in one) == sorted(item.ids for _, item in two)
        assert [item.extra["energy"] for _, item in two] == pytest.approx([-item.total for _, item in two], abs=1e-3)


@pytest.mark.parametrize("shape", [{"temperature": 1e-3}, {"top_p": 1e-3}])
def test_samples_of_no_spread_are_the_greedy_translation(shape, transformer, sentences):
    texts = [" ".join(map(str, ids)) for ids in sentences(5)]
    greedy = Translator(transformer, DecodingOptions(beam=1, max_length=5)).translate(texts)
    options = DecodingOptions(samples=4, n_best=4, max_length=5)
    wide = Translator(transformer, options).translate(texts)
    narrow = Translator(transformer, options.model_copy(update=shape)).translate(texts)
    for one, found, other in zip(greedy, narrow, wide, strict=True):
        assert {item.ids for _, item in found} == {one[0][1].ids} != {item.ids for _, item in other}
        assert found[0][1].total == pytest.approx(one[0][1].total, rel=1e-4), "of the translator's own distribution"
    with pytest.raises(ConfigurationError, match="set samples too"):
        Translator(transformer, DecodingOptions(max_length=5, **shape))


def test_samples_of_a_parallel_translator_are_refused(masked):
    with pytest.raises(ConfigurationError, match="autoregressive"):
        Translator(masked, DecodingOptions(samples=2))
