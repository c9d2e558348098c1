"""The sentence that a run ends with."""

from pathlib import Path

import pytest

from energymt import launch
from energymt.configuration import TrainingConfig
from energymt.outcome import Outcome

BOOKKEEPING = launch.Bookkeeping("none", "energymt", "name", "energymt-engine")


@pytest.mark.parametrize(
    "best, averaged, start",
    [(0, 1.0, True), (0, 2.0, False), (4, 1.0, False)],
    ids=["start", "mean with the start", "a later one"],
)
def test_a_run_that_only_did_harm_says_so(
    best: int, averaged: float, start: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"dev/judge": 0.25, "checkpoints/averaged": averaged}
    outcome = Outcome(8, 0.2, best, values, metric="dev/judge")
    monkeypatch.setattr(launch, "_train", lambda *given: outcome)
    config = TrainingConfig.model_construct(steps=8)
    ending = launch.launch("engine", config, tmp_path, launch.Placement(), BOOKKEEPING, print)
    assert ending.exit_code == 0 and "holds the model: dev/judge 0.25 after 8 steps." in ending.sentence
    assert ("No evaluation was better than that of the start" in ending.sentence) == start
