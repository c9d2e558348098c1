"""The filter: what it keeps, that every pair is scored once whatever happens in between, and what it refuses."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from energymt.data import selection
from energymt.data.corpus import Corpus
from energymt.data.selection import Criterion, ScoreStore, filter_pairs, folder_fingerprint
from energymt.errors import ConfigurationError, DataError, StorageError
from energymt.models.scoring import score_lines
from tests import estimators


class Scorer:
    """Gives each pair the number that its translation is, and notes what it was asked; after `most` calls it dies."""

    def __init__(self, most: int = 1000) -> None:
        self.asked: list[list[str]] = []
        self.most = most

    def __call__(self, sources: Sequence[str], translations: Sequence[str]) -> list[float]:
        if len(self.asked) == self.most:
            raise KeyboardInterrupt
        assert [f"to {text}" for text in translations] == list(sources)
        self.asked.append(list(translations))
        return [float(text) for text in translations]


def corpus(*numbers: float) -> Corpus:
    return Corpus([f"to {number}" for number in numbers], [f"{number}" for number in numbers], "a.tsv")


def kept(numbers: Sequence[float], folder: Path, **criterion: float) -> list[float]:
    found = filter_pairs(corpus(*numbers), Criterion(**criterion), Scorer(), ScoreStore(folder, "e"))
    assert found.corpus.target is not None
    assert found.corpus.source == [f"to {text}" for text in found.corpus.target]
    assert found.scores == [float(text) for text in found.corpus.target]
    assert found.scores_N.tolist() == list(numbers)
    assert all((number >= found.least) == (number in found.scores) for number in numbers)
    return found.scores


NUMBERS = [0.3, 0.9, -0.2, 0.7, 0.7, 0.1, 0.8, 0.0]


@pytest.mark.parametrize(
    "criterion, wanted",
    [
        ({"threshold": 0.7}, [0.9, 0.7, 0.7, 0.8]),
        ({"threshold": -1.0}, NUMBERS),
        ({"threshold": 0.9}, [0.9]),
        ({"quantile": 0.25}, [0.9, 0.8]),
        ({"quantile": 0.375}, [0.9, 0.7, 0.7, 0.8]),  # the third and the fourth best are equal
        ({"quantile": 0.5}, [0.9, 0.7, 0.7, 0.8]),
        ({"quantile": 1.0}, NUMBERS),
        ({"quantile": 0.001}, [0.9]),
    ],
)
def test_what_is_kept(criterion: dict[str, float], wanted: list[float], tmp_path: Path) -> None:
    assert kept(NUMBERS, tmp_path, **criterion) == wanted


def test_a_filter_that_keeps_nothing_says_why(tmp_path: Path) -> None:
    parts = "None of the 8 pairs of a.tsv scores 1.5 or more, the highest score is 0.9000: lower the threshold"
    with pytest.raises(DataError, match=re.escape(parts)):
        kept(NUMBERS, tmp_path, threshold=1.5)


@pytest.mark.parametrize(
    "criterion, part",
    [
        ({}, "exactly one"),
        ({"threshold": 0.7, "quantile": 0.5}, "exactly one"),
        ({"threshold": float("nan")}, "give a number"),
        ({"quantile": 0.0}, "and not 0.0"),
        ({"quantile": 1.5}, "and not 1.5"),
        ({"quantile": float("nan")}, "and not nan"),
    ],
)
def test_a_criterion_that_is_none(criterion: dict[str, float], part: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(part)):
        Criterion(**criterion)


# ---------------------------------------------------------------------------------------------------- scored only once


def test_a_second_call_costs_nothing(tmp_path: Path) -> None:
    first, second = Scorer(), Scorer()
    scores_N = ScoreStore(tmp_path, "e").scores(corpus(0.1, 0.25, 0.1, 1 / 3), first)
    assert scores_N.tolist() == [0.1, 0.25, 0.1, 1 / 3]
    assert sorted(first.asked[0]) == ["0.1", "0.25", str(1 / 3)], "what stands there twice is scored once"
    assert ScoreStore(tmp_path, "e").scores(corpus(1 / 3, 0.1), second).tolist() == [1 / 3, 0.1]
    assert second.asked == []


def test_only_what_is_new_is_scored(tmp_path: Path) -> None:
    ScoreStore(tmp_path, "e").scores(corpus(0.1, 0.2), Scorer())
    later = Scorer()
    assert ScoreStore(tmp_path, "e").scores(corpus(0.2, 0.3, 0.1), later).tolist() == [0.2, 0.3, 0.1]
    assert later.asked == [["0.3"]]


def test_another_estimator_or_another_source_is_another_score(tmp_path: Path) -> None:
    ScoreStore(tmp_path, "e").scores(corpus(0.1), Scorer())
    other = Scorer()
    ScoreStore(tmp_path, "f").scores(corpus(0.1), other)
    assert other.asked == [["0.1"]]
    asked: list[str] = []

    def one(sources: Sequence[str], translations: Sequence[str]) -> list[float]:
        asked.extend(sources)
        return [1.0 for _ in sources]

    # Also where a separator between the two texts would move.
    for source, target in (("to 0.1 ", "0.1"), ("to 0.1", " 0.1"), ('to 0.1", "0', "1"), ("to 0.1", '0", "1')):
        ScoreStore(tmp_path, "e").scores(Corpus([source], [target], "b.tsv"), one)
    assert len(asked) == 4


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "CHUNK", 3)
    numbers = [row / 16 for row in range(10)]
    killed, resumed = Scorer(most=2), Scorer()
    with pytest.raises(KeyboardInterrupt):
        ScoreStore(tmp_path, "e").scores(corpus(*numbers), killed)
    assert ScoreStore(tmp_path, "e").scores(corpus(*numbers), resumed).tolist() == numbers
    assert [len(chunk) for chunk in resumed.asked] == [3, 1]
    assert [text for chunk in killed.asked + resumed.asked for text in chunk] == [str(number) for number in numbers]


@pytest.mark.parametrize("lost", [1, 2, 20, 60])
def test_a_cut_line_is_scored_again_and_spoils_no_other(lost: int, tmp_path: Path) -> None:
    store = ScoreStore(tmp_path, "e")
    store.scores(corpus(0.1, 0.2), Scorer())
    os.truncate(store.file, store.file.stat().st_size - lost)
    again, third = Scorer(), Scorer()
    assert ScoreStore(tmp_path, "e").scores(corpus(0.1, 0.2, 0.3), again).tolist() == [0.1, 0.2, 0.3]
    assert again.asked == ([["0.3"]] if lost == 1 else [["0.2", "0.3"]])  # 1: only the line's end is lost
    assert ScoreStore(tmp_path, "e").scores(corpus(0.3, 0.2, 0.1), third).tolist() == [0.3, 0.2, 0.1]
    assert third.asked == []


def test_two_writers_keep_what_both_found(tmp_path: Path) -> None:
    outer, inner = ScoreStore(tmp_path, "e"), ScoreStore(tmp_path, "e")

    def score(sources: Sequence[str], translations: Sequence[str]) -> list[float]:
        inner.scores(corpus(0.5, 0.75), Scorer())
        return [float(text) for text in translations]

    assert outer.scores(corpus(0.25, 0.5), score).tolist() == [0.25, 0.5]
    last = Scorer()
    assert ScoreStore(tmp_path, "e").scores(corpus(0.75, 0.5, 0.25), last).tolist() == [0.75, 0.5, 0.25]
    assert last.asked == []


def test_scores_by_chunks_are_those_of_the_estimator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "CHUNK", 2)
    model = estimators.estimator("kiwi")
    pairs = Corpus(estimators.SOURCES, estimators.TRANSLATIONS, "a.tsv")
    found = ScoreStore(tmp_path, "kiwi").scores(pairs, lambda *sides: score_lines(model, *sides))
    wanted = score_lines(model, estimators.SOURCES, estimators.TRANSLATIONS)
    assert found.tolist() == pytest.approx(wanted, abs=1e-5)
    assert len(np.unique(found)) == len(wanted)


def test_scores_that_are_no_number_are_refused_and_all_others_kept(tmp_path: Path) -> None:
    nan, infinite = float("nan"), float("inf")
    with pytest.raises(DataError, match=r"2 of 4 scores .* first of them is inf for pair 2 of a\.tsv: .*pool.* log"):
        ScoreStore(tmp_path, "e").scores(corpus(0.5, infinite, 0.25, nan, infinite), Scorer())
    later = Scorer()
    assert ScoreStore(tmp_path, "e").scores(corpus(0.25, 0.5), later).tolist() == [0.25, 0.5]
    assert later.asked == []
    with pytest.raises(DataError, match=r"1 of 1 scores .* first of them is nan for pair 2 of a\.tsv"):
        ScoreStore(tmp_path, "e").scores(corpus(0.5, nan), Scorer())
    with pytest.raises(DataError, match="1 of 1 scores"):
        ScoreStore(tmp_path / "other", "e").scores(corpus(nan), Scorer())
    assert not (tmp_path / "other").exists(), "nothing was there to keep"


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "scores").write_text("a file")
    with pytest.raises(StorageError, match=r"scores/.*jsonl could not be written"):
        ScoreStore(tmp_path / "scores", "e").scores(corpus(0.5), Scorer())


def test_a_folder_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    found = set()
    for name, files in {
        "a": {"x": "1", "y/z": "2"},
        "b": {"x": "1", "y/z": "2", "energymt.json": "when and where"},
        "c": {"x": "1", "y/z": "3"},
        "d": {"x": "1", "z": "2"},
        "e": {"x": "12", "y/z": ""},
    }.items():
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        found.add(folder_fingerprint(tmp_path / name))
    assert len(found) == 4, "the manifest alone makes no difference"
