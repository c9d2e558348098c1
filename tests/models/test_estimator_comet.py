"""Converted checkpoints score as unbabel-comet does: built by its classes, saved by Lightning, scored by `predict`."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from energymt.models.comet_checkpoint import convert_comet
from energymt.models.estimator_folder import load_estimator
from energymt.models.scoring import score_lines
from tests import estimators

comet = pytest.importorskip("comet")
ptl = pytest.importorskip("pytorch_lightning")

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "kiwi-sparsemax": ("unified_metric", {"input_segments": ["mt", "src"]}),
    "kiwi-softmax": ("unified_metric", {"input_segments": ["mt", "src"], "layer_transformation": "softmax"}),
    "kiwi-no-layer-norm": ("unified_metric", {"input_segments": ["mt", "src"], "layer_norm": False}),
    "kiwi-one-layer": ("unified_metric", {"input_segments": ["mt", "src"], "sent_layer": 1}),
    "kiwi-words": ("unified_metric", {"input_segments": ["mt", "src"], "word_level_training": True, "word_layer": 1}),
    "kiwi-minilm": ("unified_metric", {"input_segments": ["mt", "src"], "encoder_model": "MiniLM"}),
    "unified": ("unified_metric", {}),
    "unified-references": ("unified_metric", {"input_segments": ["mt", "ref"]}),
    "referenceless-avg": ("referenceless_regression_metric", {}),
    "referenceless-max": ("referenceless_regression_metric", {"pool": "max", "layer_transformation": "sparsemax"}),
    "referenceless-cls": ("referenceless_regression_metric", {"pool": "cls", "layer_norm": False}),
    "referenceless-default": ("referenceless_regression_metric", {"pool": "default"}),
    "referenceless-layer": ("referenceless_regression_metric", {"layer": 1}),
    "regression": ("regression_metric", {"final_activation": "Sigmoid"}),
    "regression-max": ("regression_metric", {"pool": "max", "activations": "Sigmoid"}),
    "xcomet": ("xcomet_metric", {"word_layer": 2}),
    "xcomet-xl": ("xcomet_metric", {"word_layer": 1, "encoder_model": "XLM-RoBERTa-XL"}),
}
QUIET = {"progress_bar": False, "gpus": 0, "num_workers": 0, "batch_size": 3}
LONG = [estimators.LONG, "ein Buch .", estimators.LONG]  # a text alone, and a joint input, beyond the limits
LONG_TRANSLATIONS = ["a woman reads a book .", " ".join(estimators.TRANSLATIONS * 3), " ".join(estimators.TRANSLATIONS)]
LONG_REFERENCES = ["a book .", " ".join(estimators.REFERENCES), " ".join(estimators.REFERENCES * 3)]

Save = Callable[..., Path]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning is silent, and MiniLM finds its tokenizer, which COMET names by a fixed id, without a network."""
    from comet.encoders import minilm

    class Tokenizer(minilm.XLMRobertaTokenizerFast):
        @classmethod
        def from_pretrained(cls, name: str, **options: Any) -> Any:
            place = estimators.pretrained("MiniLM") if name == "xlm-roberta-base" else name
            return super().from_pretrained(place, **options)

    monkeypatch.setattr(minilm, "XLMRobertaTokenizerFast", Tokenizer)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """A COMET folder of a new model with random weights."""

    def write(metric: str, **hparams: Any) -> Path:
        family = hparams.get("encoder_model", "XLM-RoBERTa")
        chosen = {"encoder_model": family, "pretrained_model": str(estimators.pretrained(family)), **hparams}
        torch.manual_seed(11)
        model = comet.models.str2model[metric](hidden_sizes=estimators.HIDDEN, **chosen)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not name.startswith("encoder."):
                    parameter.add_(torch.randn_like(parameter) * 0.4)
            model.estimator.ff[6].bias -= 0.5  # so that not every score of XCOMET is cut at 1
        trainer = ptl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path)
        trainer.strategy.connect(model)
        trainer.save_checkpoint(tmp_path / "comet" / "checkpoints" / "model.ckpt")
        listed = {**model.hparams, "class_identifier": metric}
        (tmp_path / "comet" / "hparams.yaml").write_text(yaml.safe_dump(listed))
        return tmp_path / "comet"

    return write


def theirs(folder: Path, sources: list[str], translations: list[str], references: list[str] | None) -> list[float]:
    model = comet.load_from_checkpoint(folder / "checkpoints" / "model.ckpt", strict=True, local_files_only=True)
    columns = {"src": sources, "mt": translations} | ({} if references is None else {"ref": references})
    samples = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return model.predict(samples, **QUIET)["scores"]


def ours(folder: Path, sources: list[str], translations: list[str], references: list[str] | None) -> list[float]:
    family = yaml.safe_load((folder / "hparams.yaml").read_text())["encoder_model"]
    convert_comet(folder, folder.parent / "estimator", estimators.pretrained(family))
    model = load_estimator(folder.parent / "estimator")
    return score_lines(model, sources, translations, references, tokens_per_batch=100)


@pytest.mark.parametrize("case", CASES)
def test_scores_are_those_of_comet(case: str, save: Save) -> None:
    metric, hparams = CASES[case]
    folder = save(metric, **hparams)
    for references in (None, estimators.REFERENCES):
        needed = metric == "regression_metric" or hparams.get("input_segments") == ["mt", "ref"]
        if references is None and needed:
            continue
        texts = (estimators.SOURCES, estimators.TRANSLATIONS, references)
        wanted = theirs(folder, *texts)
        assert max(wanted) - min(wanted) > 1e-2
        assert ours(folder, *texts) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("case", ["kiwi-sparsemax", "unified", "referenceless-avg", "regression", "xcomet"])
def test_texts_beyond_the_limits_are_cut_as_comet_cuts_them(case: str, save: Save) -> None:
    metric, hparams = CASES[case]
    folder = save(metric, **hparams)
    wanted = theirs(folder, LONG, LONG_TRANSLATIONS, LONG_REFERENCES)
    assert ours(folder, LONG, LONG_TRANSLATIONS, LONG_REFERENCES) == pytest.approx(wanted, abs=1e-5)


def test_special_tokens_written_in_a_text_count_as_in_comet(save: Save) -> None:
    folder = save("unified_metric", input_segments=["mt", "src"])
    texts = (["ein </s> Buch .", "<pad> ein Buch"], ["a <pad> book .", "a <mask> <s> book"], None)
    assert ours(folder, *texts) == pytest.approx(theirs(folder, *texts), abs=1e-5)


@pytest.mark.parametrize("listed, inside", [("sparsemax_patch", "sparsemax"), ("sparsemax", "softmax")])
def test_which_settings_count_when_file_and_checkpoint_disagree(listed: str, inside: str, save: Save) -> None:
    folder = save("unified_metric", input_segments=["mt", "src"], layer_transformation=inside)
    file = folder / "hparams.yaml"
    file.write_text(file.read_text().replace(f"layer_transformation: {inside}", f"layer_transformation: {listed}"))
    texts = (estimators.SOURCES, estimators.TRANSLATIONS, None)
    wanted = theirs(folder, *texts)
    assert ours(folder, *texts) == pytest.approx(wanted, abs=1e-5)
    file.write_text(file.read_text().replace(listed, inside))
    same = ours(folder, *texts) == pytest.approx(wanted, abs=1e-5)
    assert same == (inside == "softmax"), "the two ways of mixing give different scores here"


def test_the_folder_that_the_other_tests_write_by_hand_is_a_comet_folder(tmp_path: Path) -> None:
    for kind in estimators.KINDS:
        folder = estimators.official(tmp_path / kind / "comet", kind)
        texts = (estimators.SOURCES, estimators.TRANSLATIONS, estimators.REFERENCES)
        assert ours(folder, *texts) == pytest.approx(theirs(folder, *texts), abs=1e-5)
