"""How a ratio is measured: contestants take turns, each turn is timed, and medians are compared.

Machines drift and neighbours come and go, within a minute and from run to run. So no two numbers from different runs
are ever divided by each other. What a turn adds to the memory at its peak is told here too.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

CLOCKS = {"wall": time.perf_counter, "process": time.process_time}
MEBIBYTE = 1 << 20


def parse(
    description: str | None, rounds: int, more: Callable[[argparse.ArgumentParser], object]
) -> argparse.Namespace:
    """The options that all benchmarks have, and `more`; sets the threads, refuses a device that is not there."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="process: where others use the CPU too")
    parser.add_argument("--quick", action="store_true", help="two small rounds, to see that it runs")
    more(parser)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device is visible here (torch.cuda.is_available() is false); leave --device out")
    if options.quick:
        options.rounds = 2
    torch.set_num_threads(options.threads)
    return options


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


def peak_added(turn: Callable[[], object], device: str) -> float | None:
    """MiB that a turn adds at its peak; None where the system does not tell."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        turn()
        return (torch.cuda.max_memory_allocated() - before) / MEBIBYTE
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from now on
    except OSError:
        return None
    before = _status("VmRSS")
    turn()
    return (_status("VmHWM") - before) / 1024


def in_fresh_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What a function returns in a process that has computed nothing before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.models.xlm_roberta.modeling_xlm_roberta", "energymt.projected"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        return pool.submit(function, *arguments).result()


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


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))
