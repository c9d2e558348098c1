"""Decoding along a proxy's gradient against plain decoding of the same model, in turns.

    python -m benchmarks.bench_perturbed [--device cuda] [--sizes small base] [--batches 1 32] [--quick]

Random weights and forced lengths, those of Multi30k (see bench_decoding): both decode as many tokens. The proxy pools
with 4 heads and has 3 layers of 256. The bars: at beam 5 at most 1.05 times the time of plain decoding; a sweep of 8
values of alpha, greedy, whose sentences are encoded and differentiated once and decoded as rows of one batch, at most
0.6 of 8 separate runs at batch 1, and 0.9 at batch 32.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.bench_decoding import SIZES, Task, tasks_of
from benchmarks.timing import interleaved, machine, parse, ratio
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.decoding import autoregressive
from energymt.decoding.perturbed import Perturbation, perturbed, side_by_side
from energymt.models import make_translator
from energymt.models.proxy import ProxyConfig, QualityProxy
from energymt.records import Source

ALPHA = 0.1
ALPHAS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
BARS = {1: 0.6, 32: 0.9}  # of a sweep, by batch
Turn = Callable[[Source, int], object]


def make(size: str, device: str) -> tuple[Any, QualityProxy]:
    """A translator that ends no translation before its greatest length, and a proxy of it."""
    pieces, sizes = SIZES[size]
    vocabulary = SentencePieceVocabulary.train((f"w{n}" for n in range(pieces - 5)), pieces, model_type="word")
    torch.manual_seed(1)
    model: Any = make_translator("transformer-base", vocabulary, dropout=0.0, **sizes).eval()
    model.network.final_logits_bias[0, vocabulary.eos_id] = -1e4
    config = ProxyConfig(width=sizes["width"], translator="", metric="chrf", higher_is_better=True)
    return model.to(device), QualityProxy(config).eval().requires_grad_(False).to(device)


def turns_of(model: Any, proxy: QualityProxy) -> dict[str, Turn]:
    """What takes turns, by name."""

    def decode(own: Any, source: Source, length: int, beam: int = 1) -> object:
        return autoregressive.decode(own, source.to(own.device), beam=beam, max_length=length)

    def sweep(source: Source, length: int) -> object:
        rows_R = torch.arange(len(source)).repeat_interleave(len(ALPHAS))
        return decode(side_by_side(model, Perturbation(proxy, ALPHAS)), source.select(rows_R), length)

    def separate(source: Source, length: int) -> object:
        return [decode(perturbed(model, Perturbation(proxy, (alpha,))), source, length) for alpha in ALPHAS]

    nudged = perturbed(model, Perturbation(proxy, (ALPHA,)))
    searches = {
        f"{name}, beam {beam}": partial(decode, own, beam=beam)
        for beam in (1, 5)
        for name, own in (("plain", model), ("perturbed", nudged))
    }
    return {**searches, "sweep of 8": sweep, "8 runs": separate}


def measure(turns: dict[str, Turn], tasks: list[Task], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of each turn, a turn being all tasks."""

    def whole(turn: Turn) -> Callable[[], object]:
        return lambda: [turn(source, length) for source, length in tasks]

    contestants = {name: whole(turn) for name, turn in turns.items()}
    return interleaved(contestants, options.rounds, 1, options.device, options.clock)


def table(seconds: dict[str, list[float]], batch: int, sentences: int) -> None:
    """Milliseconds a sentence, ratios, and the bars."""
    for name, own in seconds.items():
        print(f"{name:20}{1e3 * statistics.median(own) / sentences:12.3f} ms/sentence")
    for beam in (1, 5):
        found = ratio(seconds[f"perturbed, beam {beam}"], seconds[f"plain, beam {beam}"])
        bar = f", bar 1.05: {'met' if found <= 1.05 else 'MISSED'}" if beam == 5 else ""
        print(f"perturbed / plain, beam {beam}: {found:.3f}{bar}")
    found = ratio(seconds["sweep of 8"], seconds["8 runs"])
    bar = f", bar {BARS[batch]}: {'met' if found <= BARS[batch] else 'MISSED'}" if batch in BARS else ""
    print(f"sweep of 8 / 8 runs: {found:.3f}{bar}", flush=True)


def more(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark alone."""
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["small", "base"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])


def main() -> None:
    """Entry point."""
    options = parse(__doc__, 8, more)
    sizes = ["quick"] if options.quick else options.sizes
    print(f"Perturbed decoding, {machine(options.device)}; medians of {options.rounds} turns")
    for size in sizes:
        model, proxy = make(size, options.device)
        for batch in options.batches:
            tasks = tasks_of(batch, SIZES[size][0])
            print(f"\n{size}, batch {batch}")
            table(measure(turns_of(model, proxy), tasks, options), batch, batch * len(tasks))


if __name__ == "__main__":
    main()
