"""The gradient of a quality estimator against the published formulation, from logits or last hidden states on.

    python -m benchmarks.bench_estimator_gradient [--device cuda] [--threads N] [--quick]

Sizes are those of COMET-KIWI (V = 250,002, H = 1,024) with an encoder of 4 layers. A turn is: operator, embeddings,
XLM-R encoder, score, and the gradient of what it started from. Before the clock starts, all must give the same scores
and the same gradient. The peers:
    published   the code of QE-EBM: probabilities of the translation and one-hot vectors of the source in one matrix
                [B, S + T, V] through a Linear of the embedding table. As there, the one-hot vectors and the Linear ask
                for gradients, which nobody reads; those of the encoder's weights are left out here.
    frozen      the same without those gradients, for comparison.
From hidden states both start with the output projection, frozen.
Bars against `published`: from logits 3 times (ST) and 2 times (SX) as fast, with 1/6 and 1/3 of the memory; from hidden
states 1.7 times as fast, with 1/12 of the memory.

Memory is the peak that a turn adds: on CUDA of PyTorch's allocator, on Linux of the process, a fresh one for each turn,
for what an earlier turn left in the allocator's hands would count as there before.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, one_hot
from transformers import XLMRobertaConfig, XLMRobertaModel

from benchmarks.timing import in_fresh_process, interleaved, machine, parse, peak_added, ratio
from energymt.operators import embed
from energymt.projected import embed_projected
from energymt.records import Projection

PUBLISHED, FROZEN, OURS = "published", "frozen", "energymt"


class Bar(NamedTuple):
    """How many times as fast, and as little memory added."""

    start: str
    operator: str
    speed: float
    memory: float


BARS = (
    Bar("logits", "ST", 3.0, 6.0),
    Bar("logits", "SX", 2.0, 3.0),
    Bar("hidden states", "ST", 1.7, 12.0),
    Bar("hidden states", "SX", 1.7, 12.0),
)


class Sizes(NamedTuple):
    """Sentences, tokens of the source and of the translation, and the networks."""

    sentences: int
    length: int
    vocabulary: int
    width: int
    layers: int


FULL, QUICK = Sizes(8, 32, 250_002, 1024, 4), Sizes(2, 4, 1000, 64, 1)


class Case:
    """What turns start from, and the frozen networks."""

    def __init__(self, start: str, sizes: Sizes, device: str):
        torch.manual_seed(1)
        config = XLMRobertaConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.width,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.width // 64,
            intermediate_size=4 * sizes.width,
            max_position_embeddings=514,
            type_vocab_size=1,
        )
        self.encoder = XLMRobertaModel(config, add_pooling_layer=False).eval().requires_grad_(False).to(device)
        self.head = torch.nn.Linear(sizes.width, 1, device=device).requires_grad_(False)
        self.table_VD = self.encoder.get_input_embeddings().weight
        shape = (sizes.sentences, sizes.length)
        self.source_BS = torch.randint(sizes.vocabulary, shape).to(device)
        self.matrix_VH: Tensor | None = None
        if start == "logits":
            self.leaf = torch.randn(*shape, sizes.vocabulary).to(device).requires_grad_()
        else:
            self.leaf = torch.randn(*shape, sizes.width).to(device).requires_grad_()
            self.matrix_VH = torch.randn(sizes.vocabulary, sizes.width).div_(sizes.width**0.5).to(device)

    def ours(self, name: str) -> Tensor:
        """Embeddings of translation and source, [B, T + S, D]."""
        source_BSD = embedding(self.source_BS, self.table_VD)
        if self.matrix_VH is None:
            return torch.cat([embed(name, self.leaf, self.table_VD), source_BSD], 1)
        return torch.cat([embed_projected(name, Projection(self.leaf, self.matrix_VH), self.table_VD), source_BSD], 1)

    def dense(self, name: str, frozen: bool) -> tuple[Tensor, list[Tensor]]:
        """The same through a matrix [B, T + S, V], and what else asks for a gradient."""
        logits_BTV = self.leaf if self.matrix_VH is None else linear(self.leaf, self.matrix_VH)
        probs_BTV = logits_BTV.softmax(-1)
        if name == "ST":
            ids_BT1 = probs_BTV.argmax(-1, keepdim=True)
            hard_BTV = torch.zeros_like(probs_BTV).scatter_(-1, ids_BT1, 1.0)
            probs_BTV = (hard_BTV - probs_BTV).detach() + probs_BTV
            del hard_BTV
        source_BSV = one_hot(self.source_BS, len(self.table_VD)).float().requires_grad_(not frozen)
        weight_DV = self.table_VD.T.detach().requires_grad_(not frozen)
        emb_BJD = linear(torch.cat([probs_BTV, source_BSV], 1), weight_DV)
        return emb_BJD, [] if frozen else [source_BSV, weight_DV]

    def turn(self, side: str, name: str) -> tuple[Tensor, Tensor]:
        """Scores [B], and the gradient of their sum."""
        emb_BJD, others = (self.ours(name), []) if side == OURS else self.dense(name, side == FROZEN)
        states_BJD = self.encoder(inputs_embeds=emb_BJD).last_hidden_state
        score_B = self.head(states_BJD[:, 0]).squeeze(-1)
        grad, *_ = torch.autograd.grad(score_B.sum(), [self.leaf, *others])
        return score_B.detach(), grad

    def contestants(self, name: str) -> dict[str, Callable[[], object]]:
        """All sides, by the name of their row."""
        return {side: lambda side=side: self.turn(side, name) for side in (PUBLISHED, FROZEN, OURS)}


def require_equal(case: Case, name: str) -> None:
    """All must compute the same, or the ratio means nothing."""
    ours = case.turn(OURS, name)
    for side in (PUBLISHED, FROZEN):
        for mine, other in zip(ours, case.turn(side, name), strict=True):
            if not torch.allclose(mine, other, rtol=1e-3, atol=1e-4 * float(other.abs().max())):
                worst = float((mine - other).abs().max())
                raise SystemExit(f"{name}: energymt and {side} differ by up to {worst:.3g}.")


def memory_added(bar: Bar, side: str, sizes: Sizes, device: str, threads: int) -> float | None:
    """MiB that one turn adds at its peak."""
    torch.set_num_threads(threads)
    Case(bar.start, QUICK, device).turn(side, bar.operator)  # what libraries load once is not counted
    case = Case(bar.start, sizes, device)
    return peak_added(lambda: case.turn(side, bar.operator), device)


def report(bar: Bar, seconds: dict[str, list[float]], memory: dict[str, float | None]) -> None:
    """A row for each side, and the ratios with their bars."""
    for side, own in seconds.items():
        added = memory[side]
        row = f"{bar.operator:4}{'from ' + bar.start:20}{side:12}"
        print(f"{row}{statistics.median(own):9.3f}{'-' if added is None else f'{added:.0f}':>12}")
    for peer in (PUBLISHED, FROZEN):
        faster, less = ratio(seconds[peer], seconds[OURS]), memory_ratio(memory[peer], memory[OURS])
        if peer == PUBLISHED:
            print(
                f"{bar.operator} from {bar.start}: {faster:.2f} times as fast as {peer}, bar {bar.speed}: "
                f"{verdict(faster, bar.speed)}; 1/{less:.1f} of the memory, bar 1/{bar.memory:.0f}: "
                f"{verdict(less, bar.memory)}"
            )
        else:
            print(f"{'':4}{faster:.2f} times as fast as {peer}; 1/{less:.1f} of the memory", flush=True)


def memory_ratio(peer: float | None, ours: float | None) -> float:
    """How many times the memory the peer adds; NaN where the system does not tell."""
    return peer / ours if peer is not None and ours else math.nan


def verdict(found: float, bar: float) -> str:
    if math.isnan(found):
        return "unknown"
    return "met" if found >= bar else "MISSED"


def main() -> None:
    """Entry point."""
    options = parse(__doc__, 3, lambda parser: None)
    sizes, device = QUICK if options.quick else FULL, options.device
    print(f"B, S = T, V, H, layers = {tuple(sizes)}, {machine(device)}; medians of {options.rounds} turns")
    print(f"{'':36}{'s':>9}{'MiB added':>12}")
    measure = memory_added if device == "cuda" else partial(in_fresh_process, memory_added)
    for start in ("logits", "hidden states"):
        bars = [bar for bar in BARS if bar.start == start]
        # Before the case of this process is made: on CUDA they share a device.
        memory = {
            bar: {side: measure(bar, side, sizes, device, options.threads) for side in (PUBLISHED, FROZEN, OURS)}
            for bar in bars
        }
        case = Case(start, sizes, device)
        for bar in bars:
            require_equal(case, bar.operator)  # and all are warm
            turns = case.contestants(bar.operator)
            seconds = interleaved(turns, options.rounds, warm_up=0, device=device, clock=options.clock)
            report(bar, seconds, memory[bar])
        del case


if __name__ == "__main__":
    main()
