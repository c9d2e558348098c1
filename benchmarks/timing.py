"""How a ratio is measured: contestants take turns, each turn is timed, and medians are compared.

Machines drift and neighbours come and go, within a minute and from run to run. So no two numbers from different runs
are ever divided by each other.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

CLOCKS = {"wall": time.perf_counter, "process": time.process_time}


def interleaved(
    contestants: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    device: str = "cpu",
    clock: str = "wall",
) -> dict[str, list[float]]:
    """Seconds of each turn; every round runs all contestants once, every other round in reverse order.

    The clock "process" counts the processor time of this process: on a CPU that others use, and for one thread, it is
    what the clock on the wall would show if they were not there.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-warm_up, rounds):
        for name in list(contestants) if number % 2 == 0 else reversed(contestants):
            passed = _timed(contestants[name], device, CLOCKS[clock])
            if number >= 0:
                seconds[name].append(passed)
    return seconds


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median over rounds of ours / theirs: the two turns of one round met the same machine."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def machine(device: str = "cpu") -> str:
    """One line that says where the numbers come from."""
    where = f"{_processor()}, {torch.get_num_threads()} thread(s)"
    if device == "cuda":
        where = torch.cuda.get_device_name()
    return f"torch {torch.__version__}, {where}"


def _timed(turn: Callable[[], object], device: str, now: Callable[[], float]) -> float:
    _synchronise(device)
    start = now()
    turn()
    _synchronise(device)
    return now() - start


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
