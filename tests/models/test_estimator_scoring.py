"""Scores of text: the same however lines are batched, each input encoded once, wrong input refused in a sentence."""

import pytest
import torch

from energymt.errors import ConfigurationError, DataError
from energymt.models import scoring
from energymt.models.scoring import score_lines
from tests import estimators

SIDES = (estimators.SOURCES, estimators.TRANSLATIONS, estimators.REFERENCES)
kinds = pytest.mark.parametrize("kind", estimators.KINDS)


@kinds
def test_scores_do_not_depend_on_batches(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = estimators.estimator(kind)
    wanted = score_lines(model, *SIDES)
    assert len(set(wanted)) == len(wanted)
    assert score_lines(model, *SIDES, tokens_per_batch=1) == pytest.approx(wanted, abs=1e-6)
    assert score_lines(model, *(side[::-1] for side in SIDES)) == pytest.approx(wanted[::-1], abs=1e-6)
    monkeypatch.setattr(scoring, "WINDOW", 2)
    assert score_lines(model, *SIDES) == pytest.approx(wanted, abs=1e-6)


@kinds
def test_no_line_gives_no_score(kind: str) -> None:
    assert score_lines(estimators.estimator(kind), [], [], []) == []


@pytest.mark.parametrize("kind, inputs", [("kiwi", 3), ("referenceless", 4), ("regression", 7), ("unified", 11)])
def test_the_same_input_is_encoded_once(kind: str, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = estimators.estimator(kind)
    shapes, read = [], model.read
    monkeypatch.setattr(model, "read", lambda emb, mask: shapes.append(mask.shape) or read(emb, mask))
    sources = ["ein Buch .", "ein Buch .", "eine Frau", "eine Frau"]
    translations = ["a book .", "a book .", "a book .", "children"]
    references = ["a book .", "a woman", "dogs", "dogs run"]
    score_lines(model, sources, translations, references, tokens_per_batch=30)
    assert sum(rows for rows, _ in shapes) == inputs
    assert len(shapes) > 1 and all(rows * width <= 30 for rows, width in shapes)
    widths = [width for _, width in shapes]
    assert widths == sorted(widths, reverse=True)


def test_a_unified_metric_takes_references_where_there_are_some() -> None:
    model = estimators.estimator("unified")
    with_references, without = score_lines(model, *SIDES), score_lines(model, *SIDES[:2])
    assert with_references != pytest.approx(without, abs=1e-3)
    kiwi = estimators.estimator("kiwi")
    assert score_lines(kiwi, *SIDES) == score_lines(kiwi, *SIDES[:2])


@pytest.mark.parametrize(
    "labels, points",
    [
        ([0, 0, 0], 0),
        ([0, 1, 1, 0], 1),
        ([0, 2, 3, 1, 0], 5),  # the first token's severity
        ([0, 3, 0, 1, 0], 11),
        ([3, 0, 3, 0, 3, 0], 25),  # never more
        ([0, 1, 0, 3, 3], 1),  # nothing ends the last span
        ([], 0),
    ],
)
def test_points_of_error_spans(labels: list[int], points: int) -> None:
    assert scoring._span_points(labels) == points


def test_xcomet_counts_spans_into_its_score() -> None:
    model = estimators.estimator("xcomet")
    wanted = score_lines(model, *SIDES)
    torch.nn.init.zeros_(model.labels.weight)
    model.labels.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 0.0]))
    free = score_lines(model, *SIDES)
    points = [(better - score) / scoring.XCOMET_SPANS * 25 for better, score in zip(free, wanted, strict=True)]
    assert max(points) > 0.5
    assert points == pytest.approx([round(value) for value in points], abs=1e-3)


def test_a_model_in_training_scores_without_dropout_and_goes_on_training() -> None:
    model = estimators.estimator("kiwi")
    wanted = score_lines(model, *SIDES[:2])
    assert score_lines(model.train(), *SIDES[:2]) == wanted
    assert model.training


@pytest.mark.parametrize("kind", ["regression"])
def test_missing_references_are_asked_for(kind: str) -> None:
    with pytest.raises(ConfigurationError, match="references"):
        score_lines(estimators.estimator(kind), *SIDES[:2])


def test_sides_of_different_length_are_refused() -> None:
    with pytest.raises(DataError, match="2 translations, 1 sources: align"):
        score_lines(estimators.estimator("kiwi"), ["ein Buch"], ["a book", "books"])


@pytest.mark.parametrize("line", ["a \ud800 book", None, 3])
def test_what_is_no_text_is_refused_with_its_line(line) -> None:
    with pytest.raises(DataError, match="source in line 2"):
        score_lines(estimators.estimator("kiwi"), ["ein Buch", line], ["a book", "books"])


def test_odd_but_valid_lines_have_scores() -> None:
    lines = ["", "   ", "\u0000", "𝔘🙂", "<s> </s> <pad> <mask>", "x" * 5000]
    scores = score_lines(estimators.estimator("kiwi"), lines, lines[::-1])
    assert torch.tensor(scores).isfinite().all()
