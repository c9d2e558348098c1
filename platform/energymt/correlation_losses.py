"""Losses of all sentences of a step at once, by their derivatives: they are no sums over sentences.

Axis of this room: N sentences of a step, over all workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

CorrelationLoss = Literal["pearson", "spearman", "mse"]


def loss_gradient(
    kind: CorrelationLoss,
    raw: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    scale: float = 1.0,
    temperature: float = 0.1,
) -> tuple[float, list[Tensor]]:
    """The loss of a whole step, and N times its derivative by each raw score.

    With Σ slope · raw as the sum of a term whose count is N, the gradient of the step is that of the loss. Every worker
    must ask, also one without a micro-batch.

    Args:
        kind: which loss.
        raw: scores of each micro-batch of this worker, [B] each.
        labels: of the same sentences.
        scale: the variance that squared errors are measured in.
        temperature: of smooth ranks, in standard deviations of the raw scores.
    """
    pairs = zip(raw, labels, strict=True)
    parts = _gathered([(scores_B.detach().double().cpu(), labels_B.double().cpu()) for scores_B, labels_B in pairs])
    raw_N = torch.cat([torch.empty(0, dtype=torch.float64), *(part[0] for _, _, part in parts)]).requires_grad_(True)
    labels_N = torch.cat([torch.empty(0, dtype=torch.float64), *(part[1] for _, _, part in parts)])
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "pearson": negative_pearson,
        "spearman": partial(negative_smooth_spearman, temperature=temperature),
        "mse": lambda found, wanted: (found - wanted).square().mean() / scale,
    }
    with torch.enable_grad():
        loss = losses[kind](raw_N, labels_N)
        (slope_N,) = torch.autograd.grad(loss, raw_N) if loss.requires_grad else (torch.zeros_like(raw_N),)
    slope_N = slope_N * len(raw_N)
    own, start = [], 0
    rank = torch.distributed.get_rank() if _several() else 0
    for worker, number, part in parts:
        if worker == rank:
            own.append(slope_N[start : start + len(part[0])].to(raw[number]))
        start += len(part[0])
    return float(loss.detach()), own


def negative_pearson(raw_N: Tensor, labels_N: Tensor) -> Tensor:
    """−r; 0, and no gradient, where all labels or all scores are equal."""
    if _constant(raw_N) or _constant(labels_N):
        return raw_N.new_zeros(())
    centred_N, wanted_N = raw_N - raw_N.mean(), labels_N - labels_N.mean()
    return -(centred_N @ wanted_N) / (centred_N.norm() * wanted_N.norm())


def negative_smooth_spearman(raw_N: Tensor, labels_N: Tensor, temperature: float) -> Tensor:
    """−Pearson of the labels' ranks and the smooth ranks Σ_j sigmoid((raw_i − raw_j) / (temperature · std))."""
    if _constant(raw_N):
        return raw_N.new_zeros(())
    spread = float(raw_N.detach().std())
    soft_N = torch.sigmoid((raw_N[:, None] - raw_N[None, :]) / (temperature * spread)).sum(1)
    return negative_pearson(soft_N, _ranks(labels_N))


def _constant(values_N: Tensor) -> bool:
    """Whether all are equal; their mean may still differ from them by a rounding."""
    return len(values_N) < 2 or bool(values_N.min() == values_N.max())


def _ranks(labels_N: Tensor) -> Tensor:
    """Of each label, the mean rank of those that are equal to it."""
    below_NN, same_NN = labels_N[:, None] > labels_N[None, :], labels_N[:, None] == labels_N[None, :]
    return below_NN.double().sum(1) + (same_NN.double().sum(1) - 1) / 2


Part = tuple[Tensor, Tensor]


def _gathered(own: list[Part]) -> list[tuple[int, int, Part]]:
    """The parts of all workers: (worker, number there, part), micro-batches in the order in which they were dealt."""
    found: list[list[Part] | None] = [own]
    if _several():
        found = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, own)
    every = [(worker, number, part) for worker, parts in enumerate(found) for number, part in enumerate(parts or [])]
    return sorted(every, key=lambda item: (item[1], item[0]))


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
