"""Shared memory of caller and replica: found on this machine and nowhere else, and used by one call at a time."""

import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from energymt.pool import shared
from energymt.pool.shared import Place, Slot, Slots, Views

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux")
ROWS, WIDTH = 1200, 128  # more than the smallest array


def some(seed: int = 1, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).normal(size=(ROWS, WIDTH)).astype(dtype)


def taken(slots: Slots, values: Any) -> Slot:
    slot = slots.take(values)
    assert slot is not None
    return slot


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_what_one_writes_the_other_reads(dtype: Any) -> None:
    values = (1000 * some()).astype(dtype)
    slot = taken(Slots(), values)
    place = slot.post(values)
    opened = Views().open(place, "me")
    assert opened is not None
    sent, returned = opened
    assert sent.dtype == returned.dtype == values.dtype
    np.testing.assert_array_equal(sent, values)
    returned[...] = 2 * values
    np.testing.assert_array_equal(slot.returned(place), 2 * values)
    np.testing.assert_array_equal(sent, values)  # the answer stands beside the question


def answer(place: Place) -> None:
    """In a process of its own."""
    opened = Views().open(place, "me")
    assert opened is not None
    opened[1][...] = -opened[0]


def test_between_two_processes() -> None:
    values = some()
    slot = taken(Slots(), values)
    place = slot.post(values)
    other = multiprocessing.get_context("spawn").Process(target=answer, args=(place,))
    other.start()
    other.join(60.0)
    assert other.exitcode == 0
    np.testing.assert_array_equal(slot.returned(place), -values)


def test_a_view_outlives_its_slot_and_a_later_slot_is_another() -> None:
    views, values = Views(), some()
    slot = taken(Slots(), values)
    place = slot.post(values)
    opened = views.open(place, "me")
    assert opened is not None
    del slot
    np.testing.assert_array_equal(opened[0], values)
    opened[1][...] = 7.0  # a late answer: nobody reads it
    slot = taken(Slots(), values)
    later = slot.post(some(2))
    found = views.open(later, "me")
    assert found is not None
    np.testing.assert_array_equal(found[0], some(2))
    assert Views().open(replace(later, key=place.key), "me") is None


def test_memory_that_is_not_to_be_had(tmp_path: Path) -> None:
    values = some()
    slot = taken(Slots(), values)
    place = slot.post(values)
    file = tmp_path / "file"
    file.write_bytes(bytes(10_000_000))
    reading, writing = os.pipe()
    with file.open("r+b") as other:
        for wrong in (
            replace(place, process=2**22 + 1),
            replace(place, descriptor=10_000),
            replace(place, descriptor=other.fileno()),
            replace(place, descriptor=reading),
            replace(place, key=bytes(32)),
            replace(place, shape=(10 * ROWS, WIDTH)),
        ):
            assert Views().open(wrong, "me") is None
    os.close(reading)
    os.close(writing)
    assert file.read_bytes() == bytes(10_000_000)


def test_slots_are_used_again_and_never_by_two() -> None:
    slots, values = Slots(), some()
    first = taken(slots, values)
    second = taken(slots, values)
    assert first is not second
    slots.give(first)
    assert taken(slots, values[:400]) is first
    slots.give(first)
    slots.give(second)
    larger = taken(slots, np.concatenate([values] * 4))
    assert larger not in (first, second)
    slots.give(larger)
    assert taken(slots, values) in (first, second)  # the smallest that has room
    assert slots.size == 2 * (first.room + second.room + larger.room)


def test_small_arrays_and_too_many_go_by_the_wire(monkeypatch: pytest.MonkeyPatch) -> None:
    slots, values = Slots(), some()
    assert slots.take(values[:10]) is None
    room = taken(slots, values).room
    monkeypatch.setattr(shared, "LARGEST", 5 * room)
    second = taken(slots, values)
    assert slots.take(values) is None
    slots.drop(second)
    third = taken(slots, values)
    slots.give(third)
    assert slots.take(np.concatenate([values] * 4)) is None
    half = taken(slots, values[: ROWS // 2])  # the free one has room for it
    assert half is third


def test_free_slots_make_room_for_larger_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    slots, values = Slots(), some()
    small = taken(slots, values)
    slots.give(small)
    monkeypatch.setattr(shared, "LARGEST", 9 * small.room)
    large = taken(slots, np.concatenate([values] * 4))
    assert slots.size == 2 * large.room == 8 * small.room


def test_views_let_the_oldest_go(monkeypatch: pytest.MonkeyPatch) -> None:
    slots, views = Slots(), Views()
    held = [taken(slots, some(seed)) for seed in range(3)]
    places = [slot.post(some(seed)) for seed, slot in enumerate(held)]
    monkeypatch.setattr(shared, "LARGEST", 2 * len(held[0].memory))
    for place in (places[0], places[1], places[0], places[2]):
        assert views.open(place, "me") is not None
    assert set(views.memory) == {places[0].key, places[2].key}
    found = views.open(places[1], "me")
    assert found is not None
    np.testing.assert_array_equal(found[0], some(1))


def test_a_fork_does_not_use_the_slots_of_its_parent() -> None:
    slots = Slots()
    slots.give(taken(slots, some()))
    slots.process += 1
    assert slots.take(some()) is None
