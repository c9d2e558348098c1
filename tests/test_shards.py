"""Work in shards is done once: a killed process loses one, several share them, and a cut file is done again."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from energymt import shards
from energymt.shards import claimed, in_shards

ROOT = Path(__file__).resolve().parent.parent
# Notes each shard that it computes; waits at shard STOP (if given) until the file `go` is there.
WORK = """
import sys, time
from pathlib import Path
from energymt import shards
folder, log, stop = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
shards.SHARD = 10

def compute(rows):
    with log.open("a") as file:
        file.write(f"{rows.start}\\n")
    if rows.start == stop:
        print("here", flush=True)
        while not (log.parent / "go").exists():
            time.sleep(0.01)
    return [[row, "é\\u2028"] for row in rows]

found = shards.in_shards(folder, 35, compute)
assert found == [[row, "é\\u2028"] for row in range(35)], found
"""


@pytest.fixture(autouse=True)
def ten_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD", 10)


def squares(rows: range) -> Sequence[int]:
    return [row * row for row in rows]


def never(rows: range) -> Sequence[int]:
    raise AssertionError(f"computed again: {rows}")


def process(folder: Path, stop: int = -1, name: str = "log") -> "subprocess.Popen[str]":
    """A process at work; it says `here` when it comes to the shard where it waits."""
    arguments = [sys.executable, "-c", WORK, str(folder / "work"), str(folder / name), str(stop)]
    return subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def computed(folder: Path, name: str = "log") -> list[int]:
    return [int(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize("count", [0, 1, 10, 35])
def test_values_come_in_their_order_and_are_computed_once(count: int, tmp_path: Path) -> None:
    asked = []

    def compute(rows: range) -> Sequence[int]:
        asked.append(len(rows))
        return squares(rows)

    assert in_shards(tmp_path / "a" / "b", count, compute) == [row * row for row in range(count)]
    assert sum(asked) == count and max(asked, default=0) <= 10
    assert in_shards(tmp_path / "a" / "b", count, never) == [row * row for row in range(count)]


def test_what_fails_is_computed_by_the_next(tmp_path: Path) -> None:
    def fails(rows: range) -> Sequence[int]:
        if rows.start == 20:
            raise ValueError("no")
        return squares(rows)

    with pytest.raises(ValueError, match="no"):
        in_shards(tmp_path, 35, fails)
    asked = []

    def compute(rows: range) -> Sequence[int]:
        asked.append(rows.start)
        return squares(rows)

    assert in_shards(tmp_path, 35, compute) == [row * row for row in range(35)]
    assert asked == [20, 30]


def test_a_killed_process_loses_the_shard_that_it_was_at(tmp_path: Path) -> None:
    killed = process(tmp_path, stop=20)
    assert killed.stdout is not None and killed.stdout.readline() == "here\n"
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=30)
    assert computed(tmp_path) == [0, 10, 20]
    assert sorted(path.name for path in (tmp_path / "work").glob("*.jsonl")) == [
        "shard-000000000.jsonl",
        "shard-000000010.jsonl",
    ]
    after = process(tmp_path, name="after")
    _, err = after.communicate(timeout=60)
    assert after.returncode == 0, err
    assert computed(tmp_path, "after") == [20, 30]


def test_two_processes_share_the_work_and_wait_for_each_other(tmp_path: Path) -> None:
    first = process(tmp_path, stop=0)
    assert first.stdout is not None and first.stdout.readline() == "here\n"
    second = process(tmp_path, stop=30)
    assert second.stdout is not None and second.stdout.readline() == "here\n"
    assert computed(tmp_path) == [0, 10, 20, 30], "the second one took what the first was not at"
    (tmp_path / "go").touch()
    for each in (first, second):
        _, err = each.communicate(timeout=60)
        assert each.returncode == 0, err
    assert sorted(computed(tmp_path)) == [0, 10, 20, 30]


@pytest.mark.parametrize(
    "change",
    [lambda text: text[:-3], lambda text: text[: text.index("\n", 9) + 1], lambda text: "", lambda text: text + "5\n"],
    ids=["in a line", "behind a line", "to nothing", "grown"],
)
def test_a_cut_file_is_not_taken_as_whole(change, tmp_path: Path) -> None:
    in_shards(tmp_path, 35, squares)
    file = tmp_path / "shard-000000010.jsonl"
    file.write_text(change(file.read_text()))
    asked = []

    def compute(rows: range) -> Sequence[int]:
        asked.append(rows.start)
        return squares(rows)

    assert in_shards(tmp_path, 35, compute) == [row * row for row in range(35)]
    assert asked == [10]
    assert [json.loads(line) for line in file.read_text().splitlines()] == [row * row for row in range(10, 20)]


def _hold(path: Path, ready, done) -> None:
    with claimed(path) as mine:
        assert mine
        ready.set()
        done.wait(30)


def test_a_claim_is_of_one_process_and_goes_with_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "lock", ready, done))
    other.start()
    assert ready.wait(30)
    with claimed(tmp_path / "lock") as mine:
        assert not mine
    other.kill()
    other.join(30)
    with claimed(tmp_path / "lock") as mine:
        assert mine
