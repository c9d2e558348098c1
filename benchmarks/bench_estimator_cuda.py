"""Score and gradient of a quality estimator of COMET-KIWI's shape, as a share of what the device can multiply.

    python -m benchmarks.bench_estimator_cuda --device cuda [--layers 24] [--width 1024] [--rounds N]

A turn is what a replica of a pool computes: scores of 32 translations of 64 tokens with sources of 64 tokens, bf16
weights, and the gradient of the translations' embeddings [B, T, D]. Weights are random and frozen, so the backward
pass makes no gradient of them. Operations are counted from the shapes: 2 for every weight of a linear layer and every
position in the forward pass, and 2 more in the backward pass; attention likewise, where both factors need a gradient.
The rate of the device is that of one large matrix product of the same numbers, measured in turns with it.
Bar: half of that rate. Without `--device cuda` the shape is a small one, in fp32, to see that it runs; no bar then.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.estimators import Shape, write_random_estimator
from benchmarks.timing import MEBIBYTE, interleaved, machine, parse, ratio
from energymt.models.estimator import QualityEstimator
from energymt.models.estimator_folder import load_estimator
from energymt.records import SoftTarget, Source

BAR = 0.5
SENTENCES, LENGTH, VOCABULARY = 32, 64, 250_002
MARKS = 4  # <s>, </s></s>, </s> of a joint input
TERA = 1e12


class Case:
    """An estimator and a batch without padding."""

    def __init__(self, shape: Shape, sentences: int, length: int, device: str, dtype: torch.dtype) -> None:
        with tempfile.TemporaryDirectory() as name:
            write_random_estimator(Path(name) / "estimator", shape)
            estimator: QualityEstimator = load_estimator(Path(name) / "estimator")
        self.estimator = estimator.to(device=device, dtype=dtype).eval().requires_grad_(False)
        draw = torch.Generator().manual_seed(1)
        ids_BS = torch.randint(4, shape.vocabulary - 1, (sentences, length), generator=draw).to(device)
        self.mask_BT = torch.ones_like(ids_BS, dtype=torch.bool)
        self.source, self.shape = Source(ids_BS, self.mask_BT), shape
        emb_BTD = torch.randn(sentences, length, shape.width, generator=draw).mul_(0.02)
        self.emb_BTD = emb_BTD.to(device=device, dtype=dtype).requires_grad_()

    def turn(self) -> torch.Tensor:
        """The gradient of the sum of the scores."""
        score_B = self.estimator(self.source, SoftTarget(None, self.emb_BTD, self.mask_BT))
        return torch.autograd.grad(score_B.sum(), self.emb_BTD)[0]

    @property
    def tokens(self) -> int:
        """Positions of a turn, those of the marks not counted."""
        return 2 * self.mask_BT.numel()

    @property
    def operations(self) -> float:
        """Of a turn, in the linear layers and the attention of the encoder."""
        sentences, positions = len(self.source), 2 * self.mask_BT.shape[1] + MARKS
        linear = 12 * self.shape.width**2  # weights of a layer: 4 D² of attention, 8 D² of the feedforward part
        attention = 2 * positions * self.shape.width  # products a position: with the keys, and with the values
        return sentences * positions * self.shape.layers * (4.0 * linear + 6.0 * attention)


def main() -> None:
    """Entry point."""

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--layers", type=int, default=24)
        parser.add_argument("--width", type=int, default=1024)

    options = parse(__doc__, 30, more)
    cuda = options.device == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    shape, sentences, length = Shape(VOCABULARY, options.width, options.layers), SENTENCES, LENGTH
    if options.quick or not cuda:
        shape, sentences, length = Shape(1000, 64, 2), 4, 16
    case = Case(shape, sentences, length, options.device, dtype)
    side = 8192 if cuda else 512
    left, right = (torch.randn(side, side, device=options.device).to(dtype) for _ in range(2))
    require_finite(case)
    turns = {"product": lambda: left @ right, "estimator": case.turn}
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = interleaved(turns, options.rounds, warm_up=3, device=options.device, clock=options.clock)
    print(f"B, S = T = {sentences}, {length}; V, D, layers = {tuple(shape)}; {dtype}; {machine(options.device)}")
    product, own = (statistics.median(seconds[name]) for name in turns)
    operations = 2.0 * side**3
    print(f"matrix product: {operations / product / TERA:,.3f} TFLOP/s, {side} x {side}")
    rate = case.operations / own / TERA
    print(f"score and gradient: {case.tokens / own:,.0f} tokens/s, {rate:,.3f} TFLOP/s, {1e3 * own:.1f} ms a batch")
    share = ratio(seconds["product"], seconds["estimator"]) * case.operations / operations
    verdict = f", bar {BAR}: {'met' if share >= BAR else 'MISSED'}" if cuda and not options.quick else ""
    print(f"share of the matrix rate: {share:.2f}{verdict}")
    if cuda:
        print(f"most memory: {torch.cuda.max_memory_allocated() / MEBIBYTE:,.0f} MiB")


def require_finite(case: Case) -> None:
    """A gradient of NaN is soon computed."""
    gradient_BTD = case.turn()
    if not bool(gradient_BTD.isfinite().all()) or not bool(gradient_BTD.any()):
        raise SystemExit("The gradient is zero or not finite.")


if __name__ == "__main__":
    main()
