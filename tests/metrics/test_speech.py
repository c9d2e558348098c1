"""Error rates: the normaliser, counts on hand-made alignments, jiwer's own totals, empty sides, the bootstrap."""

import jiwer
import numpy as np
import pytest

from energymt.errors import DataError
from energymt.metrics.significance import compare, interval
from energymt.metrics.speech import character_errors, error_report, normalised, rates, word_errors

REFERENCES = ["the cat sat on the mat", "a dog", "no"]
HYPOTHESES = ["the cat sit on mat", "a big dog", "no"]  # a substitution and a deletion, an insertion, nothing


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("  Hello,   World! ", "hello world"),
        ("Don't STOP -- ’til it’s 'done'", "don't stop til it's done"),
        ("well-known (U.S.) $5", "well known u s 5"),
        ("ﬁne\tＡＢＣ", "fine abc"),
        ("Ärger, naïve; जीवन", "ärger naïve जीवन"),
        ("'", ""),
        ("", ""),
    ],
)
def test_what_is_compared(text: str, wanted: str) -> None:
    assert normalised(text) == wanted
    assert normalised(wanted) == wanted


def test_each_kind_of_error_is_counted() -> None:
    words = word_errors(HYPOTHESES, REFERENCES)
    assert words.rows_BC.tolist() == [[1, 0, 1, 6], [0, 1, 0, 2], [0, 0, 0, 1]]
    assert words.total() == pytest.approx(100 * 3 / 9)
    assert rates(words).tolist() == pytest.approx([100 * 2 / 6, 50.0, 0.0])
    report = error_report(words, character_errors(HYPOTHESES, REFERENCES))
    assert (report.recordings, report.words) == (3, 9)
    assert report.substitutions + report.insertions + report.deletions == pytest.approx(report.wer)
    assert report.substitutions == pytest.approx(100 / 9)


def test_the_total_is_that_of_jiwer() -> None:
    draw = np.random.default_rng(3)
    texts = [" ".join(draw.choice(["one", "two", "three", "oh"], draw.integers(1, 9))) for _ in range(80)]
    hypotheses, references = texts[:40], texts[40:]
    assert word_errors(hypotheses, references).total() == pytest.approx(100 * jiwer.wer(references, hypotheses))
    assert character_errors(hypotheses, references).total() == pytest.approx(100 * jiwer.cer(references, hypotheses))


def test_case_and_punctuation_are_no_errors() -> None:
    assert word_errors(["Hello, WORLD!"], ["hello world"]).total() == 0.0
    assert word_errors(["dont"], ["don't"]).total() == 100.0


def test_an_empty_transcript_is_all_deletions_and_an_empty_reference_all_insertions() -> None:
    words = word_errors(["", "two words", "..."], ["three words here", "!", "?"])
    assert words.rows_BC.tolist() == [[0, 0, 3, 3], [0, 2, 0, 0], [0, 0, 0, 0]]
    assert words.total() == pytest.approx(100 * 5 / 3)
    assert rates(words).tolist() == [100.0, 200.0, 0.0]


@pytest.mark.parametrize("references", [[], ["", "..."]])
def test_references_without_a_word_are_refused(references: list[str]) -> None:
    with pytest.raises(DataError, match="references hold no word"):
        word_errors(["one"] * len(references), references)


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(DataError, match="1 transcripts and 2 references"):
        word_errors(["one"], ["one", "two"])


def test_the_bootstrap_resamples_recordings() -> None:
    references = ["one two three four"] * 60
    worse = word_errors(["one two", "one two three four"] * 30, references)
    better = word_errors(["one two three", "one two three four"] * 30, references)
    found = interval(worse)
    assert found.value == 25.0 and found.low < 25.0 < found.high
    compared = compare(worse, better)
    assert compared.difference == 12.5 and compared.p_randomisation < 0.01
    # A resampled set may hold silence alone.
    assert interval(word_errors(["", ""], ["", "one"])).low == 0.0
