"""How far the gradients of QE-EBM and REINFORCE are from the exact one, where every sentence can be enumerated.

    python -m benchmarks.enumerable [--worlds 6] [--draws 50]

A world is 3 words, at most 3 tokens, a translator that is a random table of logits for each prefix, and a COMET-KIWI of
random weights (`tests.enumerated`). Means over sentences are exact sums; only the Gumbel noise of SG and GX is drawn.
Prints Markdown, in each cell the mean over worlds and the range:

    bias     norm of (mean gradient − exact gradient), in norms of the exact gradient of Σ_y p(y) E(y)
    cosine   of the mean gradient with the exact one
    noise    standard deviation of the mean of K = 5 samples, in the same norms; REINFORCE, also that of the end alone,
             with leave-one-out
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor

from energymt.operators import OPERATORS
from energymt.policy import leave_one_out
from tests.enumerated import World

K = 5
GROUPS = 1000  # of K samples, for the noise of what has a baseline


class Setting(NamedTuple):
    """Which sentences there are, and whether a relaxed token holds a share of the end token."""

    title: str
    fixed: bool
    end: bool


SETTINGS = (
    Setting("Every sentence has 3 tokens", fixed=True, end=True),
    Setting("Sentences of 0 to 3 tokens; a relaxed token may be the end", fixed=False, end=True),
    Setting("Sentences of 0 to 3 tokens; a relaxed token is a word", fixed=False, end=False),
)


class Row(NamedTuple):
    """One gradient estimator in one world; `error` is the standard error of the bias."""

    bias: float
    cosine: float
    noise: float
    error: float = 0.0


def qe_ebm(world: World, exact: Tensor, feed: str, sampled: bool, draws: int, end: bool) -> Row:
    """The gradient of the relaxed energy, prefixes sampled from the translator."""
    grad_NYX = world.relaxed(feed, sampled, draws, end)[1].flatten(2)
    grad_NX = torch.stack([world.mean(grad_YX) for grad_YX in grad_NYX])
    mean_X = grad_NX.mean(0)
    variance = world.mean((grad_NYX - mean_X).square().sum(-1).mean(0)).item()
    error = 0.0 if draws == 1 else (grad_NX.std(0).norm() / draws**0.5).item()
    return row_of(mean_X, exact, variance / K, error)


def with_ending(world: World, exact: Tensor, feed: str, sampled: bool, draws: int) -> Row:
    """The words by the relaxed energy, the decisions to stop by REINFORCE on it (`ending: reinforce` of `qe_ebm`)."""
    energy_NY, grad_NYPA = world.relaxed(feed, sampled, draws, False)
    words_NYX, stops_YX = grad_NYPA.flatten(2), world.stops().flatten(1)
    # In the mean over samples the others of a group, which are the baseline, say nothing.
    grad_NYX = words_NYX + energy_NY.unsqueeze(-1) * stops_YX
    mean_NX = torch.stack([world.mean(grad_YX) for grad_YX in grad_NYX])
    error = 0.0 if draws == 1 else (mean_NX.std(0).norm() / draws**0.5).item()
    sentence_GK = world.sample(GROUPS, K)
    draw_GK = torch.randint(draws, sentence_GK.shape, generator=torch.Generator().manual_seed(0))
    advantage_GK1 = leave_one_out(-energy_NY[draw_GK, sentence_GK]).unsqueeze(-1)
    grad_GX = (words_NYX[draw_GK, sentence_GK] - advantage_GK1 * stops_YX[sentence_GK]).mean(1)
    return row_of(mean_NX.mean(0), exact, grad_GX.var(0).sum().item(), error)


def reinforce(world: World, exact: Tensor) -> Row:
    """The mean over all pairs of sentences; the noise of groups of K."""
    pairs_GK = torch.cartesian_prod(world.everyone_Y, world.everyone_Y)
    mean_X = torch.tensordot(world.probs_Y[pairs_GK].prod(1), world.reinforce(pairs_GK).flatten(1), dims=1)
    grad_GX = world.reinforce(world.sample(GROUPS, K)).flatten(1)
    return row_of(mean_X, exact, grad_GX.var(0).sum().item(), 0.0)


def row_of(mean_X: Tensor, exact: Tensor, variance: float, error: float) -> Row:
    """In norms of the exact gradient."""
    exact_X = exact.flatten()
    norm = exact_X.norm().item()
    cosine = torch.cosine_similarity(mean_X, exact_X, dim=0).item()
    return Row((mean_X - exact_X).norm().item() / norm, cosine, variance**0.5 / norm, error / norm)


def measure(setting: Setting, seed: int, draws: int) -> dict[str, Row]:
    """All estimators in one world."""
    world = World(seed, fixed=setting.fixed)
    exact, rows = world.exact_gradient(), {}
    for feed, kind in OPERATORS.items():
        for value in ("sampled", "argmax") if kind.hard else ("–",):
            repeats = draws if kind.noisy else 1
            rows[f"{feed} | {value}"] = qe_ebm(world, exact, feed, value == "sampled", repeats, setting.end)
    if not setting.end:
        for feed, value in (("SX", "–"), ("ST", "sampled"), ("GX", "–")):
            rows[f"{feed}, end by REINFORCE | {value}"] = with_ending(
                world, exact, feed, value == "sampled", draws if OPERATORS[feed].noisy else 1
            )
    rows["REINFORCE | –"] = reinforce(world, exact)
    return rows


def cell(values: list[float]) -> str:
    """Mean and range."""
    return f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def table(setting: Setting, worlds: list[dict[str, Row]]) -> str:
    """Markdown."""
    lines = ["| gradient | value of a hard token | bias | cosine | noise of 5 samples |", "| --- " * 5 + "|"]
    for name in worlds[0]:
        rows = [world[name] for world in worlds]
        cells = [cell([getattr(row, column) for row in rows]) for column in ("bias", "cosine", "noise")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    error = max(row.error for world in worlds for row in world.values())
    return "\n".join([f"**{setting.title}**", "", *lines, "", f"Standard error of a bias: at most {error:.2f}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=6)
    parser.add_argument("--draws", type=int, default=50, help="of noise, for SG and GX")
    options = parser.parse_args()
    for setting in SETTINGS:
        worlds = [measure(setting, seed, options.draws) for seed in range(options.worlds)]
        print(table(setting, worlds), end="\n\n")


if __name__ == "__main__":
    main()
