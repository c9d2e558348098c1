"""The settings of a pool, as callers and replicas in other folders and at other times read them."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from energymt.errors import ResourceError, StorageError
from energymt.folders import write_manifest
from energymt.pool import opening
from energymt.pool.settings import PoolConfig, find_estimator, open_estimator, pinned
from tests import estimators


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with an estimator in `kiwi`."""
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(estimators.converted("kiwi"), tmp_path / "here" / "kiwi")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize("address", ["kiwi", "./kiwi", "../here/kiwi"])
def test_another_folder_finds_the_same_estimator(address: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = pinned(PoolConfig(estimator=address))
    monkeypatch.chdir(here.parent / "elsewhere")
    assert find_estimator(config) == here / "kiwi"


def test_what_is_no_path_stays(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("energymt.pool.settings.fetch", lambda address: here / "kiwi")  # the hub, and s3, are far
    for address in ("owner/kiwi", "s3://bucket/kiwi", "models:/kiwi@champion"):
        assert pinned(PoolConfig(estimator=address)).estimator == address
    (here / "owner").mkdir()
    shutil.copytree(here / "kiwi", here / "owner" / "kiwi")
    assert pinned(PoolConfig(estimator="owner/kiwi")).estimator == str(here / "owner" / "kiwi")


def test_a_function_stays() -> None:
    config = PoolConfig(estimator="tests.faults.pool_estimators:braked")
    assert pinned(config) == config


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_torch_does_not_find_is_missed(here: Path) -> None:
    """Instead of serving on the CPU, twenty times as slowly."""
    with pytest.raises(ResourceError, match=r"has 0.5 GPUs \(gpus\) and torch finds no CUDA device .* set gpus to 0"):
        open_estimator(PoolConfig(estimator="kiwi", gpus=0.5))
    assert open_estimator(PoolConfig(estimator="kiwi")).table_VD.device.type == "cpu"


# -------------------------------------------------------------------------------------------------- the same weights


@pytest.fixture
def overwritten(here: Path, monkeypatch: pytest.MonkeyPatch) -> PoolConfig:
    """A pool that was started with the estimator in `kiwi`, before another one was written there."""
    config = pinned(PoolConfig(estimator="kiwi"))
    settings = {"settings": config.model_dump(mode="json"), "estimator": config.estimator}
    monkeypatch.setattr(opening.lifecycle, "status", lambda name: settings)
    monkeypatch.setattr(opening.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(opening, "Connection", lambda *arguments, **options: SimpleNamespace(client=None))
    opening.open_pool("default")
    assert opening.frozen_address("default") == str(here / "kiwi")
    open_estimator(config)
    for weights in (here / "kiwi").glob("*.safetensors"):
        state = safetensors.torch.load_file(weights)
        weights.unlink()
        safetensors.torch.save_file({name: tensor + 0.25 for name, tensor in state.items()}, weights, {"format": "pt"})
    write_manifest(here / "kiwi", {})
    return config


@pytest.mark.parametrize(
    "read",
    [open_estimator, lambda config: opening.open_pool("default"), lambda config: opening.frozen_address("default")],
    ids=["a replica", "a caller", "a judge"],
)
def test_weights_that_were_overwritten_are_refused(read: Any, overwritten: PoolConfig) -> None:
    with pytest.raises(
        StorageError, match=r"kiwi holds other weights than when .* was started: .*`energymt pool down`"
    ):
        read(overwritten)


def test_a_pool_of_other_weights_is_another_pool(overwritten: PoolConfig) -> None:
    assert pinned(PoolConfig(estimator="kiwi")) != overwritten
    assert pinned(overwritten) == overwritten
