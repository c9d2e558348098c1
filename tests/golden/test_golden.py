"""The first losses of every trainable are those of the day they were written down.

A difference means that training changed. If it was meant to: `python -m tests.golden.rewrite`, and say why.
"""

import json
from pathlib import Path

import pytest

from tests import toy
from tests.golden.curves import FOLDER, RUNS, STEPS, curve, file


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("run", RUNS)
def test_the_losses_are_as_they_were(run: str, world: Path, monkeypatch) -> None:
    monkeypatch.setenv("ENERGYMT_RUNS", "")  # what `curve` sets is taken back
    wanted, found = json.loads(file(run).read_text(encoding="utf-8")), curve(run, world)
    assert len(found) == len(wanted) >= STEPS  # PPO takes several on one batch
    for number, (left, right) in enumerate(zip(found, wanted, strict=True), start=1):
        assert left == pytest.approx(right, rel=1e-3, abs=1e-6), f"step {number}"


def test_every_curve_has_its_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(RUNS)


def test_every_trainable_has_a_curve() -> None:
    import trainables

    names = {path.stem for folder in trainables.__path__ for path in Path(folder).glob("[a-z]*.py")}
    assert names == {name for name, _ in RUNS.values()}
