"""The token embeddings of an estimator without the estimator."""

import shutil
from pathlib import Path

import pytest
import torch

from energymt.errors import StorageError
from energymt.models.estimator_folder import load_table
from tests import estimators, tiny


@pytest.mark.parametrize("family", estimators.FAMILIES)
def test_the_table_is_that_of_the_estimator(family: str) -> None:
    model = estimators.estimator("kiwi", family)
    table_VD, vocabulary = load_table(estimators.converted("kiwi", family))
    assert torch.equal(table_VD, model.table_VD)
    assert table_VD.dtype == torch.float32 and not table_VD.requires_grad
    assert len(table_VD) == vocabulary.size == model.vocabulary.size
    line = estimators.SOURCES[0]
    assert vocabulary.encode_source(line) == model.vocabulary.encode_source(line)


@pytest.mark.parametrize("harm", ["cut", "gone", "other"])
def test_a_folder_without_a_table_is_refused(harm: str, tmp_path: Path) -> None:
    folder = shutil.copytree(estimators.converted("kiwi"), tmp_path / "kiwi")
    weights = folder / "model.safetensors"
    if harm == "cut":
        weights.write_bytes(weights.read_bytes()[:-50])
    elif harm == "gone":
        weights.unlink()
    else:
        tiny.recurrent().save_weights(folder)
    with pytest.raises(StorageError, match=rf"No embeddings can be read from {folder} .*copy the whole folder again"):
        load_table(folder)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        load_table(tmp_path / "nowhere")
