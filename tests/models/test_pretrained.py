"""Models are read and written without a progress bar of transformers, which itself keeps them."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModel, AutoModelForSeq2SeqLM
from transformers.utils import logging

from energymt.models.estimator_folder import load_estimator
from energymt.models.pretrained import without_bars
from energymt.models.transformer import TransformerTranslator
from tests import estimators, tiny


@pytest.fixture
def bars() -> Iterator[None]:
    """Bars are on, as they are in a fresh process."""
    shown = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    yield
    if not shown:
        logging.disable_progress_bar()


def split(network, folder: Path) -> Path:
    """A checkpoint of many small files: transformers 4 shows a bar for such ones alone."""
    with without_bars():
        network.save_pretrained(folder, max_shard_size="2KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def test_no_bar_while_a_translator_is_read_and_written(bars: None, tmp_path: Path, capfd) -> None:
    network, vocabulary, _ = tiny.network("marian")
    folder = split(network, tmp_path / "checkpoint")
    model = TransformerTranslator.from_checkpoint(folder, vocabulary)
    model.load_weights(folder)
    model.save_pretrained(tmp_path / "model")
    assert capfd.readouterr() == ("", "")
    AutoModelForSeq2SeqLM.from_pretrained(folder)
    assert "Loading" in capfd.readouterr().err


def test_no_bar_while_an_estimator_is_read(bars: None, tmp_path: Path, capfd) -> None:
    folder = shutil.copytree(estimators.converted("kiwi"), tmp_path / "kiwi")
    split(load_estimator(folder).encoder, folder)
    capfd.readouterr()
    load_estimator(folder)
    assert capfd.readouterr() == ("", "")
    AutoModel.from_pretrained(folder, add_pooling_layer=False)
    assert "Loading" in capfd.readouterr().err


def test_bars_that_were_off_stay_off(bars: None) -> None:
    logging.disable_progress_bar()
    with without_bars():
        assert not logging.is_progress_bar_enabled()
    assert not logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    with pytest.raises(ZeroDivisionError), without_bars():
        raise ZeroDivisionError
    assert logging.is_progress_bar_enabled()
