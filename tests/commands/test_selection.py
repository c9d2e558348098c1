"""`energymt data filter` and `energymt data neighbours`: from files to files, and what both refuse."""

import csv
import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from energymt.data.corpus import DataConfig, TextConfig, read_corpus
from energymt.data.neighbours import load_neighbours
from energymt.data.sentence_vectors import mean_states
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.errors import DataError
from energymt.models import load_translator
from energymt.models.scoring import score_lines
from tests import estimators, tiny
from tests.terminal import Done, quick

ESTIMATOR = str(estimators.converted("kiwi"))
TRANSLATIONS = [text or "a book ." for text in estimators.TRANSLATIONS]
PAIRS = list(zip(estimators.SOURCES, TRANSLATIONS, strict=True))
COLUMNS = ("--source", "de", "--target", "en")


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny translator of the sentences above; to read."""
    folder = tmp_path_factory.mktemp("translator") / "model"
    vocabulary = SentencePieceVocabulary.train([*estimators.SOURCES, *TRANSLATIONS], 90)
    tiny.scratch(vocabulary).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, translator: Path) -> Path:
    """Pairs as TSV and as text, and the translator."""
    lines = ["de\ten", *("\t".join(pair) for pair in PAIRS)]
    (tmp_path / "pairs.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    (tmp_path / "more.txt").write_text("".join(f"{text}\n" for text in [*TRANSLATIONS, *estimators.SOURCES]), "utf-8")
    shutil.copytree(translator, tmp_path / "model")
    return tmp_path


def choose(folder: Path, *options: str, estimator: str = ESTIMATOR) -> Done:
    return quick("data", "filter", estimator, "--data", "pairs.tsv", "--output", "kept.tsv", *options, folder=folder)


def test_the_pairs_to_choose_from_may_be_a_share(folder: Path) -> None:
    config = DataConfig(path=str(folder / "pairs.tsv"), source="de", target="en", share=0.6, share_seed=3)
    done = choose(folder, *COLUMNS, "--quantile", "1", "--share", "0.6", "--share-seed", "3")
    assert done.code == 0 and "holds 3 of 3 pairs" in done.out
    kept = read_corpus(DataConfig(path=str(folder / "kept.tsv"), source="source", target="target"))
    assert (kept.source, kept.target) == (read_corpus(config).source, read_corpus(config).target)
    choose(folder, *COLUMNS, "--quantile", "1", "--share", "0").refuses(2, "--share is above 0", "not 0.")


def plain(folder: Path) -> DataConfig:
    """A pair of plain text files whose names tell nothing, as a run reads them."""
    for name, column in (("train.de", 0), ("train.en", 1)):
        (folder / name).write_text("".join(f"{pair[column]}\n" for pair in PAIRS), "utf-8")
    paths = {"path": str(folder / "train.de"), "target_path": str(folder / "train.en")}
    return DataConfig(**paths, format="text", rows=4, share=0.5, share_seed=3)


def test_a_pair_of_plain_files_is_read_as_a_run_reads_it(folder: Path) -> None:
    labelled = read_corpus(plain(folder))
    text = ("--data", "train.de", "--target-path", "train.en", "--format", "text")
    done = choose(folder, *text, "--rows", "4", "--share", "0.5", "--share-seed", "3", "--quantile", "1")
    assert (done.code, done.err) == (0, "")
    kept = read_corpus(DataConfig(path=str(folder / "kept.tsv"), source="source", target="target"))
    assert (kept.source, kept.target) == (labelled.source, labelled.target) and len(kept) == 2


def near(folder: Path, *options: str) -> Done:
    return quick("data", "neighbours", "--output", "near", *options, folder=folder)


# ------------------------------------------------------------------------------------------------- energymt data filter


def test_what_scores_well_is_written_with_its_score(folder: Path) -> None:
    scores = score_lines(estimators.estimator("kiwi"), *map(list, zip(*PAIRS, strict=True)))
    least = sorted(scores)[-2]
    done = choose(folder, *COLUMNS, "--quantile", "0.4")
    assert (done.code, done.err) == (0, "")
    counted, spread = done.out.splitlines()
    assert counted == f"kept.tsv holds 2 of 5 pairs, which score {least:.4f} or more."
    assert spread.startswith(f"all scores: lowest {min(scores):.4f}, 10 % ")
    assert f"median {sorted(scores)[2]:.4f}" in spread and spread.endswith(f"highest {max(scores):.4f}")
    with (folder / "kept.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    wanted = [(pair, score) for pair, score in zip(PAIRS, scores, strict=True) if score >= least]
    assert [(row["source"], row["target"]) for row in rows] == [pair for pair, _ in wanted]
    assert [float(row["score"]) for row in rows] == pytest.approx([score for _, score in wanted], abs=1e-5)
    again = choose(folder, *COLUMNS, "--threshold", f"{least - 1e-4:.6f}")
    assert (again.code, again.err) == (0, "") and again.out.startswith("kept.tsv holds 2 of 5 pairs, which score ")


def test_no_pair_is_scored_by_a_second_call(folder: Path) -> None:
    shutil.copytree(ESTIMATOR, folder / "metric")
    assert choose(folder, *COLUMNS, "--quantile", "1", estimator="metric").code == 0
    (store,) = (folder / "runs" / "scores").iterdir()
    records = [json.loads(line) for line in store.read_text("utf-8").splitlines()]
    assert len(records) == 5
    # Scores that no estimator gives: a second call believes them.
    store.write_text("".join(json.dumps({**record, "score": 7.0}) + "\n" for record in records), "utf-8")
    done = choose(folder, *COLUMNS, "--threshold", "7", estimator="metric")
    assert done.out.startswith("kept.tsv holds 5 of 5 pairs, which score 7.0000 or more.\n")
    os.truncate(store, store.stat().st_size - 10)
    done = choose(folder, *COLUMNS, "--threshold", "7", estimator="metric")
    assert done.out.startswith("kept.tsv holds 4 of 5 pairs")
    (folder / "metric" / "energymt.json").unlink()
    settings = json.loads((folder / "metric" / "config.json").read_text("utf-8"))
    (folder / "metric" / "config.json").write_text(json.dumps({**settings, "layer_norm_eps": 0.1}), "utf-8")
    done = choose(folder, *COLUMNS, "--quantile", "1", estimator="metric")
    assert done.code == 0 and "highest 7.0000" not in done.out, "another estimator has scores of its own"


@pytest.mark.parametrize(
    "arguments, code, parts",
    [
        (COLUMNS, 2, ["exactly one"]),
        ([*COLUMNS, "--threshold", "0.5", "--quantile", "0.5"], 2, ["exactly one"]),
        ([*COLUMNS, "--quantile", "20"], 2, ["share of the pairs", "20"]),
        ([*COLUMNS, "--threshold", "high"], 2, ["--threshold", "valid number"]),
        ([*COLUMNS, "--threshold", "99"], 4, ["None of the 5 pairs of pairs.tsv", "99 or more", "highest score is"]),
        ([*COLUMNS[:-1], "english", "--quantile", "1"], 4, ["pairs.tsv:1", "'english'", "did you mean 'en'?"]),
        ([*COLUMNS, "--quantile", "1", "--output", "nowhere/kept.tsv"], 2, ["--output nowhere/kept.tsv"]),
        ([*COLUMNS, "--quantile", "1", "--data", "none.tsv"], 4, ["none.tsv does not exist"]),
    ],
)
def test_a_filter_that_cannot_be(arguments: list[str], code: int, parts: list[str], folder: Path) -> None:
    choose(folder, *arguments).refuses(code, *parts)
    assert not (folder / "kept.tsv").exists()


def test_pairs_with_an_empty_side(folder: Path) -> None:
    (folder / "pairs.tsv").write_text("de\ten\nein Buch\ta book\nein Hund\t\n", "utf-8")
    choose(folder, *COLUMNS, "--quantile", "1").refuses(4, "pairs.tsv:3", "'en' is empty")


def test_text_with_tabs_and_line_breaks_keeps_its_row(folder: Path) -> None:
    records = [{"de": "ein\tBuch", "en": "a\r\nbook"}, {"de": "ein\nHund", "en": "a\rdog\t"}]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    assert choose(folder, *COLUMNS, "--quantile", "1", "--data", "pairs.jsonl").code == 0
    rows = [line.split("\t")[:-1] for line in (folder / "kept.tsv").read_bytes().decode("utf-8").split("\n")[1:-1]]
    assert rows == [["ein Buch", "a book"], ["ein Hund", "a dog"]]


@pytest.mark.parametrize("value", [0.25, float("nan")])
def test_a_pool_is_left_whatever_happens(value: float, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from energymt import quality
    from energymt.commands.selection import filter_data
    from energymt.pool import opening

    told: list[str] = []

    def opened(address: str, device: torch.device) -> quality.Quality:
        told.append(f"open {address}")
        return quality.Quality(
            estimators.estimator("kiwi"),
            lambda sources, _: [value] * len(sources),
            close=lambda: told.append("close"),
        )

    def frozen_address(name: str) -> str:
        told.append(f"ask {name}")  # in a Ray that was joined before
        return ESTIMATOR

    monkeypatch.setattr(quality, "open_quality", opened)
    monkeypatch.setattr(opening, "frozen_address", frozen_address)
    monkeypatch.setenv("ENERGYMT_RUNS", str(folder / "runs"))
    kept, columns = folder / "kept.tsv", {"source": "de", "target": "en", "target_path": None}
    with nullcontext() if value == value else pytest.raises(DataError, match="5 of 5 scores"):
        filter_data("pool:default", str(folder / "pairs.tsv"), kept, **columns, threshold=0.2, quantile=None)
    assert told == ["open pool:default", "ask default", "close"]
    assert kept.exists() == (value == value)


def test_what_is_no_estimator_of_the_source_alone(folder: Path) -> None:
    regression = str(estimators.converted("regression"))
    options = (*COLUMNS, "--quantile", "1")
    choose(folder, *options, estimator=regression).refuses(2, "compares with references", "COMET-KIWI")
    choose(folder, *options, estimator="model").refuses(5, "model holds no estimator")
    choose(folder, *options, estimator="nowhere/model").refuses(5, "nowhere/model")
    assert not (folder / "kept.tsv").exists() and not (folder / "runs").exists()


# --------------------------------------------------------------------------------------------- energymt data neighbours


def test_neighbours_of_a_share_of_the_pairs(folder: Path) -> None:
    options = ("--labelled", "pairs.tsv", "--unlabelled", "more.txt", "--source", "de", "--count", "2")
    done = near(folder, "model", *options, "--share", "0.6", "--share-seed", "3")
    assert (done.code, done.err) == (0, "")
    assert done.out == "near holds the 2 nearest of 10 sentences for each of 3.\n"
    config = DataConfig(path=str(folder / "pairs.tsv"), source="de", target="en", share=0.6, share_seed=3)
    labelled = read_corpus(config)
    unlabelled = read_corpus(DataConfig(path=str(folder / "more.txt")), need_target=False)
    rows_NK = load_neighbours(folder / "near", labelled, unlabelled)
    vectors = mean_states(load_translator(folder / "model"), unlabelled.source)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for text, rows in zip(labelled.source, rows_NK.tolist(), strict=True):
        own = unlabelled.source.index(text)
        order = np.argsort(-(vectors @ vectors[own])).tolist()
        assert rows == [row for row in order if row != own][:2]


def test_neighbours_of_a_pair_of_plain_files(folder: Path) -> None:
    config = plain(folder)
    labelled = ("--labelled", "train.de", "--format", "text", "--rows", "4", "--share", "0.5", "--share-seed", "3")
    unlabelled = ("--unlabelled", "train.de", "--unlabelled-format", "text", "--unlabelled-rows", "3")
    done = near(folder, "model", *labelled, *unlabelled)
    assert (done.code, done.err) == (0, "")
    assert done.out == "near holds the 1 nearest of 3 sentences for each of 2.\n"
    others = DataConfig(path=str(folder / "train.de"), format="text", rows=3)
    assert len(load_neighbours(folder / "near", read_corpus(config), read_corpus(others, need_target=False))) == 2


def test_neighbours_among_several_texts(folder: Path) -> None:
    options = ("--labelled", "pairs.tsv", "--unlabelled", "pairs.tsv", "--unlabelled", "more.txt", "--source", "de")
    done = near(folder, "model", *options)
    assert done.out == "near holds the 1 nearest of 15 sentences for each of 5.\n"
    also = [TextConfig(path=str(folder / "more.txt"))]
    unlabelled = DataConfig(path=str(folder / "pairs.tsv"), source="de", also=also)
    labelled = read_corpus(DataConfig(path=str(folder / "pairs.tsv"), source="de", target="en"))
    assert len(load_neighbours(folder / "near", labelled, read_corpus(unlabelled, need_target=False))) == 5


@pytest.mark.parametrize(
    "arguments, code, parts",
    [
        ([], 2, ["--sentence-transformer", "one of the two"]),
        (["model", "--sentence-transformer", "model"], 2, ["one of the two"]),
        (["model", "--source", "german"], 4, ["pairs.tsv:1", "'german'", "did you mean"]),
        (["model", "--share", "0"], 2, ["--share", "not 0"]),
        (["model", "--share", "0.01"], 4, ["share of 0.01 of the 5 pairs of pairs.tsv is none"]),
        (["model", "--count", "5"], 4, ["pairs.tsv", "4 different sentences beside", "5 neighbours"]),
        (["model", "--unlabelled", "none.txt"], 4, ["none.txt does not exist"]),
        (["nowhere/model"], 5, ["nowhere/model"]),
        ([ESTIMATOR], 5, ["holds no translator"]),
        (["model", "--output", "model"], 5, ["model holds other files than neighbours", "name a new folder"]),
    ],
)
def test_neighbours_that_cannot_be_found(arguments: list[str], code: int, parts: list[str], folder: Path) -> None:
    files = ("--labelled", "pairs.tsv", "--unlabelled", "pairs.tsv", "--source", "de")
    near(folder, *files, *arguments).refuses(code, *parts)
    assert not (folder / "near").exists()


def test_text_with_an_empty_line_has_no_neighbours(folder: Path) -> None:
    (folder / "more.txt").write_text("ein Buch\n\nein Hund\n", "utf-8")
    files = ("--labelled", "pairs.tsv", "--unlabelled", "more.txt", "--source", "de")
    near(folder, "model", *files).refuses(4, "more.txt:2 is empty")
