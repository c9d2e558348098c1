import logging

import pytest
from pydantic import ValidationError

from energymt.decoding import DecodingOptions, Translator, autoregressive, mask_predict
from energymt.energies import AutoregressiveEnergy
from energymt.errors import ConfigurationError


def lines_of(sentences):
    return [" ".join(map(str, words)) for words in sentences]


@pytest.fixture
def watch(monkeypatch):
    """The shape of every batch that reaches the model."""
    shapes = []
    for module in (autoregressive, mask_predict):
        original = module.decode

        def decode(model, source, original=original, **options):
            shapes.append(tuple(source.ids_BS.shape))
            return original(model, source, **options)

        monkeypatch.setattr(module, "decode", decode)
    return shapes


def test_translations_come_in_order_whatever_the_batches(transformer, masked, sentences):
    texts = lines_of(sentences(30))
    for model in (transformer, masked):
        one_by_one = Translator(model, DecodingOptions(tokens_per_batch=1)).translate(texts)
        together = Translator(model, DecodingOptions(tokens_per_batch=10**6)).translate(texts)
        cut = Translator(model, DecodingOptions(tokens_per_batch=150)).translate(texts)
        streamed = list(Translator(model, DecodingOptions(window=7)).stream(text + "\n" for text in texts))
        wanted = [[text for text, _ in items] for items in one_by_one]
        for found in (together, cut, streamed):
            assert [[text for text, _ in items] for items in found] == wanted
        assert len(wanted) == 30 and len({items[0] for items in wanted}) > 5


def test_text_and_hypothesis_belong_together(transformer):
    [[(text, hypothesis), *others]] = Translator(transformer, DecodingOptions(beam=4, n_best=3)).translate(["5 6 7 8"])
    assert text == " ".join(map(str, hypothesis.ids))
    assert len(others) == 2
    assert hypothesis.score >= others[0][1].score >= others[1][1].score


def test_batches_keep_to_the_budget_and_hold_like_lengths(transformer, watch, sentences):
    words = sentences(40)
    options = DecodingOptions(beam=3, tokens_per_batch=120)
    Translator(transformer, options).translate(lines_of(words))
    assert sum(rows for rows, _ in watch) == 40
    assert all(rows * width * 3 <= 120 or rows == 1 for rows, width in watch)
    assert [width for _, width in watch] == sorted((width for _, width in watch), reverse=True)
    real = sum(len(ids) + 1 for ids in words)
    assert sum(rows * width for rows, width in watch) < 1.25 * real


def test_a_long_target_makes_a_batch_smaller(masked, watch):
    options = DecodingOptions(length_beam=1, tokens_per_batch=40, iterations=1)
    found = Translator(masked, options).translate(["5", "6", "7", "8"], lengths=[20, 20, 2, 2])
    assert [rows for rows, _ in watch] == [2, 2]
    assert [len(items[0][1].ids) for items in found] == [20, 20, 2, 2]


def test_a_stream_gives_output_before_its_input_ends(transformer):
    read = []

    def lines():
        for number in range(100):
            read.append(number)
            yield f"{5 + number % 10}\n"

    translations = Translator(transformer, DecodingOptions(beam=2, window=32)).stream(lines())
    next(translations)
    assert len(read) <= 16
    assert sum(1 for _ in translations) == 99
    one_by_one = Translator(transformer, DecodingOptions(beam=2, window=1)).stream(lines())
    read.clear()
    for number in range(3):
        next(one_by_one)
        assert len(read) == number + 1


def test_empty_lines_are_empty_translations(transformer, masked):
    for model in (transformer, masked):
        found = Translator(model).translate(["5 6", "", "  ", "7"])
        assert [items[0][0] for items in found[1:3]] == ["", ""]
        assert found[1][0][1].ids == ()
        assert found[0] and found[3]
        assert list(Translator(model).stream(["\n", "\r\n"])) == [found[1], found[2]]
    assert Translator(transformer).translate([]) == []
    assert list(Translator(transformer).stream([])) == []


def test_a_long_line_is_cut_with_a_warning_that_names_it(transformer, masked, caplog):
    short, long = " ".join(["5"] * 9), " ".join(["5"] * 300)
    for model, limit in ((transformer, 10), (masked, 10), (transformer, None), (masked, None)):
        caplog.clear()
        options = DecodingOptions(max_source_tokens=limit, length_beam=2, iterations=2)
        with caplog.at_level(logging.WARNING):
            found = list(Translator(model, options).stream([*["6"] * 16, "7", long, short]))
        assert len(found) == 19
        expected = limit or model.longest
        assert [record.getMessage() for record in caplog.records] == [
            f"Line 18 has 301 tokens and the limit is {expected}: its end is cut off."
        ]
        if limit:
            (cut, one), (whole, other) = found[17][0], found[18][0]
            assert (cut, one.ids) == (whole, other.ids), "the first nine tokens and the end token are left"
            assert one.score == pytest.approx(other.score, rel=1e-5)  # of two rows of a batch not the last bit


def test_an_energy_picks_the_translation(transformer, recurrent, masked, sentences):
    texts = lines_of(sentences(8))
    energy = AutoregressiveEnergy(recurrent)
    for model, options in ((transformer, DecodingOptions(beam=4)), (masked, DecodingOptions(length_beam=4))):
        every = Translator(model, options.model_copy(update={"n_best": 4}), energy).translate(texts)
        best = Translator(model, options, energy).translate(texts)
        plain = Translator(model, options).translate(texts)
        for all_items, [(text, hypothesis)] in zip(every, best, strict=True):
            energies = [item.extra["energy"] for _, item in all_items]
            assert energies == sorted(energies)
            assert text == all_items[0][0]
            assert hypothesis.extra["energy"] == pytest.approx(energies[0], abs=1e-4)
        assert [items[0][0] for items in best] != [items[0][0] for items in plain]


def test_encoded_sources_need_no_text(masked):
    translator = Translator(masked, DecodingOptions(length_beam=1))
    found = translator.translate_ids([[5, 6, 3], [7, 3]], lengths=[4, 2])
    text = translator.translate(["5 6", "7"], lengths=[4, 2])
    assert found == [[item for _, item in items] for items in text]


def test_impossible_options_are_refused(transformer, masked):
    with pytest.raises(ConfigurationError, match="n_best is 4 and beam 2"):
        Translator(transformer, DecodingOptions(beam=2, n_best=4))
    with pytest.raises(ConfigurationError, match="n_best is 4 and length_beam 2"):
        Translator(masked, DecodingOptions(length_beam=2, n_best=4))
    with pytest.raises(ConfigurationError, match="give it no lengths"):
        Translator(transformer).translate(["5"], lengths=[1])
    with pytest.raises(ConfigurationError, match="1 lengths were given for 2"):
        Translator(masked).translate_ids([[5, 3], [6, 3]], lengths=[1])
    with pytest.raises(ConfigurationError, match="1 lengths were given for 2"):
        Translator(masked).translate(["5", "6"], lengths=[1])
    with pytest.raises(ValidationError):
        DecodingOptions(beam=0)
    with pytest.raises(ValidationError):
        DecodingOptions(beem=3)


def test_a_prefix_is_read_by_the_model_and_not_by_what_ranks_its_text(transformer, sentences):
    texts, heard = [*lines_of(sentences(12)), ""], []

    def quality(sources, translations):
        heard.extend(sources)
        return [-len(text.split()) for text in translations]

    def found(lines, options, **arguments):
        return [[text for text, _ in items] for items in Translator(transformer, options).translate(lines, **arguments)]

    wanted = found([f"7 9 {text}" if text else "" for text in texts], DecodingOptions(beam=3))
    option = DecodingOptions(beam=3, prefix="7 9 ")
    assert found(texts, option) == wanted != found(texts, DecodingOptions(beam=3))
    assert found(texts, DecodingOptions(beam=3), prefixes=["7 9 "] * 13) == wanted
    streamed = Translator(transformer, option).stream(f"{text}\n" for text in texts)
    assert [[text for text, _ in items] for items in streamed] == wanted
    own = [f"{5 + row % 11} " for row in range(13)]
    each = [found([text], DecodingOptions(beam=3, prefix=given))[0] for given, text in zip(own, texts, strict=True)]
    assert found(texts, option, prefixes=own) == each
    Translator(transformer, option, quality=quality).translate(texts)
    assert set(heard) == set(texts[:-1])
