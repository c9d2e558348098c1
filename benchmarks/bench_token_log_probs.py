"""Log-probabilities of given tokens from hidden states, against log-softmax and gather over logits.

    python -m benchmarks.bench_token_log_probs [--device cuda] [--threads N] [--quick]

What cross-entropy, REINFORCE and PPO ask of a translator: with the vocabulary of mBART-50, V = 250,002 and H = 1,024,
and with that of a translator trained here, V = 8,000 and H = 160 (`teacher_forcing.LARGE_FOR_LOSS`). Both sides start
from the same hidden states and output matrix and the same gradient of the log-probabilities. The matrix is frozen (as
beside low-rank adapters: only the hidden states get a gradient), or learnt (both get one). The peer is what one writes
by hand: `linear`, `log_softmax`, `gather`. Before the clock starts, both must give the same log-probabilities and the
same gradients.

Memory is the peak above what hidden states and matrix take, the gradients counted (that of the matrix is 977 MiB): on
CUDA of PyTorch's allocator, on Linux of the process.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.timing import interleaved, machine, parse, peak_added, ratio
from energymt.policy import token_log_probs
from energymt.records import Projection

SIZES = [(512, 250_002, 1024), (4096, 8_000, 160)]  # tokens, V, H
OURS, BY_HAND = "from hidden states", "log_softmax, gather"


class Case:
    """Hidden states, an output matrix, tokens, and a gradient of their log-probabilities."""

    def __init__(self, tokens: int, vocabulary: int, width: int, device: str, learns: bool):
        draw = torch.Generator().manual_seed(1)
        shape = (tokens // 32 or 1, min(tokens, 32))
        self.hidden_RUH = torch.randn(*shape, width, generator=draw).to(device).requires_grad_()
        self.matrix_VH = torch.randn(vocabulary, width, generator=draw).mul_(width**-0.5).to(device)
        self.target_RU = torch.randint(vocabulary, shape, generator=draw).to(device)
        self.grad_RU = torch.randn(*shape, generator=draw).to(device)
        self.mask_RU = torch.ones_like(self.target_RU, dtype=torch.bool)
        self.asked = [self.hidden_RUH]
        if learns:
            self.asked.append(self.matrix_VH.requires_grad_())

    def ours(self) -> Tensor:
        """Ours, which takes what the logits are made from."""
        return token_log_probs(Projection(self.hidden_RUH, self.matrix_VH), self.target_RU, self.mask_RU)

    def by_hand(self) -> Tensor:
        """Over logits."""
        logp_RUV = linear(self.hidden_RUH, self.matrix_VH).log_softmax(-1)
        return logp_RUV.gather(-1, self.target_RU.unsqueeze(-1)).squeeze(-1)

    def turn(self, forward: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        """Forward and backward: log-probabilities and the gradients."""
        logp_RU = forward()
        return logp_RU.detach(), *torch.autograd.grad(logp_RU, self.asked, self.grad_RU)

    def contestants(self) -> dict[str, Callable[[], object]]:
        """Both sides, by the name of their row."""
        sides = {BY_HAND: self.by_hand, OURS: self.ours}
        return {side: lambda forward=forward: self.turn(forward) for side, forward in sides.items()}


def require_equal(case: Case) -> None:
    """Both ways must compute the same, or the ratio means nothing."""
    for mine, other in zip(case.turn(case.ours), case.turn(case.by_hand), strict=True):
        if not torch.allclose(mine, other, rtol=1e-3, atol=1e-5 * float(other.abs().max())):
            raise SystemExit(f"The two ways differ by up to {float((mine - other).abs().max()):.3g}.")


def compare(sizes: tuple[int, int, int], options: argparse.Namespace) -> None:
    """Print both matrices of one size."""
    print(f"\ntokens, V, H = {sizes}\n{'matrix':8}{'':20}{'s':>9}{'MiB added':>12}")
    for name in ("frozen", "learnt"):
        case = Case(*sizes, options.device, learns=name == "learnt")
        require_equal(case)
        turns = case.contestants()
        seconds = interleaved(turns, options.rounds, device=options.device, clock=options.clock)
        # Twice: what an earlier turn left in the allocator's hands counts in the first.
        found = {side: [peak_added(turn, options.device) for _ in range(2)] for side, turn in turns.items()}
        memory = {side: None if None in values else min(values) for side, values in found.items()}
        for side, own in seconds.items():
            added = memory[side]
            print(f"{name:8}{side:20}{statistics.median(own):9.3f}{'-' if added is None else f'{added:.0f}':>12}")
        told = f"{name}: {ratio(seconds[BY_HAND], seconds[OURS]):.2f} times as fast"
        if memory[BY_HAND] is not None and memory[OURS]:
            told += f", 1/{memory[BY_HAND] / memory[OURS]:.1f} of the memory"
        print(told, flush=True)


def main() -> None:
    """Entry point."""
    options = parse(__doc__, 5, lambda parser: None)
    print(f"forward + backward, {machine(options.device)}; medians of {options.rounds} turns")
    for sizes in [(8, 1000, 16)] if options.quick else SIZES:
        compare(sizes, options)


if __name__ == "__main__":
    main()
