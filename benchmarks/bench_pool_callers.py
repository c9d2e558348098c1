"""Sentences a second that a replica serves to several callers at once, with dynamic batches and without, in turns.

    python -m benchmarks.bench_pool_callers [--device cuda] [--threads N] [--callers 1 2 4 8] [--quick]

Each caller is a thread of this process that asks for scores and gradients of a few short sentences, and asks again when
it has them. `alone` is the peer: the same replica, with every request a batch of its own. `limit` is what this process
reaches without a pool, on the sentences of all callers in one batch. Before the clock starts, the replica must give
each caller the scores and gradients of that batch.

The replica has as many threads as this process (an estimator of width 256 with 4 layers); the callers' own work runs
beside it, so at least one core more is needed. It waits at most `--wait-ms` for others before it computes.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.estimators import Shape, write_random_estimator
from benchmarks.pools import local_ray, pool_of, require_wall
from benchmarks.timing import interleaved, machine, parse, ratio
from energymt.models.estimator import Estimator, QualityEstimator
from energymt.models.estimator_folder import load_estimator
from energymt.pool.estimator import PooledEstimator
from energymt.pool.settings import PoolConfig
from energymt.records import SoftTarget, Source

BATCHES, ALONE, LIMIT = "dynamic batches", "alone", "limit"


class Sizes(NamedTuple):
    """Sentences of a request, requests that a caller makes in a turn, tokens of a sentence, and the estimator."""

    sentences: int
    requests: int
    length: int
    shape: Shape


FULL, QUICK = Sizes(2, 16, 8, Shape(8000, 256, 4)), Sizes(2, 2, 4, Shape(200, 64, 1))


@dataclass(frozen=True)
class Question:
    """What one caller asks, again and again."""

    source: Source
    emb_BTD: Tensor
    mask_BT: Tensor

    def ask(self, estimator: Estimator) -> tuple[Tensor, Tensor]:
        """Scores [B], and the gradient [B, T, D] of their sum."""
        emb_BTD = self.emb_BTD.clone().requires_grad_()
        score_B = estimator(self.source, SoftTarget(None, emb_BTD, self.mask_BT))
        (gradient_BTD,) = torch.autograd.grad(score_B.sum(), emb_BTD)
        return score_B.detach(), gradient_BTD


def question_of(sizes: Sizes, caller: int, device: str) -> Question:
    """Sentences of half that length to half more, as they differ from caller to caller."""
    draw = torch.Generator().manual_seed(caller)
    shape = (sizes.sentences, sizes.length + sizes.length // 2)
    lengths_B1 = torch.randint(sizes.length // 2, shape[1] + 1, (shape[0], 1), generator=draw)
    mask_BT = (torch.arange(shape[1]) < lengths_B1).to(device)
    ids_BS = torch.randint(4, sizes.shape.vocabulary - 1, shape, generator=draw).to(device)
    emb_BTD = torch.randn(*shape, sizes.shape.width, generator=draw).mul_(0.02).to(device)
    return Question(Source(ids_BS, mask_BT), emb_BTD, mask_BT)


def together(questions: list[Question]) -> Question:
    """The sentences of all callers."""
    sources = Source(torch.cat([one.source.ids_BS for one in questions]), torch.cat([one.mask_BT for one in questions]))
    return Question(sources, torch.cat([one.emb_BTD for one in questions]), sources.mask_BS)


def turns_of(
    questions: list[Question],
    requests: int,
    pooled: dict[str, Estimator],
    local: Estimator,
    threads: ThreadPoolExecutor,
) -> dict[str, Callable[[], object]]:
    """A turn: every caller has had `requests` answers."""

    def callers(estimator: Estimator) -> list[list[tuple[Tensor, Tensor]]]:
        return list(threads.map(lambda one: [one.ask(estimator) for _ in range(requests)], questions))

    whole = together(questions)
    return {
        **{name: lambda estimator=estimator: callers(estimator) for name, estimator in pooled.items()},
        LIMIT: lambda: [whole.ask(local) for _ in range(requests)],
    }


def require_equal(questions: list[Question], turns: dict[str, Callable[[], object]]) -> None:
    """All must compute the same, or the ratio means nothing."""
    whole: list[tuple[Tensor, Tensor]] = turns[LIMIT]()
    for name in (BATCHES, ALONE):
        answers = [answers[-1] for answers in turns[name]()]
        for mine, other in zip(map(torch.cat, zip(*answers, strict=True)), whole[-1], strict=True):
            if not torch.allclose(mine, other, rtol=1e-3, atol=1e-4 * float(other.abs().max())):
                raise SystemExit(f"{name} and {LIMIT} differ by up to {float((mine - other).abs().max()):.3g}.")


def more(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark alone."""
    parser.add_argument("--callers", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--wait-ms", type=float, default=PoolConfig.model_fields["wait_ms"].default)


def main() -> None:
    """Entry point."""
    options = parse(__doc__, 7, more)
    require_wall(options.clock)
    sizes = QUICK if options.quick else FULL
    print(f"{sizes.sentences} sentences a request, V, D, layers = {tuple(sizes.shape)}, {machine(options.device)}")
    print(f"sentences/s, medians of {options.rounds} turns\n{'callers':8}", end="")
    print("".join(f"{name:>18}" for name in (BATCHES, ALONE, LIMIT)) + "   batches / alone   of the limit", flush=True)
    with tempfile.TemporaryDirectory() as name, local_ray(options.threads):
        folder = Path(name) / "estimator"
        write_random_estimator(folder, sizes.shape)
        measure(folder, sizes, options)


def measure(folder: Path, sizes: Sizes, options: argparse.Namespace) -> None:
    """A row for each number of callers."""
    from energymt.pool.connection import Connection

    local: QualityEstimator = load_estimator(folder).to(options.device)
    with (
        pool_of(folder, options.threads, options.device, wait_ms=options.wait_ms) as name,
        Connection(name) as batches,
        Connection(name, alone=True) as alone,
        ThreadPoolExecutor(max(options.callers)) as threads,
    ):
        pooled = {
            label: PooledEstimator(connection.client, local.table_VD, local.vocabulary)
            for label, connection in ((BATCHES, batches), (ALONE, alone))
        }
        for callers in options.callers:
            questions = [question_of(sizes, caller, options.device) for caller in range(callers)]
            turns = turns_of(questions, sizes.requests, pooled, local, threads)
            require_equal(questions, turns)
            seconds = interleaved(turns, options.rounds, device=options.device)
            sentences = callers * sizes.requests * sizes.sentences
            rates = {label: sentences / statistics.median(own) for label, own in seconds.items()}
            print(f"{callers:<8}" + "".join(f"{rates[label]:18,.0f}" for label in (BATCHES, ALONE, LIMIT)), end="")
            faster, share = ratio(seconds[ALONE], seconds[BATCHES]), ratio(seconds[LIMIT], seconds[BATCHES])
            print(f"{faster:18.2f}{share:15.2f}", flush=True)


if __name__ == "__main__":
    main()
