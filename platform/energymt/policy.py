"""Policy gradients of a translator: REINFORCE and PPO as kernels, tensors in and tensors out.

A reward is one number for a whole sentence, higher is better; a policy is p(y | x) = Π_u p(y_u | y_<u, x), the end
token counted. Losses are sums, to be divided by global counts, and are minimised.

    REINFORCE   −Σ_r A_r Σ_u log p(y_ru)                    Williams 1992; leave-one-out A: Kool et al. 2019
    PPO         −Σ_ru min(ρ A, clip(ρ, 1 − ε, 1 + ε) A)     Schulman et al. 2017, Eq. 7, with ρ = p / p_old

Axes of this room: G sources with K samples of each, R = G · K rows; U target positions, the end token last; V
vocabulary. Masks are True on real positions, which stand before all padding; what stands on padding is never read.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from energymt.operators import exact_type, log_norm, row_blocks, seen_by
from energymt.projected_log_probs import log_probs_projected
from energymt.records import Projection

FAR = 20.0
"""Nats of a log-ratio from which its exponential goes on as a straight line: finite, and with a gradient."""
TINY = 1e-6
"""Nats below 0 that the log-probability of an end is at most, so that going on has one."""
EQUAL = 1e-5
"""Relative spread of rewards below which they are equal: one sentence in two rows of a batch differs by as much."""


def token_log_probs(logits_RUV: Tensor | Projection, target_RU: Tensor, mask_RU: Tensor) -> Tensor:
    """log p(y_u | y_<u, x) of each token, [R, U] in nats, 0 on padding; at least fp32.

    Besides the logits nothing of their size is stored, and the backward pass makes their gradient alone. From a
    projection nothing of their size is made at all.
    """
    if isinstance(logits_RUV, Projection):
        return log_probs_projected(logits_RUV, target_RU, mask_RU)
    target_RU = target_RU.masked_fill(~mask_RU, 0)
    return _TokenLogProbs.apply(logits_RUV, target_RU, mask_RU)  # type: ignore[no-untyped-call]


def with_mean(reward_R: Tensor, valid_R: Tensor) -> Tensor:
    """Rewards, [R], with the mean of the others where there is none; 0 where there is none at all."""
    mean = reward_R.masked_fill(~valid_R, 0.0).sum() / valid_R.sum().clamp(min=1)
    return torch.where(valid_R, reward_R, mean)


def leave_one_out(reward_GK: Tensor, valid_GK: Tensor | None = None) -> Tensor:
    """r_k − the mean of the source's other rewards, [G, K]: a baseline that leaves REINFORCE unbiased.

    Args:
        reward_GK: higher is better.
        valid_GK: False where a sample has no reward (whatever number stands there): it is left out of the means and
            gets advantage 0, as does a sample that is left alone.

    Raises:
        ValueError: one sample a source.
    """
    reward_GK, valid_GK = _rewards(reward_GK, valid_GK)
    others_G1 = valid_GK.sum(1, keepdim=True) - 1
    mean_GK = (reward_GK.sum(1, keepdim=True) - reward_GK) / others_G1.clamp(min=1)
    return (reward_GK - mean_GK).masked_fill(~valid_GK | (others_G1 < 1), 0.0)


def group_advantage(reward_GK: Tensor, valid_GK: Tensor | None = None) -> Tensor:
    """(r_k − mean) / standard deviation of the source's rewards, [G, K] (Shao et al. 2024, GRPO).

    The standard deviation is that of a sample (over K − 1). Equal rewards have advantage 0. `valid_GK` as in
    `leave_one_out`.

    Raises:
        ValueError: one sample a source.
    """
    reward_GK, valid_GK = _rewards(reward_GK, valid_GK)
    count_G1 = valid_GK.sum(1, keepdim=True)
    mean_G1 = reward_GK.sum(1, keepdim=True) / count_G1.clamp(min=1)
    deviation_GK = (reward_GK - mean_G1).masked_fill(~valid_GK, 0.0)
    spread_G1 = (deviation_GK.square().sum(1, keepdim=True) / (count_G1 - 1).clamp(min=1)).sqrt()
    equal_G1 = spread_G1 <= EQUAL * reward_GK.abs().amax(1, keepdim=True)
    return (deviation_GK / spread_G1.masked_fill(equal_G1, 1.0)).masked_fill(equal_G1, 0.0)


def stop_log_probs(end_logp_RU: Tensor, stops_RU: Tensor) -> Tensor:
    """log p of each decision of a sentence: to go on, log(1 − p(end)), or where it `stops`, log p(end); [R, U].

    p(y) = Π_u p(go on) p(y_u | go on) · p(stop): what is left of a policy when its words are learnt in another way.
    """
    go_on_RU = torch.log(-torch.expm1(end_logp_RU.clamp(max=-TINY)))
    return torch.where(stops_RU, end_logp_RU, go_on_RU)


def reinforce_loss(logp_RU: Tensor, mask_RU: Tensor, advantage_R: Tensor) -> Tensor:
    """−Σ_r A_r Σ_u log p, a scalar; advantages are constants."""
    return -(advantage_R.detach() * _real(logp_RU, mask_RU).sum(1)).sum()


def clipped_surrogate(
    logp_RU: Tensor, old_logp_RU: Tensor, advantage_RU: Tensor, mask_RU: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """−Σ min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) over tokens, and how many tokens the clip holds (their gradient is 0).

    Advantages and the log-probabilities of the policy that sampled (`old`) are constants. A ratio beyond e^FAR counts
    as FAR's tangent.
    """
    advantage_RU = _real(advantage_RU, mask_RU).detach()
    grown_RU, beyond_RU = _far(_real(logp_RU, mask_RU) - _real(old_logp_RU, mask_RU).detach())
    ratio_RU = grown_RU.exp() + beyond_RU
    free_RU, held_RU = ratio_RU * advantage_RU, ratio_RU.clamp(1.0 - clip, 1.0 + clip) * advantage_RU
    return -torch.minimum(free_RU, held_RU).sum(), (held_RU < free_RU).sum()


@torch.no_grad()
def generalised_advantages(
    reward_RU: Tensor, value_RU: Tensor, mask_RU: Tensor, discount: float, trace: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of each token, [R, U] each, 0 on padding (Schulman et al. 2016, GAE).

        δ_u = r_u + γ V_{u+1} − V_u        A_u = δ_u + γ λ A_{u+1}        return_u = A_u + V_u

    with discount γ and trace λ. Nothing follows the last real position (the end token): V and A are 0 there.
    """
    reward_RU, value_RU = _real(reward_RU, mask_RU), _real(value_RU, mask_RU)
    advantage_RU = torch.zeros_like(reward_RU)
    next_value_R = next_advantage_R = torch.zeros_like(reward_RU[:, 0])
    for place in reversed(range(reward_RU.shape[1])):
        delta_R = reward_RU[:, place] + discount * next_value_R - value_RU[:, place]
        next_advantage_R = delta_R + discount * trace * next_advantage_R  # 0 on padding, where all that enters is 0
        next_value_R = value_RU[:, place]
        advantage_RU[:, place] = next_advantage_R
    return advantage_RU, advantage_RU + value_RU


def kl_estimate(logp_RU: Tensor, reference_logp_RU: Tensor, mask_RU: Tensor) -> Tensor:
    """ρ − 1 − log ρ with ρ = p_reference / p, [R, U] in nats, 0 on padding (Schulman 2020, "k3").

    For tokens sampled from p its mean is KL(p ‖ p_reference) of that position; it is never negative. As a loss it draws
    p to the reference, but its gradient 1 − ρ in log p is, in the mean, that of KL(p_reference ‖ p). The reference is a
    constant. A ratio beyond e^FAR counts as FAR's tangent.
    """
    log_ratio_RU = _real(reference_logp_RU, mask_RU).detach() - _real(logp_RU, mask_RU)
    grown_RU, beyond_RU = _far(log_ratio_RU)
    return grown_RU.expm1() + beyond_RU - log_ratio_RU  # expm1: near p = p_reference, exp would leave rounding alone


def value_loss(value_RU: Tensor, old_value_RU: Tensor, return_RU: Tensor, mask_RU: Tensor, clip: float) -> Tensor:
    """½ Σ max((V − R)², (V_old + clip(V − V_old, −ε, ε) − R)²), a scalar; old values and returns are constants.

    The worse of both, as in OpenAI's baselines: a value gains nothing by moving further than ε in one step.
    """
    value_RU, return_RU = _real(value_RU, mask_RU), _real(return_RU, mask_RU).detach()
    old_value_RU = _real(old_value_RU, mask_RU).detach()
    held_RU = old_value_RU + (value_RU - old_value_RU).clamp(-clip, clip)
    return 0.5 * torch.maximum((value_RU - return_RU).square(), (held_RU - return_RU).square()).sum()


def _real(number_RU: Tensor, mask_RU: Tensor) -> Tensor:
    """The numbers in at least fp32, with 0 on padding."""
    return number_RU.to(exact_type(number_RU)).masked_fill(~mask_RU, 0.0)


def _far(log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """x up to FAR, and what its exponential's tangent in FAR adds beyond."""
    return log_ratio.clamp(max=FAR), math.exp(FAR) * (log_ratio - FAR).clamp(min=0.0)


def _rewards(reward_GK: Tensor, valid_GK: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rewards in at least fp32, 0 where they are not valid, and which are."""
    if reward_GK.shape[1] < 2:
        raise ValueError("an advantage within a group needs at least two samples of each source")
    valid_GK = torch.ones_like(reward_GK, dtype=torch.bool) if valid_GK is None else valid_GK
    return _real(reward_GK, valid_GK).detach(), valid_GK


class _TokenLogProbs(torch.autograd.Function):
    """The log-softmax at one token a position, and its gradient, by blocks of rows."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        norm = log_norm("SX", logits, None)
        picked = logits.gather(-1, target.unsqueeze(-1)).to(norm.dtype) - norm
        ctx.save_for_backward(logits, target, mask, norm)
        return picked.squeeze(-1).masked_fill(~mask, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, mask, norm = ctx.saved_tensors
        grad, padding = grads[0].unsqueeze(-1), ~mask.unsqueeze(-1)
        result = torch.empty_like(logits)
        for rows in row_blocks(logits):
            part = seen_by("SX", logits, None, rows).sub(norm[rows]).exp_().mul_(-grad[rows])
            part.scatter_add_(-1, target[rows].unsqueeze(-1), grad[rows])
            result[rows] = part.masked_fill_(padding[rows], 0.0)
        return result, None, None
