"""The settings of a pool, as callers and replicas in other folders and at other times read them."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from energymt.errors import StorageError
from energymt.pool import opening
from energymt.pool.settings import PoolConfig, find_estimator, pinned
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
