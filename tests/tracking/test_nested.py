"""The runs of a sweep: opened once each, whoever polls."""

import threading
import time
from pathlib import Path

import pytest

from energymt import runs
from energymt.search_space import Cell
from energymt.tracking import NO_TRACKING, NullTracker, Tracker, nested
from energymt.tracking.nested import NestedTracking
from search_spaces import toy_operators
from trainables.engine import Config


class Kept(NullTracker):
    """Slow to open, as a run in a data base is."""

    def __init__(self) -> None:
        time.sleep(0.05)
        self.steps: list[int] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.steps.append(step)


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    data = {"path": "x.tsv", "source": "de", "target": "en"}
    config = Config.model_validate({"train": data, "dev": data, "teacher": "t", "steps": 3})
    names = ["feed=SX", "feed=ST"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / runs.LOG).write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    return [Cell(name, {"feed": name[-2:]}, config) for name in names]


def test_a_cell_is_opened_once_and_its_values_arrive_once(
    tmp_path: Path, cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    trackers: list[Kept] = []

    def tracker(self: NestedTracking, name: str, folder: Path, parent: Path | None) -> Tracker:
        opened.append(name)
        trackers.append(Kept())
        return trackers[-1]

    monkeypatch.setattr(nested.NestedTracking, "_tracker", tracker)
    tracking = NestedTracking("sweep", tmp_path, toy_operators, cells, NO_TRACKING, lambda text: None)
    pollers = [threading.Thread(target=tracking._poll) for _ in range(4)]
    for poller in pollers:
        poller.start()
    for poller in pollers:
        poller.join()
    assert sorted(opened) == ["feed=ST", "feed=SX", "sweep"]
    assert [kept.steps for kept in trackers] == [[], [1, 2], [1, 2]]
