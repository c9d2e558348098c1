"""One optimizer step, exact over micro-batches and workers.

Gradients are *summed* over workers, each micro-batch already divided by the global count: 1 × 8 sentences,
4 × 2 accumulated and 2 workers give the same step, also when a worker gets no micro-batch at all.
(DistributedDataParallel averages instead, and waits for workers that have nothing to send.)
Dropout is seeded by (seed, step, micro-batch), so it does not depend on the number of workers either.

The parts of a mixture are differentiated one by one and weighed when all gradients are known; while one of them waits
for an answer from elsewhere, the others are computed.
"""

from __future__ import annotations

import math
from collections import deque
from itertools import compress
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from energymt.configuration import OptimizerConfig, TrainingConfig
from energymt.errors import ConfigurationError, DivergenceError
from energymt.models.network import Network
from energymt.models.translator import HEADS
from energymt.records import Batch, Mixture, Pending, Step, Term

AHEAD = 2  # micro-batches of a part whose terms wait for an answer at the same time
PLACES = 1 << 16  # more than a part has micro-batches, so that no two micro-batches of a step share their dropout

Gradient = list[torch.Tensor | None]
"""Of each parameter that learns."""


def optimise(
    step: Step | Mixture,
    model: Network,
    optimizer: torch.optim.Optimizer,
    fabric: Fabric,
    config: TrainingConfig,
    number: int,
    rate: float,
) -> dict[str, float]:
    """Step `number` at learning rate `rate`; returns each term's mean over the whole step, and the gradient's norm.

    Raises:
        DivergenceError: loss or gradient not finite; the weights are as they were.
    """
    parts = step.parts if isinstance(step, Mixture) else {"": step}
    parameters = [p for p in model.parameters() if p.requires_grad]
    metrics: dict[str, float] = {}
    optimizer.zero_grad(set_to_none=True)
    runs = [_Run(part, place, fabric, config, number) for place, part in enumerate(parts.values())]
    for run in runs:
        run.begin()
    gradients: list[Gradient] = []
    for run in reversed(runs):
        run.end()
        metrics |= run.means()
        sum_gradients(fabric, parameters)
        if isinstance(step, Mixture):
            gradients.insert(0, _taken(parameters))
    if isinstance(step, Mixture):
        # What a method trains beside the translator (a value head) does not count in the weights.
        counted = [not name.startswith(HEADS) for name, p in model.named_parameters() if p.requires_grad]
        metrics |= _mix(step, gradients, parameters, counted, metrics, fabric)
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.clip_norm).item()
    if not math.isfinite(norm):
        raise DivergenceError(f"The gradient is not finite at step {number + 1}: {_advice(number)}")
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    optimizer.step()
    more = step.more() if isinstance(step, Mixture) else {}
    metrics = {f"train/{name}": value for name, value in {**metrics, **more}.items()}
    tokens = sum(_target_tokens(part, fabric) for part in parts.values())
    return {**metrics, "train/gradient_norm": norm, "time/tokens": tokens}


class _Run:
    """A part of a step on its way: micro-batches whose terms wait for an answer are a few ahead of the others."""

    def __init__(self, step: Step, place: int, fabric: Fabric, config: TrainingConfig, number: int) -> None:
        self.step, self.place, self.fabric, self.config, self.number = step, place, fabric, config, number
        self.totals = global_counts(step, fabric)
        self.sums = dict.fromkeys(step.terms, 0.0)
        self.coming = iter(enumerate(step.micro_batches))
        self.begun: deque[tuple[int, Batch, list[Term] | Pending]] = deque()

    def begin(self) -> None:
        """Begin micro-batches until one is ready or enough are in flight."""
        while len(self.begun) < AHEAD and not (self.begun and isinstance(self.begun[-1][2], list)):
            index, batch = next(self.coming, (-1, None))
            if batch is None:
                return
            turn = self.fabric.global_rank + index * self.fabric.world_size
            seed_dropout(self.config.seed, self.number, turn + PLACES * self.place)
            with self.fabric.autocast():
                self.begun.append((index, batch, self.step.losses(batch.to(self.fabric.device))))

    def end(self) -> None:
        """Every micro-batch to its backward pass."""
        while self.begun:
            index, batch, found = self.begun.popleft()
            if not isinstance(found, list):
                self.begin()
                with self.fabric.autocast():
                    found = found()
            totals = self.totals
            loss = torch.stack([t.weight * t.sum.float() / totals[t.name] for t in found if totals[t.name] > 0]).sum()
            require_finite(loss, found, batch, self.number, index)
            loss.backward()
            for term in found:
                self.sums[term.name] += term.sum.item()
            del found, loss
            self.begin()

    def means(self) -> dict[str, float]:
        """Of each term, over micro-batches and workers."""
        reduced = _sum_over_workers(self.fabric, list(self.sums.values()))
        pairs = zip(self.step.terms, reduced, strict=True)
        return {name: value / self.totals[name] for name, value in pairs if self.totals[name] > 0}


def _taken(parameters: list[nn.Parameter]) -> Gradient:
    """The gradients of the parameters, which have none from then on."""
    found = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return found


def _mix(
    step: Mixture,
    gradients: list[Gradient],
    parameters: list[nn.Parameter],
    counted: list[bool],
    means: dict[str, float],
    fabric: Fabric,
) -> dict[str, float]:
    """Put the weighted sum of the parts' gradients in place; returns norms, cosines and weights for the log."""
    sides = [list(compress(found, counted)) for found in gradients]
    products = [[_product(first, second) for second in sides] for first in sides]
    gram_PP = torch.tensor(products, dtype=torch.float64)
    with fabric.autocast():  # a method may have something left to compute by the weights that the step began with
        weights = step.weigh(gram_PP, means)
    for place, parameter in enumerate(parameters):
        for weight, found in zip(weights, gradients, strict=True):
            share = found[place]
            if weight != 0.0 and share is not None:
                parameter.grad = weight * share if parameter.grad is None else parameter.grad.add_(share, alpha=weight)
    names, norms_P = list(step.parts), gram_PP.diagonal().sqrt()
    metrics = {f"weight_{name}": weight for name, weight in zip(names, weights, strict=True)}
    metrics |= {f"norm_{name}": norm for name, norm in zip(names, norms_P.tolist(), strict=True)}
    if len(names) == 2 and norms_P.min() > 0:
        metrics["gradient_cosine"] = float(gram_PP[0, 1] / norms_P.prod())
        metrics["gradient_ratio"] = float(weights[0] * norms_P[0] / (weights[1] * norms_P[1])) if weights[1] else 0.0
    return metrics


def _product(first: Gradient, second: Gradient) -> float:
    """The scalar product of two gradients."""
    pairs = zip(first, second, strict=True)
    products = [torch.sum(a.double() * b.double()) for a, b in pairs if a is not None and b is not None]
    return float(torch.stack(products).sum()) if products else 0.0


def global_counts(step: Step, fabric: Fabric) -> dict[str, float]:
    """The count of every term over all micro-batches and workers."""
    local = dict.fromkeys(step.terms, 0.0)
    for batch in step.micro_batches:
        for name, count in step.counts(batch).items():
            local[name] += count
    return dict(zip(step.terms, _sum_over_workers(fabric, list(local.values())), strict=True))


def require_finite(loss: torch.Tensor, terms: list[Term], batch: Batch, number: int, index: int) -> None:
    """Stop before a loss that is not finite reaches the weights, and say where it came from."""
    if torch.isfinite(loss):
        return
    values = ", ".join(f"{term.name} {term.sum.item():.3g}" for term in terms)
    raise DivergenceError(
        f"The loss is not finite at step {number + 1}, micro-batch {index + 1} ({values}; sentences "
        f"{batch.sentence_ids_B[:3].tolist()}...): {_advice(number)}"
    )


def _advice(good_steps: int) -> str:
    """What to do. The same command would come to the same step, for all that it draws is seeded."""
    end = f", or end the run before it by --set steps={good_steps}" if good_steps else ""
    return (
        f"weights were not changed and the last checkpoint is kept; start anew (--fresh or another --name) with a "
        f"lower optimizer.learning_rate or precision: fp32{end}."
    )


def _target_tokens(step: Step, fabric: Fabric) -> float:
    tokens = float(sum(int(batch.target_mask_BT.sum()) + len(batch) for batch in step.micro_batches))
    return _sum_over_workers(fabric, [tokens])[0]


def make_optimizer(model: Network, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW; biases, norms and other vectors are not decayed.

    Raises:
        ConfigurationError: `rates` names no parameter that is trained.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {(True, 1.0): [], (False, 1.0): []}
    unused = set(config.rates)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        prefixes = [prefix for prefix in config.rates if name.startswith(prefix)]
        unused -= set(prefixes)
        factor = config.rates[max(prefixes, key=len)] if prefixes else 1.0
        groups.setdefault((parameter.ndim > 1, factor), []).append(parameter)
    if unused:
        trained = [name.partition(".") for name, parameter in model.named_parameters() if parameter.requires_grad]
        known = sorted({repr(first + dot) for first, dot, _ in trained})
        raise ConfigurationError(
            f"optimizer.rates names {min(unused)!r}, and no trained parameter begins so; they begin with "
            f"{', '.join(known)}."
        )
    listed = [
        {"params": parameters, "weight_decay": config.weight_decay if matrix else 0.0, "factor": factor}
        for (matrix, factor), parameters in groups.items()
    ]
    return torch.optim.AdamW(listed, lr=config.learning_rate, betas=config.betas, eps=1e-9)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`."""
    warm = min(1.0, (step + 1) / max(1, config.warmup_steps))
    if config.schedule == "constant" or step < config.warmup_steps:
        return config.learning_rate * warm
    if config.schedule == "inverse_sqrt":
        return config.learning_rate * math.sqrt(max(1, config.warmup_steps) / (step + 1))
    return config.learning_rate * (steps - step) / max(1, steps - config.warmup_steps)


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Dropout is a function of (seed, step, micro-batch): resumed and distributed runs repeat it."""
    torch.manual_seed(((seed * 1_000_003 + step) * 8_191 + micro_batch) % (1 << 63))


def sum_gradients(fabric: Fabric, parameters: list[torch.nn.Parameter]) -> None:
    """Gradients summed over workers, in one message; a parameter without gradient anywhere keeps none."""
    if fabric.world_size == 1:
        return
    has = torch.tensor([float(p.grad is not None) for p in parameters], device=fabric.device)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters] + [has])
    flat = _reduced(fabric, flat)
    has = flat[-len(parameters) :]
    for parameter, count, part in zip(
        parameters, has, flat.split([p.numel() for p in parameters] + [len(has)]), strict=False
    ):
        parameter.grad = part.view_as(parameter) if count > 0 else None


def _sum_over_workers(fabric: Fabric, values: list[float]) -> list[float]:
    if fabric.world_size == 1:
        return values
    summed: list[float] = _reduced(fabric, torch.tensor(values, dtype=torch.float64, device=fabric.device)).tolist()
    return summed


def _reduced(fabric: Fabric, tensor: torch.Tensor) -> Any:
    return fabric.all_reduce(tensor, reduce_op="sum")
