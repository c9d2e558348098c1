import json
import logging
import math
import random

import pytest
import sacrebleu

from energymt.errors import DataError
from energymt.metrics import translation
from energymt.metrics.translation import Report, evaluate, report, statistics

WORDS = [*(f"word{i}" for i in range(18)), ",", "."]


def corpus(sentences, seed):
    """References, and hypotheses that change about a third of their words."""
    draw = random.Random(seed)
    references = [" ".join(draw.choices(WORDS, k=draw.randint(1, 25))) for _ in range(sentences)]
    hypotheses = [
        " ".join(draw.choice(WORDS) if draw.random() < 0.3 else word for word in text.split()) for text in references
    ]
    return hypotheses, references


def test_bleu_and_chrf_are_those_of_sacrebleu():
    hypotheses, references = corpus(60, seed=1)
    hypotheses[7] = ""
    found = evaluate(references, hypotheses, references)
    assert found.overall.bleu == pytest.approx(sacrebleu.corpus_bleu(hypotheses, [references]).score, abs=1e-9)
    assert found.overall.chrf == pytest.approx(sacrebleu.corpus_chrf(hypotheses, [references]).score, abs=1e-9)
    assert "tok:13a" in found.signatures["bleu"] and "case:mixed" in found.signatures["bleu"]
    assert "chrF2" in found.signatures["chrf"] or "nc:6" in found.signatures["chrf"]
    assert f"version:{sacrebleu.__version__}" in found.signatures["bleu"]


def test_segmented_text_takes_another_tokenizer_without_a_warning(caplog):
    hypotheses = ["ein h@@ und ."] * 150
    with caplog.at_level(logging.WARNING):
        found = evaluate(hypotheses, hypotheses, hypotheses, tokenize="none")
    assert found.overall.bleu == pytest.approx(100.0)
    assert "tok:none" in found.signatures["bleu"]
    assert not caplog.records


def test_repetition_counts_tokens_equal_to_the_one_before():
    assert translation.repetition([["a", "a", "b"], ["b"], []]).total() == pytest.approx(1 / 4)
    assert translation.repetition([["a", "a", "a"], ["a", "b", "a"]]).total() == pytest.approx(2 / 6)
    assert translation.repetition([[5, 5], [6, 5]]).total() == pytest.approx(1 / 4)
    assert translation.repetition([[], []]).total() == 0.0


def test_length_ratio_and_empty_share_are_over_the_whole_set():
    rows = statistics(["a b c", " ", "a"], ["a b", "a b c", "a"])
    assert rows["length_ratio"].total() == pytest.approx(4 / 6)
    assert rows["empty"].total() == pytest.approx(1 / 3)


def test_tokens_of_the_model_replace_words():
    found = evaluate(
        ["x y"], ["ab"], ["ab c"], hypothesis_tokens=[[7, 7, 8]], reference_tokens=[[7, 8, 9, 9]], source_lengths=[40]
    )
    assert found.overall.repetition == pytest.approx(1 / 3)
    assert found.overall.length_ratio == pytest.approx(3 / 4)
    assert found.by_source_length[0].name == "31-50"
    with pytest.raises(ValueError, match="of neither"):
        evaluate(["x"], ["a"], ["a"], hypothesis_tokens=[[1]])


def test_buckets_hold_each_sentence_once_and_score_it_alone():
    hypotheses, references = corpus(80, seed=2)
    lengths = [index % 60 for index in range(80)]
    energies = [float(index) for index in range(80)]
    found = evaluate(
        references, hypotheses, references, source_lengths=lengths, values={"energy": energies}, buckets=(9, 19)
    )
    assert [bucket.name for bucket in found.by_source_length] == ["0-9", "10-19", "20+"]
    assert sum(bucket.scores.sentences for bucket in found.by_source_length) == 80 == found.overall.sentences
    chosen = [index for index, length in enumerate(lengths) if 10 <= length <= 19]
    alone = sacrebleu.corpus_bleu([hypotheses[i] for i in chosen], [[references[i] for i in chosen]]).score
    middle = found.by_source_length[1].scores
    assert middle.bleu == pytest.approx(alone, abs=1e-9)
    assert middle.values["energy"] == pytest.approx(sum(chosen) / len(chosen))
    assert found.overall.values["energy"] == pytest.approx(39.5)


def test_rows_made_once_give_the_same_report():
    hypotheses, references = corpus(30, seed=4)
    lengths = [len(text.split()) for text in references]
    assert report(statistics(hypotheses, references), lengths) == evaluate(references, hypotheses, references)


def test_the_report_is_plain_values():
    hypotheses, references = corpus(30, seed=3)
    found = evaluate(references, hypotheses, references, values={"energy": [1.5] * 30})
    assert isinstance(found, Report)
    plain = json.loads(json.dumps(found.to_dict()))
    assert plain["bleu"] == found.overall.bleu
    assert plain["energy"] == 1.5
    assert plain["by_source_length"]["11-15"]["sentences"] >= 1
    flat = found.metrics()
    assert flat["chrf/source-11-15"] == plain["by_source_length"]["11-15"]["chrf"]
    assert all(math.isfinite(value) for value in flat.values())


@pytest.mark.parametrize(
    "sources, hypotheses, references, message",
    [
        ([], [], [], "no sentence"),
        (["a"], ["a", "b"], ["a", "b"], "2 hypotheses and 1 sources"),
        (["a"], ["a"], ["a", "b"], "1 hypotheses and 2 references"),
    ],
)
def test_lists_that_do_not_fit_are_refused_in_a_sentence(sources, hypotheses, references, message):
    with pytest.raises(DataError, match=message):
        evaluate(sources, hypotheses, references)


def test_values_need_one_number_a_sentence():
    with pytest.raises(DataError, match="1 hypotheses and 2 energy"):
        statistics(["a"], ["a"], values={"energy": [1.0, 2.0]})
