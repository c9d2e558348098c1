"""What workers write to the log of a run reaches the tracker once, however the log was cut."""

import json
from pathlib import Path

from energymt.tracking import NullTracker
from energymt.tracking.relay import LogRelay


class Kept(NullTracker):
    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def metrics(self, values: dict[str, float], step: int) -> None:
        self.seen.append((step, values))


def add(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def test_lines_arrive_as_they_are_written(tmp_path: Path) -> None:
    path, tracker, echoed = tmp_path / "log.jsonl", Kept(), []
    relay = LogRelay(path, tracker, lambda step, values: echoed.append(step))
    relay()  # there is no log yet
    add(path, json.dumps({"step": 1, "loss": 2.0}) + "\n" + '{"step": 2, "lo')
    relay()
    assert tracker.seen == [(1, {"loss": 2.0})]
    add(path, 'ss": 1.0}\n')
    relay()
    relay()
    assert tracker.seen == [(1, {"loss": 2.0}), (2, {"loss": 1.0})] and echoed == [1, 2]


def test_an_earlier_start_is_sent_but_not_shown_again(tmp_path: Path) -> None:
    path, tracker, echoed = tmp_path / "log.jsonl", Kept(), []
    add(path, '{"step": 1, "loss": 2.0}\n')
    relay = LogRelay(path, tracker, lambda step, values: echoed.append(step))
    add(path, '{"step": 2, "loss": NaN}\n')
    relay()
    assert [step for step, _ in tracker.seen] == [1, 2] and echoed == [2]


def test_a_line_that_a_killed_writer_left_is_passed_over(tmp_path: Path) -> None:
    path, tracker = tmp_path / "log.jsonl", Kept()
    add(path, '{"step": 1, "loss": 2.0}\n{"step": 2, "lo{"step": 2, "loss": 1.0}\n{"step": 3, "loss": 0.5}\n')
    LogRelay(path, tracker)()
    assert [step for step, _ in tracker.seen] == [1, 3]
