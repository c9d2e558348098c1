"""`operators.embed` against a one-hot through a Linear, forward and backward, for the vocabulary of an estimator.

    python -m benchmarks.bench_embed [--device cuda] [--threads N] [--quick]

V = 250,002 and D = 1,024 are those of XLM-R large. Both sides start from the same logits and the same gradient of the
embeddings, and end with the gradient of the logits; the table is frozen. The peer is what one writes by hand: ST as
one-hot + softmax − softmax.detach(), SX as softmax, each through `nn.Linear` without a bias. Before the clock starts,
both must give the same embeddings and the same gradient.

Memory is the peak above what logits and table take: on CUDA of PyTorch's allocator, on Linux of the process.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import interleaved, machine, parse, peak_added, ratio
from energymt.operators import embed

OPERATORS = ("ST", "SX")


class Case:
    """Logits, a frozen table, and a gradient of the embeddings."""

    def __init__(self, sentences: int, length: int, vocabulary: int, width: int, device: str):
        draw = torch.Generator().manual_seed(1)
        self.logits_BTV = torch.randn(sentences, length, vocabulary, generator=draw).to(device).requires_grad_()
        self.table_VD = torch.randn(vocabulary, width, generator=draw).to(device)
        self.grad_BTD = torch.randn(sentences, length, width, generator=draw).to(device)
        self.linear = torch.nn.Linear(vocabulary, width, bias=False, device="meta")
        self.linear.weight = torch.nn.Parameter(self.table_VD.T, requires_grad=False)

    def ours(self, name: str) -> Tensor:
        """Our operator."""
        return embed(name, self.logits_BTV, self.table_VD)

    def by_hand(self, name: str) -> Tensor:
        """A distribution over the vocabulary through a Linear."""
        probs_BTV = self.logits_BTV.softmax(-1)
        if name == "ST":
            ids_BT1 = self.logits_BTV.argmax(-1, keepdim=True)
            one_hot_BTV = torch.zeros_like(probs_BTV).scatter_(-1, ids_BT1, 1.0)
            probs_BTV = one_hot_BTV + probs_BTV - probs_BTV.detach()
        out: Tensor = self.linear(probs_BTV)
        return out

    def turn(self, forward: Callable[[str], Tensor], name: str) -> tuple[Tensor, Tensor]:
        """Forward and backward: embeddings and the gradient of the logits."""
        emb_BTD = forward(name)
        (grad_BTV,) = torch.autograd.grad(emb_BTD, self.logits_BTV, self.grad_BTD)
        return emb_BTD.detach(), grad_BTV

    def contestants(self, name: str) -> dict[str, Callable[[], object]]:
        """Both sides, by the name of their row."""
        sides = {"one-hot × Linear": self.by_hand, "embed": self.ours}
        return {side: lambda forward=forward: self.turn(forward, name) for side, forward in sides.items()}


def require_equal(case: Case, name: str) -> None:
    """Both ways must compute the same, or the ratio means nothing."""
    for mine, other in zip(case.turn(case.ours, name), case.turn(case.by_hand, name), strict=True):
        if not torch.allclose(mine, other, rtol=1e-3, atol=1e-5 * float(other.abs().max())):
            worst = float((mine - other).abs().max())
            raise SystemExit(f"{name}: embed and one-hot × Linear differ by up to {worst:.3g}.")


def main() -> None:
    """Entry point."""
    options = parse(__doc__, 5, lambda parser: None)
    sizes = (2, 4, 1000, 16) if options.quick else (8, 32, 250_002, 1024)
    print(f"embed + backward, B, T, V, D = {sizes}, {machine(options.device)}; medians of {options.rounds} turns")
    print(f"{'':6}{'':20}{'s':>9}{'MiB added':>12}")
    case = Case(*sizes, options.device)
    for name in OPERATORS:
        require_equal(case, name)
        turns = case.contestants(name)
        seconds = interleaved(turns, options.rounds, device=options.device, clock=options.clock)
        # Twice: what an earlier turn left in the allocator's hands counts in the first.
        found = {side: [peak_added(turn, options.device) for _ in range(2)] for side, turn in turns.items()}
        memory = {side: None if None in values else min(values) for side, values in found.items()}
        for side, own in seconds.items():
            added = memory[side]
            print(f"{name:6}{side:20}{statistics.median(own):9.3f}{'-' if added is None else f'{added:.0f}':>12}")
        told = f"{name}: {ratio(seconds['one-hot × Linear'], seconds['embed']):.2f} times as fast"
        peer, ours = memory["one-hot × Linear"], memory["embed"]
        if peer is not None and ours:
            told += f", 1/{peer / ours:.1f} of the memory"
        print(told, flush=True)


if __name__ == "__main__":
    main()
