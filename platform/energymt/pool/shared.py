"""Memory that a caller shares with a replica on its machine: large arrays that need not go through Ray's object store.

A caller owns slots of anonymous memory (memfd), and names one in a request by its own process and descriptor; whoever
runs on the same machine opens it there. A key at its start tells it from all other memory: a replica elsewhere finds no
such thing, says so, and is written to over the wire from then on. A slot goes with the last process that has it open,
however that ends, and nothing is left behind.

    | key | the embeddings, written by the caller | their gradient, written by the replica |

One slot carries one request to one replica. It is used again when that replica has answered, and dropped if it does
not: what a late one writes then, nobody reads.
"""

from __future__ import annotations

import mmap
import os
import secrets
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass

import numpy as np

from energymt.pool.wire import Array

KEY = 64  # bytes before the first array: the key, and padding that aligns it
SMALLEST = 1 << 17  # bytes of an array below which a slot gains nothing
LARGEST = 1 << 28  # bytes of all slots of a process
FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK  # whatever has that number in a process elsewhere


@dataclass(frozen=True)
class Place:
    """Where the two arrays of a request lie, for whoever is on the same machine."""

    process: int
    descriptor: int
    key: bytes
    shape: tuple[int, ...]
    type: str
    """Of both arrays, as numpy calls it."""

    @property
    def size(self) -> int:
        """Bytes of one of the arrays."""
        return int(np.prod(self.shape)) * np.dtype(self.type).itemsize


class Views:
    """Memory of others that this process has open; what was not used for longest is let go when it is too much."""

    def __init__(self) -> None:
        self.memory: OrderedDict[bytes, mmap.mmap] = OrderedDict()
        self.callers: dict[bytes, str] = {}  # whose it is

    def open(self, place: Place, caller: str) -> tuple[Array, Array] | None:
        """Embeddings and gradient of a place, or None where that memory is not to be had."""
        memory = self.memory.get(place.key) or self._map(place, caller)
        if memory is None or len(memory) < KEY + 2 * place.size:
            return None
        self.memory.move_to_end(place.key)
        return _arrays(memory, place)

    def forget(self, caller: str) -> None:
        """Let go what is a caller's; arrays of it that are still in use stay until they are not."""
        for key in [key for key, owner in self.callers.items() if owner == caller]:
            del self.memory[key], self.callers[key]

    def _map(self, place: Place, caller: str) -> mmap.mmap | None:
        try:
            descriptor = os.open(f"/proc/{place.process}/fd/{place.descriptor}", FLAGS)
            try:
                memory = mmap.mmap(descriptor, 0)
            finally:
                os.close(descriptor)
        except (OSError, ValueError):  # another machine or user, or a caller that is gone
            return None
        if memory[: len(place.key)] != place.key:
            return None
        self.memory[place.key], self.callers[place.key] = memory, caller
        while len(self.memory) > 1 and sum(map(len, self.memory.values())) > LARGEST:
            del self.callers[self.memory.popitem(last=False)[0]]
        return memory


class Slot:
    """Memory of this process for two arrays of at most `room` bytes."""

    def __init__(self, room: int) -> None:
        self.room, self.key = room, secrets.token_bytes(32)
        self.descriptor = os.memfd_create("energymt-pool", os.MFD_CLOEXEC)
        os.ftruncate(self.descriptor, KEY + 2 * room)
        self.memory = mmap.mmap(self.descriptor, KEY + 2 * room)
        self.memory[: len(self.key)] = self.key

    def post(self, values: Array) -> Place:
        """Write an array; where it and the answer to it are."""
        place = Place(os.getpid(), self.descriptor, self.key, values.shape, values.dtype.str)
        _arrays(self.memory, place)[0][...] = values
        return place

    def returned(self, place: Place) -> Array:
        """The answer, without a copy."""
        return _arrays(self.memory, place)[1]

    def __del__(self) -> None:
        os.close(self.descriptor)


class Slots:
    """The slots of a process; many threads may share them."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.free: list[Slot] = []
        self.size = 0  # of all, in use or not
        self.lock = threading.Lock()
        # What is done with: handed in without the lock, for that may happen wherever an object ends.
        self.back: deque[Slot] = deque()
        self.lost: deque[int] = deque()

    def take(self, values: Array) -> Slot | None:
        """One that has room for an array and for its gradient; None for small ones, and where there is no more room."""
        if values.nbytes < SMALLEST or not hasattr(os, "memfd_create") or self.process != os.getpid():  # a fork
            return None
        with self.lock:
            while self.back:
                self.free.append(self.back.popleft())
            while self.lost:
                self.size -= self.lost.popleft()
            fitting = [slot for slot in self.free if slot.room >= values.nbytes]
            if fitting:
                smallest = min(fitting, key=lambda slot: slot.room)
                self.free.remove(smallest)
                return smallest
            room = 1 << (values.nbytes - 1).bit_length()
            if self.size - 2 * sum(slot.room for slot in self.free) + 2 * room > LARGEST:
                return None
            while self.size + 2 * room > LARGEST:
                self.size -= 2 * self.free.pop(0).room
            self.size += 2 * room
            return Slot(room)

    def give(self, slot: Slot) -> None:
        """Its replica has answered, and what it answered was read."""
        self.back.append(slot)

    def drop(self, slot: Slot) -> None:
        """Its replica has not answered, and may write to it yet."""
        self.lost.append(2 * slot.room)


def _arrays(memory: mmap.mmap, place: Place) -> tuple[Array, Array]:
    """Both arrays of a slot, without a copy."""
    sent: Array = np.ndarray(place.shape, place.type, memory, KEY)
    returned: Array = np.ndarray(place.shape, place.type, memory, KEY + place.size)
    return sent, returned
