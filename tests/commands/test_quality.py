"""`energymt models import` of a COMET checkpoint and `energymt score` with the estimator made of it."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from energymt.commands import translation
from energymt.folders import verify_manifest
from energymt.models.scoring import score_lines
from energymt.pool import opening
from energymt.pool.client import Client
from energymt.pool.settings import PoolConfig
from tests import estimators
from tests.pool.pools import Threads, replica
from tests.terminal import Done, quick

SIDES = {
    "source": estimators.SOURCES,
    "target": estimators.TRANSLATIONS,  # one of them is empty
    "reference": estimators.REFERENCES,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the texts of `tests.estimators`."""
    for name, lines in SIDES.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return tmp_path


def score(estimator: str, folder: Path, *options: str, **sides: str) -> Done:
    names = {"source": "source", "target": "target", **sides}
    files = [part for side, file in names.items() for part in (f"--{side}", file)]
    return quick("score", estimator, *files, *options, folder=folder)


def comet(folder: Path, kind: str = "kiwi", **changes: object) -> str:
    """A COMET checkpoint in the folder; its name."""
    return estimators.official(folder / "comet", kind, **changes).name


@pytest.mark.parametrize("kind", ["kiwi", "referenceless"])
def test_an_imported_metric_scores_text_as_itself(kind: str, folder: Path) -> None:
    done = quick("models", "import", comet(folder, kind), "metric", folder=folder)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"metric holds a {estimators.KINDS[kind]['metric']} that reads mt, src.\n"
    assert verify_manifest(folder / "metric")["converted"] == "comet"
    scored = score("metric", folder)
    assert (scored.code, scored.err) == (0, "")
    wanted = score_lines(estimators.estimator(kind), SIDES["source"], SIDES["target"])
    assert [float(line) for line in scored.out.splitlines()] == pytest.approx(wanted, abs=6e-5)
    assert all(re.fullmatch(r"-?\d+\.\d{4}", line) for line in scored.out.splitlines())


@pytest.mark.parametrize("kind", ["regression", "unified", "xcomet"])
def test_references_are_read_by_metrics_that_compare(kind: str, folder: Path) -> None:
    metric = str(estimators.converted(kind))
    found = [float(line) for line in score(metric, folder, reference="reference").out.splitlines()]
    assert found == pytest.approx(score_lines(estimators.estimator(kind), *SIDES.values()), abs=6e-5)
    if kind == "regression":
        score(metric, folder).refuses(2, "regression_metric", "references", "give them")
    else:
        assert [float(line) for line in score(metric, folder).out.splitlines()] != found


def test_a_note_on_what_was_left_out_is_shown(folder: Path) -> None:
    import torch

    state = {**estimators.weights("kiwi"), "hidden2tag.weight": torch.ones(3, 12), "hidden2tag.bias": torch.ones(3)}
    estimators.official(folder / "comet", "kiwi", state)
    done = quick("models", "import", "comet/checkpoints/model.ckpt", "metric", folder=folder)
    assert done.code == 0 and "word-level head was left out" in done.out.splitlines()[0]


def test_the_tokenizer_may_be_given(folder: Path) -> None:
    name = comet(folder, pretrained_model="/no/such/encoder")
    options = ("--tokenizer", str(estimators.pretrained()))
    assert quick("models", "import", name, "metric", *options, folder=folder).code == 0
    assert score("metric", folder).code == 0


def test_a_long_line_is_scored_to_its_limit_and_named(folder: Path) -> None:
    (folder / "target").write_text("\n".join(["a book . " * 1112, *SIDES["target"][1:]]) + "\n", "utf-8")
    done = score(str(estimators.converted("kiwi")), folder)
    cut = ["a book . " * 100, *SIDES["target"][1:]]
    wanted = score_lines(estimators.estimator("kiwi"), SIDES["source"], cut)
    assert [float(line) for line in done.out.splitlines()] == pytest.approx(wanted, abs=6e-5)
    assert re.fullmatch(r"target:1 has \d{4} tokens and the limit is 84: its end is cut off\.\n", done.err)


def test_a_pool_names_it_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "target").write_text("\n".join(["a book . " * 112, *SIDES["target"][1:]]) + "\n", "utf-8")
    model, settings = estimators.estimator("kiwi"), PoolConfig(estimator=str(estimators.converted("kiwi")))
    threads = Threads([replica()])
    connection = SimpleNamespace(client=Client(threads, deadline=120.0), close=threads.close)
    status = {"settings": settings.model_dump(mode="json"), "learns": None}
    monkeypatch.setattr(opening, "Connection", lambda *arguments, **options: connection)
    monkeypatch.setattr(opening.lifecycle, "status", lambda name: status)
    monkeypatch.setattr(opening.ray, "is_initialized", lambda: True)
    assert translation.score("pool:default", folder / "source", folder / "target") == 0
    wanted = score_lines(model, SIDES["source"], ["a book . " * 100, *SIDES["target"][1:]])
    assert [float(line) for line in capsys.readouterr().out.splitlines()] == pytest.approx(wanted, abs=6e-5)
    [told] = caplog.messages
    assert re.search(r"target:1 has \d{3} tokens and the limit is 84: its end is cut off", told)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    "changes, code, parts",
    [
        ({"class_identifier": "ranking_metric"}, 2, ["comet/hparams.yaml", "'ranking_metric'", "unified_metric"]),
        ({"encoder_model": "RemBERT"}, 2, ["'RemBERT'", "XLM-RoBERTa"]),
        ({"pretrained_model": "/no/such/encoder"}, 5, ["tokenizer", "/no/such/encoder", "give the address"]),
    ],
)
def test_a_checkpoint_that_no_estimator_can_be(changes: dict, code: int, parts: list[str], folder: Path) -> None:
    quick("models", "import", comet(folder, **changes), "metric", folder=folder).refuses(code, *parts)
    assert not (folder / "metric").exists()


def test_what_is_no_checkpoint_is_one_sentence(folder: Path) -> None:
    (folder / "empty").mkdir()
    parts = ["empty holds no checkpoint", "config.json", "hparams.yaml"]
    quick("models", "import", "empty", "metric", folder=folder).refuses(5, *parts)
    name = comet(folder)
    options = {
        "--source-language": ("de_DE", [name, "languages"]),
        "--source-prefix": ("translate: ", [name, "prefix"]),
    }
    for option, (value, said) in options.items():
        quick("models", "import", name, "metric", option, value, folder=folder).refuses(2, *said)
    quick("models", "import", name, "empty", folder=folder).refuses(2, "empty is there already", "new folder")
    os.truncate(folder / name / "checkpoints" / "model.ckpt", 1000)
    quick("models", "import", name, "metric", folder=folder).refuses(5, "model.ckpt", "cut or damaged")
    encoder = str(estimators.pretrained())
    quick("models", "import", encoder, "metric", "--tokenizer", encoder, folder=folder).refuses(2, "drop --tokenizer")
    assert sorted(path.name for path in folder.iterdir()) == ["comet", "empty", "reference", "source", "target"]


def test_a_checkpoint_is_not_scored_with_before_it_is_imported(folder: Path) -> None:
    score(comet(folder), folder).refuses(5, "comet is a COMET checkpoint", "energymt models import comet FOLDER")


def test_a_damaged_estimator_is_named(folder: Path) -> None:
    assert quick("models", "import", comet(folder), "metric", folder=folder).code == 0
    os.truncate(folder / "metric" / "head.safetensors", 100)
    score("metric", folder).refuses(5, "metric/head.safetensors", "it was cut")
    (folder / "metric" / "energymt.json").unlink()
    score("metric", folder).refuses(5, "metric", "copy the whole folder again")
    (folder / "metric" / "estimator.json").write_text(json.dumps({"metric": "unified_metric"}))
    score("metric", folder).refuses(5, "metric/estimator.json is damaged")


@pytest.mark.parametrize(
    "change, code, parts",
    [
        ({"source": b"ein Buch .\n\nzwei\n"}, 4, ["source:2 is empty", "every source", "remove"]),
        ({"reference": b"a book .\n \n"}, 4, ["reference:2 is empty", "every reference"]),
        ({"target": b"a book .\n"}, 4, ["source has 5 lines and target has 1", "line n"]),
        ({"reference": b"a book .\n"}, 4, ["source has 5 lines and reference has 1"]),
        ({"target": b"a \xff\n"}, 4, ["target:1 is not UTF-8", "column 3"]),
        ({"source": b""}, 4, ["source holds no line"]),
        ({"source": None}, 4, ["source does not exist"]),
    ],
)
def test_texts_that_cannot_be_scored(
    change: dict[str, bytes | None], code: int, parts: list[str], folder: Path
) -> None:
    for name, content in change.items():
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    done = score(str(estimators.converted("unified")), folder, reference="reference")
    done.refuses(code, *parts)
    assert done.out == ""


def test_references_that_nobody_reads_are_refused(folder: Path) -> None:
    score(str(estimators.converted("kiwi")), folder, reference="reference").refuses(2, "reads no references", "drop")
    (folder / "nothing").mkdir()
    score("nothing", folder, reference="reference").refuses(2, "no quality estimator", "drop --reference")
