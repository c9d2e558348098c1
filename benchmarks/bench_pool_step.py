"""A step with a pooled estimator against the same step in this process, in turns; and what the way there costs.

    python -m benchmarks.bench_pool_step [--device cuda] [--threads N] [--quick]

A step is: scores of B translations, soft everywhere, and the gradient of their embeddings [B, T, D]. The pool has one
replica, in a Ray on this machine, with as many threads as this process; it and this process hold the same weights, of
the vocabulary and width of COMET-KIWI, with an encoder of 4 layers. Before the clock starts, both must give the same
scores and the same gradient. Bar: the pooled step takes at most 1.02 times as long.

Transport alone: a request with these embeddings to a replica that computes nothing and sends a gradient back, from
`submit` to the arrays of the reply. Bar: 10 ms. Of it are Ray's own time, that of an actor which returns the embeddings
that it is given, and the time that a replica waits for other requests.

Bytes: a request and its reply as Ray serialises them, against their arrays alone. Bar: 1.01; and the same bytes for an
estimator of another vocabulary.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.estimators import Shape, write_random_estimator
from benchmarks.pools import Direct, Idle, Mirror, local_ray, pool_of, require_wall
from benchmarks.timing import MEBIBYTE, interleaved, machine, parse, ratio
from energymt.models.estimator import Estimator, QualityEstimator
from energymt.models.estimator_folder import load_estimator
from energymt.pool.estimator import PooledEstimator
from energymt.pool.server import Server
from energymt.pool.wire import Reply, Request, pack
from energymt.records import SoftTarget, Source

STEP_BAR, TRANSPORT_BAR, BYTES_BAR = 1.02, 10.0, 1.01
IN_PROCESS, POOLED = "in process", "pooled"


class Sizes(NamedTuple):
    """Sentences, tokens of source and of translation, the estimator, and one of another vocabulary."""

    sentences: int
    length: int
    shape: Shape
    other: Shape


FULL = Sizes(32, 64, Shape(250_002, 1024, 4), Shape(1000, 1024, 1))
QUICK = Sizes(4, 64, Shape(1000, 64, 1), Shape(200, 64, 1))


class Case:
    """Sentences without padding, so that the payload is B · T · D numbers."""

    def __init__(self, sizes: Sizes, device: str):
        draw = torch.Generator().manual_seed(1)
        shape = (sizes.sentences, sizes.length)
        # Words that are in either vocabulary, and no special tokens.
        ids_BS = torch.randint(4, min(sizes.shape.vocabulary, sizes.other.vocabulary) - 1, shape, generator=draw)
        self.mask_BT = torch.ones(shape, dtype=torch.bool, device=device)
        self.source = Source(ids_BS.to(device), self.mask_BT)
        self.emb_BTD = torch.randn(*shape, sizes.shape.width, generator=draw).mul_(0.02).to(device).requires_grad_()
        self.target = SoftTarget(None, self.emb_BTD, self.mask_BT)

    def step(self, estimator: Estimator) -> tuple[Tensor, Tensor]:
        """Scores [B], and the gradient of their sum."""
        score_B = estimator(self.source, self.target)
        (gradient_BTD,) = torch.autograd.grad(score_B.sum(), self.emb_BTD)
        return score_B.detach(), gradient_BTD

    def require_equal(self, pooled: Estimator, local: Estimator) -> None:
        """Both must compute the same, or the ratio means nothing."""
        for mine, other in zip(self.step(pooled), self.step(local), strict=True):
            if not torch.allclose(mine, other, rtol=1e-4, atol=1e-5 * float(other.abs().max())):
                raise SystemExit(f"Pooled and in process differ by up to {float((mine - other).abs().max()):.3g}.")


# -------------------------------------------------------------------------------------------------------------- a step


@dataclass
class Traced:
    """A pooled estimator that notes what each answer took its replica."""

    pooled: PooledEstimator
    computed: list[float] = field(default_factory=list)

    def __call__(self, source: Source, target: SoftTarget) -> Tensor:
        ticket = self.pooled.submit(source, target)
        score_B: Tensor = ticket.result()
        self.computed.append(ticket.reply().computed)
        return score_B


def measure_step(case: Case, folder: Path, local: QualityEstimator, options: argparse.Namespace) -> None:
    """The first table; `local` is the estimator of that folder."""
    from energymt.pool.connection import Connection

    with pool_of(folder, options.threads, options.device) as name, Connection(name) as connection:
        pooled = Traced(PooledEstimator(connection.client, local.table_VD, local.vocabulary))
        case.require_equal(pooled, local)
        turns = {IN_PROCESS: lambda: case.step(local), POOLED: lambda: case.step(pooled)}
        seconds = interleaved(turns, options.rounds, device=options.device)
    for side, own in seconds.items():
        print(f"{side:20}{statistics.median(own):9.3f} s")
    computed = pooled.computed[-options.rounds :]
    beside = [whole - inside for whole, inside in zip(seconds[POOLED], computed, strict=True)]
    print(f"{'of it not computing':20}{statistics.median(beside):9.3f} s")
    told("pooled / in process", ratio(seconds[POOLED], seconds[IN_PROCESS]), STEP_BAR, ".3f")


# ----------------------------------------------------------------------------------------------------------- transport


def measure_transport(case: Case, threads: int, rounds: int) -> None:
    """The second table."""
    import ray

    from energymt.pool.client import Client
    from energymt.pool.replica import Replica
    from energymt.pool.settings import PoolConfig, ReplicaPlan

    plan = ReplicaPlan(PoolConfig(estimator="none", threads=threads), 0, 0)
    idle = Idle(case.mask_BT.numel(), case.emb_BTD.shape[-1])
    replica = ray.remote(Replica).options(num_cpus=0, max_concurrency=10).remote(plan, idle)
    mirror = ray.remote(Mirror).options(num_cpus=0).remote()
    client = Client(Direct(replica))
    sent = pack(case.source, case.target, "fp32")

    def ask() -> object:
        return client.submit(*pack(case.source, case.target, "fp32"), gradient=True).result().gradient

    turns = {"the pool's wire": ask, "Ray alone": lambda: ray.get(mirror.give.remote(sent[1].values))}
    seconds = interleaved(turns, rounds, warm_up=3)
    for actor in (replica, mirror):
        ray.kill(actor)
    for side, own in seconds.items():
        slow = sorted(own)[int(0.9 * len(own))]
        print(f"{side:20}{1e3 * statistics.median(own):9.2f} ms, of 10 the slowest {1e3 * slow:.2f} ms")
    told("transport alone, ms", 1e3 * statistics.median(seconds["the pool's wire"]), TRANSPORT_BAR, ".2f")


# --------------------------------------------------------------------------------------------------------------- bytes


def serialised(value: Request | Reply) -> int:
    """Bytes that Ray writes: a head, and the arrays beside it (and some 250 bytes that say where each array lies)."""
    import ray

    buffers: list[Any] = []
    head = ray.cloudpickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return len(head) + sum(buffer.raw().nbytes for buffer in buffers)


def report_bytes(case: Case, estimator: QualityEstimator) -> int:
    """A row for each direction; the bytes of both together."""
    request = Request("0", "me", *pack(case.source, case.target, "fp32"), gradient=True, precision="fp32")
    (reply,) = Server(estimator).answer([request])
    vocabulary = f"V = {len(estimator.table_VD):,}"
    sent = (request.source.values, request.source.lengths, request.target.values, request.target.lengths)
    total = payload = 0
    for side, value, arrays in (("request", request, sent), ("reply", reply, (reply.scores, reply.gradient))):
        written, own = serialised(value), sum(array.nbytes for array in arrays if array is not None)
        print(f"{vocabulary + ', ' + side:24}{written:12,} bytes, arrays {own:,}")
        total, payload = total + written, payload + own
    told(f"{vocabulary}: bytes / payload", total / payload, BYTES_BAR, ".5f")
    return total


def told(what: str, found: float, bar: float, form: str) -> None:
    """A number and its bar."""
    print(f"{what}: {found:{form}}, bar {bar:g}: {'met' if found <= bar else 'MISSED'}", flush=True)


def main() -> None:
    """Entry point."""
    options = parse(__doc__, 9, lambda parser: None)
    require_wall(options.clock)
    sizes = QUICK if options.quick else FULL
    case = Case(sizes, options.device)
    payload = case.emb_BTD.nbytes / MEBIBYTE
    print(f"B, T = {tuple(case.mask_BT.shape)}, V, D, layers = {tuple(sizes.shape)}: {payload:g} MiB each way")
    print(f"{machine(options.device)}; medians of {options.rounds} turns", flush=True)
    totals = []
    with tempfile.TemporaryDirectory() as name:
        for number, shape in enumerate((sizes.shape, sizes.other)):
            folder = Path(name) / f"v{shape.vocabulary}"
            write_random_estimator(folder, shape)
            local: QualityEstimator = load_estimator(folder).to(options.device)
            if number == 0:
                with local_ray(options.threads):
                    measure_step(case, folder, local, options)
                    measure_transport(case, options.threads, options.rounds if options.quick else 100)
            totals.append(report_bytes(case, local))
    print(f"The bytes of the two vocabularies differ by {abs(totals[0] - totals[1])}.")


if __name__ == "__main__":
    main()
