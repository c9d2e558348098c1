"""Labels: what a metric says of a model's own greedy outputs, once for the same content, and never useless numbers."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from energymt import labels
from energymt.data.corpus import DataConfig, read_corpus
from energymt.data.selection import folder_fingerprint
from energymt.decoding.translate import DecodingOptions, Translator
from energymt.errors import ConfigurationError, DataError, StorageError
from energymt.folders import weights_fingerprint, write_manifest
from energymt.labels import Labelled, label_text
from energymt.models import load_translator
from energymt.models.scoring import score_lines
from tests import estimators, toy

CPU = torch.device("cpu")
COLUMNS = {"source": "source", "target": "target"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.scored_world(tmp_path_factory.mktemp("world"), train=20, dev=12)


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENERGYMT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def label(folder: Path, metric: str, model: str = "transformer-toy", **data: Any) -> Labelled:
    data = {"path": str(folder / "dev.tsv"), **COLUMNS, **data}
    translator = load_translator(folder / model)
    return label_text(translator, folder_fingerprint(folder / model), DataConfig(**data), metric, CPU)


def outputs(folder: Path, model: str = "transformer-toy") -> list[str]:
    """One pass of the best length, or greedy."""
    corpus = read_corpus(DataConfig(path=str(folder / "dev.tsv"), **COLUMNS))
    options = DecodingOptions(beam=1, length_beam=1, iterations=1)
    return [best[0] for [best] in Translator(load_translator(folder / model), options).translate(corpus.source)]


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """How many lines each call of `owner.name` was given."""
    asked: list[int] = []
    real: Callable[..., Any] = getattr(owner, name)

    def call(*arguments: Any, **options: Any) -> Any:
        asked.append(len(arguments[1]))
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, call)
    return asked


# -------------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("model", ["transformer-toy", "recurrent-toy", "masked-toy"])
def test_the_outputs_are_the_model_s_own(model: str, folder: Path) -> None:
    found = label(folder, "chrf", model)
    assert found.outputs == outputs(folder, model)
    assert len(set(found.outputs)) > 1


@pytest.mark.parametrize("metric", ["chrf", "bleu"])
def test_sentence_metrics_are_those_of_sacrebleu(metric: str, folder: Path, tmp_path: Path) -> None:
    sources = read_corpus(DataConfig(path=str(folder / "dev.tsv"), **COLUMNS)).source
    own = outputs(folder)
    references = [
        output if row % 3 else f"mare {output} {source}"
        for row, (source, output) in enumerate(zip(sources, own, strict=True))
    ]
    rows = [f"{source}\t{reference}" for source, reference in zip(sources, references, strict=True)]
    (tmp_path / "close.tsv").write_text("\n".join(["source\ttarget", *rows]) + "\n", "utf-8")
    found = label(folder, metric, path=str(tmp_path / "close.tsv"))
    judge = CHRF() if metric == "chrf" else BLEU(effective_order=True)
    pairs = list(zip(own, references, strict=True))
    assert found.labels_N.tolist() == [judge.sentence_score(output, [reference]).score for output, reference in pairs]
    assert len(set(found.labels_N)) > 2 and found.corpus.source == sources


def test_an_estimator_reads_sources_and_outputs(folder: Path) -> None:
    from energymt.models.estimator_folder import load_estimator

    found = label(folder, str(folder / "estimator"), target=None)
    wanted = score_lines(load_estimator(folder / "estimator"), found.corpus.source, outputs(folder))
    assert found.labels_N.tolist() == pytest.approx(wanted, abs=1e-5)
    assert found.corpus.target is None, "it needs no references"


def test_a_metric_that_compares_reads_references(folder: Path) -> None:
    metric = str(estimators.converted("regression"))
    found = label(folder, metric)
    assert found.corpus.target is not None
    wanted = score_lines(estimators.estimator("regression"), found.corpus.source, outputs(folder), found.corpus.target)
    assert found.labels_N.tolist() == pytest.approx(wanted, abs=1e-5)


def test_a_column_is_taken_as_it_is(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = counted(monkeypatch, Translator, "translate")
    (tmp_path / "wer.tsv").write_text("source\twer\nmare\t0.5\nvute mare\t0\nvute\t1.25\n", "utf-8")
    found = label(folder, "column:wer", path=str(tmp_path / "wer.tsv"), target=None)
    assert found.labels_N.tolist() == [0.5, 0.0, 1.25] and found.outputs is None
    assert found.corpus.source == ["mare", "vute mare", "vute"]
    assert asked == []


def test_a_prefix_is_read_by_the_model_alone(folder: Path) -> None:
    prefix = read_corpus(DataConfig(path=str(folder / "train.tsv"), **COLUMNS)).source[3] + " "
    plain, found = label(folder, "chrf"), label(folder, "chrf", prefix=prefix)
    corpus = read_corpus(DataConfig(path=str(folder / "dev.tsv"), **COLUMNS))
    translator = Translator(load_translator(folder / "transformer-toy"), DecodingOptions(beam=1))
    assert found.outputs == [best[0] for [best] in translator.translate([prefix + text for text in corpus.source])]
    assert found.outputs != plain.outputs and found.corpus.source == corpus.source
    quality = label(folder, str(folder / "estimator"), prefix=prefix)
    from energymt.models.estimator_folder import load_estimator

    wanted = score_lines(load_estimator(folder / "estimator"), corpus.source, quality.outputs or [])
    assert quality.labels_N.tolist() == pytest.approx(wanted, abs=1e-5)


# ------------------------------------------------------------------------------------------------------------ the cache


def test_the_same_content_is_computed_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = label(folder, str(folder / "estimator"))
    translated, scored = counted(monkeypatch, Translator, "translate"), counted(monkeypatch, labels, "open_judge")
    shutil.copytree(folder / "estimator", tmp_path / "elsewhere")
    write_manifest(tmp_path / "elsewhere", {"trained": "yesterday"})
    again = label(folder, str(tmp_path / "elsewhere"))
    assert again.labels_N.tolist() == first.labels_N.tolist() and again.outputs == first.outputs
    assert (translated, scored) == ([], []), "neither translated nor was an estimator loaded"


def test_other_content_is_computed_anew(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = label(folder, str(folder / "estimator"))
    translated = counted(monkeypatch, Translator, "translate")
    other = label(folder, str(folder / "judge"))
    assert translated == [] and other.labels_N.tolist() != first.labels_N.tolist()
    label(folder, "chrf")
    assert translated == [], "outputs are those of every metric"
    text = (folder / "dev.tsv").read_text("utf-8").splitlines()
    (tmp_path / "changed.tsv").write_text("\n".join([*text[:-1], "vute mare\tx"]) + "\n", "utf-8")
    label(folder, str(folder / "estimator"), path=str(tmp_path / "changed.tsv"))
    assert translated == [12]
    label(folder, "chrf", "recurrent-toy")
    assert translated == [12, 12], "another model"


def test_other_references_are_compared_anew(folder: Path, tmp_path: Path) -> None:
    first = label(folder, "chrf")
    rows = [line.split("\t") for line in (folder / "dev.tsv").read_text("utf-8").splitlines()]
    turned = [rows[0], *([source, target] for (source, _), (_, target) in zip(rows[1:], rows[:0:-1], strict=True))]
    (tmp_path / "turned.tsv").write_text("\n".join("\t".join(row) for row in turned) + "\n", "utf-8")
    second = label(folder, "chrf", path=str(tmp_path / "turned.tsv"))
    assert second.outputs == first.outputs and second.labels_N.tolist() != first.labels_N.tolist()


def test_the_same_weights_with_another_start_token_have_other_outputs(folder: Path, tmp_path: Path) -> None:
    """As two folders of a many-language model, which differ in the language to translate into."""
    plain = label(folder, "chrf")
    model = load_translator(folder / "transformer-toy")
    model.prefix_ids = (*model.prefix_ids, 9)
    model.save(tmp_path / "transformer-toy")
    assert weights_fingerprint(tmp_path / "transformer-toy") == weights_fingerprint(folder / "transformer-toy")
    wanted = outputs_of(tmp_path / "transformer-toy", folder)
    found = label(tmp_path, "chrf", path=str(folder / "dev.tsv"))
    assert found.outputs == wanted != plain.outputs


def outputs_of(model: Path, folder: Path) -> list[str]:
    corpus = read_corpus(DataConfig(path=str(folder / "dev.tsv"), **COLUMNS))
    translator = Translator(load_translator(model), DecodingOptions(beam=1))
    return [best[0] for [best] in translator.translate(corpus.source)]


# ------------------------------------------------------------------------------------------------------------- refusals


def test_labels_that_are_all_equal_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "flat.tsv").write_text("source\twer\nmare\t0.5\nvute mare\t0.5\n", "utf-8")
    with pytest.raises(DataError, match=r"All 2 labels \(column 'wer' of .*flat.tsv\) are 0.5.*undefined"):
        label(folder, "column:wer", path=str(tmp_path / "flat.tsv"), target=None)
    with pytest.raises(DataError, match="All 1 labels"):
        label(folder, "chrf", rows=1)


@pytest.mark.parametrize("value", ["nan", "inf", "good", ""])
def test_a_column_that_holds_no_number_is_refused(value: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.tsv").write_text(f"source\twer\nmare\t0.5\nvute mare\t{value}\n", "utf-8")
    with pytest.raises(DataError, match=r"bad.tsv:3"):
        label(folder, "column:wer", path=str(tmp_path / "bad.tsv"), target=None)


def test_a_metric_that_says_nan_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(sources: Any, translations: Any, references: Any) -> list[float]:
        return [float("nan") if row in (4, 7) else float(row) for row in range(len(sources))]

    monkeypatch.setattr(labels, "open_judge", lambda name, device: judge)
    with pytest.raises(DataError, match=r"2 of 12 labels .* no finite number, the first one that of sentence 5"):
        label(folder, str(folder / "estimator"))


@pytest.mark.parametrize("metric", ["chrf", "regression"])
def test_references_that_are_needed_and_not_there(metric: str, folder: Path) -> None:
    metric = str(estimators.converted(metric)) if metric == "regression" else metric
    with pytest.raises(ConfigurationError, match="name that of the translations in target"):
        label(folder, metric, target=None)


def test_an_address_that_holds_no_metric(folder: Path) -> None:
    with pytest.raises(StorageError, match="transformer-toy holds no estimator"):
        label(folder, str(folder / "transformer-toy"))
    assert np.isfinite(label(folder, "chrf").labels_N).all()
