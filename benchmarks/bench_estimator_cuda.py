"""Score and gradient of a quality estimator of COMET-KIWI's shape, as a share of what the device can multiply.

    python -m benchmarks.bench_estimator_cuda --device cuda [--sentences 64] [--length 64] [--layers 24] [--width 1024]

Three cases, with an encoder in bf16: `full`, the module on sentences and translations of `--length` tokens each;
`ragged`, of lengths from a quarter of that to the whole, padded, as a batch of real text is; and `server`, what a
replica of a pool computes for a request like `full`, with the way of embeddings to the device and of scores and
gradients back to the host. As many sentences as fill a pool's default `tokens_per_batch`, unless `--sentences` says
otherwise. Weights are random and frozen, so the backward pass makes no gradient of them.

Operations are counted from the shapes, for real positions alone: 2 for every weight of a linear layer and every
position in the forward pass, and 2 more in the backward pass; attention likewise, where both factors need a gradient.
The rate of the device is that of one large matrix product of the same numbers, measured in turns with the cases.
Bar: half of that rate for `full`. Before the clock starts, scores in bf16 must be those in fp32 within 0.02, or nothing
is measured. Without `--device cuda` the shape is a small one, in fp32, to see that it runs; no bar then.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.estimators import Shape, write_random_estimator
from benchmarks.timing import MEBIBYTE, interleaved, machine, parse, ratio
from energymt.models.estimator import QualityEstimator
from energymt.models.estimator_folder import load_estimator
from energymt.pool.server import Server
from energymt.pool.settings import PoolConfig
from energymt.pool.wire import Request, pack
from energymt.records import SoftTarget, Source

BAR, TOLERANCE = 0.5, 0.02
LENGTH, VOCABULARY = 64, 250_002
BUDGET = int(PoolConfig.model_fields["tokens_per_batch"].default)
MARKS = 4  # <s>, </s></s>, </s> of a joint input
ATTENTION = "scaled_dot_product"
TERA = 1e12


class Batch:
    """Sentences with these lengths, of source and translation alike, and random translations."""

    def __init__(self, estimator: QualityEstimator, lengths: Tensor) -> None:
        device, (size, width) = estimator.device, estimator.table_VD.shape
        draw = torch.Generator().manual_seed(1)
        self.lengths_B, longest = lengths, int(lengths.max())
        self.mask_BT = (torch.arange(longest) < lengths[:, None]).to(device)
        ids_BS = torch.randint(4, size - 1, (len(lengths), longest), generator=draw).to(device)
        self.source = Source(ids_BS.masked_fill(~self.mask_BT, estimator.vocabulary.pad_id), self.mask_BT)
        self.emb_BTD = torch.randn(len(lengths), longest, width, generator=draw).mul_(0.02).to(device)

    def scores(self, estimator: QualityEstimator) -> Tensor:
        """[B]."""
        with torch.no_grad():
            return estimator(self.source, SoftTarget(None, self.emb_BTD, self.mask_BT))

    def turn(self, estimator: QualityEstimator) -> Tensor:
        """The gradient of the sum of the scores."""
        emb_BTD = self.emb_BTD.to(estimator.table_VD.dtype).requires_grad_()
        score_B = estimator(self.source, SoftTarget(None, emb_BTD, self.mask_BT))
        return torch.autograd.grad(score_B.sum(), emb_BTD)[0]

    def request(self) -> Request:
        """As a trainer sends it, on the host."""
        packed = pack(self.source, SoftTarget(None, self.emb_BTD, self.mask_BT), "fp32")
        return Request("0", "benchmark", *packed, gradient=True, precision="fp32")

    @property
    def tokens(self) -> int:
        """Real positions of a turn, those of the marks not counted."""
        return 2 * int(self.lengths_B.sum())

    def operations(self, shape: Shape) -> float:
        """Of a turn, in the linear layers and the attention of the encoder."""
        positions_B = 2.0 * self.lengths_B.double() + MARKS
        linear = 12 * shape.width**2  # weights of a layer: 4 D² of attention, 8 D² of the feedforward part
        attention_B = 2.0 * positions_B * shape.width  # products a position: with the keys, and with the values
        return float((positions_B * shape.layers * (4.0 * linear + 6.0 * attention_B)).sum())


def main() -> None:
    """Entry point."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--sentences", type=int, help=f"default: as many as fill {BUDGET:,} positions")
        parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a source, and of a translation")
        parser.add_argument("--layers", type=int, default=24)
        parser.add_argument("--width", type=int, default=1024)

    options = parse(__doc__, 30, more)
    cuda = options.device == "cuda"
    barred, dtype = cuda and not options.quick, torch.bfloat16 if cuda else torch.float32
    shape, length = Shape(VOCABULARY, options.width, options.layers), options.length
    sentences = options.sentences or max(1, BUDGET // (2 * length))
    if options.quick or not cuda:
        shape, sentences, length = Shape(1000, 64, 2), 4, 16
    estimator = random_estimator(shape).to(options.device)
    draw = torch.Generator().manual_seed(2)
    ragged_B = torch.randint(max(1, length // 4), length + 1, (sentences,), generator=draw)
    ragged_B[0] = length
    full, ragged = Batch(estimator, torch.full((sentences,), length)), Batch(estimator, ragged_B)
    wanted = [batch.scores(estimator) for batch in (full, ragged)]
    estimator.bfloat16()
    found = [batch.scores(estimator) for batch in (full, ragged)]
    gap = max(float((own - other).abs().max()) for own, other in zip(found, wanted, strict=True))
    if not gap <= TOLERANCE:
        raise SystemExit(f"Scores in bf16 and fp32 differ by {gap:.3g}, more than {TOLERANCE}: nothing is measured.")
    if not cuda:
        estimator = random_estimator(shape)
    server, request = Server(estimator), full.request()
    require_finite(estimator, full)

    side = 8192 if cuda else 512
    left, right = (torch.randn(side, side, device=options.device).to(dtype) for _ in range(2))
    turns = {
        "product": lambda: left @ right,
        "full": lambda: full.turn(estimator),
        "ragged": lambda: ragged.turn(estimator),
        "server": lambda: server.answer([request]),
    }
    kernels = {name: attention_of(turns[name]) for name in ("full", "ragged", "server")}
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = interleaved(turns, options.rounds, warm_up=3, device=options.device, clock=options.clock)
    print(f"B, S = T = {sentences}, {length}; V, D, layers = {tuple(shape)}; {dtype}; {machine(options.device)}")
    print(f"scores in bf16 and fp32 differ by {gap:.2g} at most, tolerance {TOLERANCE}")
    operations = 2.0 * side**3
    rate = operations / statistics.median(seconds["product"]) / TERA
    print(f"matrix product: {rate:,.3f} TFLOP/s, {side} x {side}")
    for name, batch in (("full", full), ("ragged", ragged), ("server", full)):
        own, mine = statistics.median(seconds[name]), batch.operations(shape)
        print(
            f"{name}: {batch.tokens / own:,.0f} tokens/s, {mine / own / TERA:,.3f} TFLOP/s, {1e3 * own:.1f} ms a batch"
        )
        share = ratio(seconds["product"], seconds[name]) * mine / operations
        verdict = f", bar {BAR}: {'met' if share >= BAR else 'MISSED'}" if barred and name == "full" else ""
        print(f"{name}: share of the matrix rate: {share:.2f}{verdict}; attention: {kernels[name]}")
    if cuda:
        print(f"most memory: {torch.cuda.max_memory_allocated() / MEBIBYTE:,.0f} MiB")


def random_estimator(shape: Shape) -> QualityEstimator:
    """Frozen, in fp32."""
    with tempfile.TemporaryDirectory() as name:
        write_random_estimator(Path(name) / "estimator", shape)
        return load_estimator(Path(name) / "estimator")


def attention_of(turn: Callable[[], object]) -> str:
    """The kernels of torch's attention that ran in a turn, by the names that torch gives them."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        turn()
    names = {event.key for event in seen.key_averages()}
    found = sorted(name.removeprefix("aten::_") for name in names if name.startswith(f"aten::_{ATTENTION}"))
    return ", ".join(name for name in found if "backward" not in name) or "written out"


def require_finite(estimator: QualityEstimator, batch: Batch) -> None:
    """A gradient of NaN is soon computed."""
    gradient_BTD = batch.turn(estimator)
    if not bool(gradient_BTD.isfinite().all()) or not bool(gradient_BTD.any()):
        raise SystemExit("The gradient is zero or not finite.")


if __name__ == "__main__":
    main()
