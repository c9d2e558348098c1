"""One optimizer step, exact over micro-batches and workers.

Gradients are *summed* over workers, each micro-batch already divided by the global count: 1 × 8 sentences,
4 × 2 accumulated and 2 workers give the same step, also when a worker gets no micro-batch at all.
(DistributedDataParallel averages instead, and waits for workers that have nothing to send.)
Dropout is seeded by (seed, step, micro-batch), so it does not depend on the number of workers either.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn

from energymt.configuration import OptimizerConfig, TrainingConfig
from energymt.errors import ConfigurationError, DivergenceError
from energymt.models.network import Network
from energymt.records import Batch, Step, Term


def optimise(
    step: Step,
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
    totals = global_counts(step, fabric)
    sums = dict.fromkeys(step.terms, 0.0)
    optimizer.zero_grad(set_to_none=True)
    for index, batch in enumerate(step.micro_batches):
        seed_dropout(config.seed, number, fabric.global_rank + index * fabric.world_size)
        with fabric.autocast():
            terms = step.losses(batch.to(fabric.device))
        loss = torch.stack([t.weight * t.sum.float() / totals[t.name] for t in terms if totals[t.name] > 0]).sum()
        require_finite(loss, terms, batch, number, index)
        loss.backward()
        for term in terms:
            sums[term.name] += term.sum.item()
    parameters = [p for p in model.parameters() if p.requires_grad]
    sum_gradients(fabric, parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.optimizer.clip_norm).item()
    if not math.isfinite(norm):
        raise DivergenceError(f"The gradient is not finite at step {number + 1}: {_advice(number)}")
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
    optimizer.step()
    reduced = _sum_over_workers(fabric, list(sums.values()))
    means = {name: value / totals[name] for name, value in zip(step.terms, reduced, strict=True) if totals[name] > 0}
    metrics = {f"train/{name}": value for name, value in means.items()}
    return {**metrics, "train/gradient_norm": norm, "time/tokens": _target_tokens(step, fabric)}


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
