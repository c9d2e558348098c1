"""Policy-gradient kernels against plain loops, exact derivatives, and numbers on padding that nobody may read."""

import math

import pytest
import torch
from torch import Tensor

from energymt import operators
from energymt.policy import (
    clipped_surrogate,
    generalised_advantages,
    group_advantage,
    kl_estimate,
    leave_one_out,
    reinforce_loss,
    token_log_probs,
    value_loss,
    with_mean,
)

R, U, V, CLIP = 4, 5, 7, 0.2
LENGTHS = (5, 1, 3, 4)
MASK = torch.arange(U) < torch.tensor(LENGTHS)[:, None]
REAL = MASK.nonzero().tolist()
NAN, INF = float("nan"), float("inf")


def numbers(*shape: int) -> Tensor:
    return torch.randn(*(shape or (R, U)), dtype=torch.float64)


def spoilt(number_RU: Tensor) -> Tensor:
    """The same with NaN on padding, and two more columns of it."""
    padding = torch.full((R, 2), NAN, dtype=number_RU.dtype)
    return torch.cat([number_RU.masked_fill(~MASK, NAN), padding], 1)


WIDE_MASK = torch.cat([MASK, torch.zeros(R, 2, dtype=torch.bool)], 1)

# ------------------------------------------------------------------------------------------------- log-probabilities


@pytest.fixture(params=["one block", "small blocks"])
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(operators.BLOCK, "cpu", R * U * V if request.param == "one block" else 1)
    monkeypatch.setattr(operators, "NARROWEST", V if request.param == "one block" else 2)


def test_log_probs_are_those_of_the_softmax(blocks: None) -> None:
    logits, target = numbers(R, U, V).requires_grad_(), torch.randint(V, (R, U))
    found = token_log_probs(logits, target, MASK)
    wanted = logits.log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1).masked_fill(~MASK, 0.0)
    torch.testing.assert_close(found, wanted)
    assert (found[~MASK] == 0).all() and (found[MASK] < 0).all()
    direction = numbers()
    torch.testing.assert_close(*(torch.autograd.grad(value, logits, direction)[0] for value in (found, wanted)))
    assert torch.autograd.gradcheck(lambda z: token_log_probs(z, target, MASK), (logits,))


def test_log_probs_read_no_padding_and_no_forbidden_token() -> None:
    target = torch.randint(1, V, (R, U)).masked_fill(~MASK, -100)
    logits = numbers(R, U, V).masked_fill(torch.arange(V) == 0, -INF).masked_fill(~MASK.unsqueeze(-1), NAN)
    logits.requires_grad_()
    found = token_log_probs(logits, target, MASK)
    (grad,) = torch.autograd.grad(found.sum(), logits)
    assert found.isfinite().all() and grad.isfinite().all()
    assert (grad[~MASK] == 0).all() and (grad[..., 0] == 0).all()


def test_half_precision_is_summed_in_float32_and_stored_once() -> None:
    logits = (8 * torch.randn(R, U, 400)).bfloat16().requires_grad_()
    target = torch.randint(400, (R, U))
    saved: list[tuple[int, ...]] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (saved.append(tuple(x.shape)), x)[1], lambda x: x):
        found = token_log_probs(logits, target, MASK)
    assert saved.count((R, U, 400)) == 1
    wanted = logits.float().log_softmax(-1).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[MASK], wanted[MASK])
    assert torch.autograd.grad(found.sum(), logits)[0].dtype == torch.bfloat16


# -------------------------------------------------------------------------------------------------------- advantages


def test_leave_one_out_is_the_distance_from_the_mean_of_the_others() -> None:
    reward = numbers(3, 4)
    found = leave_one_out(reward)
    for row in range(3):
        for place in range(4):
            others = [reward[row, other].item() for other in range(4) if other != place]
            assert found[row, place].item() == pytest.approx(reward[row, place].item() - sum(others) / 3)
    torch.testing.assert_close(found.sum(1), torch.zeros(3).double())


def test_group_advantage_is_the_standard_score() -> None:
    reward = numbers(3, 4)
    wanted = (reward - reward.mean(1, keepdim=True)) / reward.std(1, keepdim=True)
    torch.testing.assert_close(group_advantage(reward), wanted)
    torch.testing.assert_close(group_advantage(100 * reward), wanted)


@pytest.mark.parametrize("kernel", [leave_one_out, group_advantage])
def test_samples_without_a_reward_are_left_out(kernel) -> None:
    reward = torch.tensor([[0.3, NAN, 0.9, 0.1], [NAN, 0.5, NAN, INF], [NAN] * 4])
    valid = reward.isfinite()
    found = kernel(reward, valid)
    assert found.isfinite().all()
    torch.testing.assert_close(found[0, [0, 2, 3]], kernel(torch.tensor([[0.3, 0.9, 0.1]]))[0])
    assert (found[~valid] == 0).all() and (found[1:] == 0).all(), "who is left alone has nothing to be compared with"


def test_a_missing_reward_counts_as_the_mean_of_the_others() -> None:
    reward_R, valid_R = torch.tensor([1.0, torch.nan, 4.0]), torch.tensor([True, False, True])
    assert with_mean(reward_R, valid_R).tolist() == [1.0, 2.5, 4.0]
    assert with_mean(reward_R, torch.zeros(3).bool()).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("kernel", [leave_one_out, group_advantage])
def test_one_sample_of_a_source_is_refused(kernel) -> None:
    with pytest.raises(ValueError, match="two samples"):
        kernel(numbers(3, 1))


@pytest.mark.parametrize("reward", [0.0, 0.1, -7.3, 1e8])
def test_equal_rewards_have_no_advantage(reward: float) -> None:
    assert (group_advantage(torch.full((2, 3), reward)) == 0).all()
    nearly = torch.tensor([[reward, reward * (1 + 3e-7), reward * (1 - 2e-7)]])  # one sentence in three rows of a batch
    assert (group_advantage(nearly) == 0).all()
    assert leave_one_out(nearly).abs().max() <= 1e-6 * abs(reward)


def plain_advantages(reward: Tensor, value: Tensor, discount: float, trace: float) -> tuple[Tensor, Tensor]:
    """GAE as the sum that defines it: A_u = Σ_l (γλ)^l δ_{u+l}."""
    advantage, result = torch.zeros(R, U).double(), torch.zeros(R, U).double()
    for row, place in REAL:
        for ahead in range(place, LENGTHS[row]):
            following = value[row, ahead + 1].item() if ahead + 1 < LENGTHS[row] else 0.0
            delta = reward[row, ahead].item() + discount * following - value[row, ahead].item()
            advantage[row, place] += (discount * trace) ** (ahead - place) * delta
        result[row, place] = advantage[row, place] + value[row, place]
    return advantage, result


@pytest.mark.parametrize("discount, trace", [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.8, 0.0)])
def test_generalised_advantages_are_the_sum_of_their_definition(discount: float, trace: float) -> None:
    reward, value = numbers(), numbers()
    found = generalised_advantages(reward, value, MASK, discount, trace)
    wanted = plain_advantages(reward, value, discount, trace)
    torch.testing.assert_close(found, wanted)
    wide = generalised_advantages(spoilt(reward), spoilt(value), WIDE_MASK, discount, trace)
    for narrow, number in zip(found, wide, strict=True):
        assert torch.equal(number[:, :U], narrow) and (number[~WIDE_MASK] == 0).all()


def test_a_reward_at_the_end_is_every_token_s_return_without_discount() -> None:
    reward = torch.zeros(R, U).scatter(1, torch.tensor(LENGTHS).unsqueeze(1) - 1, 2.5)
    value = torch.randn(R, U, requires_grad=True)
    advantage, returns = generalised_advantages(reward, value, MASK, 1.0, 1.0)
    torch.testing.assert_close(returns, 2.5 * MASK)
    torch.testing.assert_close(advantage, (2.5 - value.detach()) * MASK)
    assert not advantage.requires_grad and not returns.requires_grad


# ------------------------------------------------------------------------------------------------------------ losses


def plain_surrogate(logp: Tensor, old: Tensor, advantage: Tensor) -> tuple[float, int]:
    loss, clipped = 0.0, 0
    for place in REAL:
        ratio, gain = math.exp((logp[*place] - old[*place]).item()), advantage[*place].item()
        held = min(max(ratio, 1 - CLIP), 1 + CLIP) * gain
        loss, clipped = loss - min(ratio * gain, held), clipped + (held < ratio * gain)
    return loss, clipped


def plain_value_loss(value: Tensor, old: Tensor, returns: Tensor) -> float:
    loss = 0.0
    for place in REAL:
        held = old[*place] + min(max((value - old)[*place].item(), -CLIP), CLIP)
        loss += 0.5 * max((value - returns)[*place].item() ** 2, (held - returns[*place]).item() ** 2)
    return loss


def test_reinforce_weighs_each_sentence() -> None:
    logp, advantage = numbers(), numbers(R)
    wanted = -sum(logp[row, place].item() * advantage[row].item() for row, place in REAL)
    assert reinforce_loss(logp, MASK, advantage).item() == pytest.approx(wanted)


def test_losses_are_those_of_plain_loops() -> None:
    logp, other, third = -numbers().abs(), -numbers().abs(), numbers()
    loss, clipped = clipped_surrogate(logp, other, third, MASK, CLIP)
    wanted, held = plain_surrogate(logp, other, third)
    assert loss.item() == pytest.approx(wanted) and clipped.item() == held and 0 < held < len(REAL)
    wanted = plain_value_loss(logp, other, third)
    assert value_loss(logp, other, third, MASK, CLIP).item() == pytest.approx(wanted)
    found = kl_estimate(logp, other, MASK)
    for row, place in REAL:
        log_ratio = (other - logp)[row, place].item()
        assert found[row, place].item() == pytest.approx(math.exp(log_ratio) - 1 - log_ratio)
    assert (found[MASK] > 0).all() and (found[~MASK] == 0).all()


LOSSES = {
    "reinforce": lambda x, y, z, mask: reinforce_loss(x, mask, z[:, 0]),
    "surrogate": lambda x, y, z, mask: clipped_surrogate(x, y, z, mask, CLIP)[0],
    "kl": lambda x, y, z, mask: kl_estimate(x, y, mask).sum(),
    "value": lambda x, y, z, mask: value_loss(x, y, z, mask, CLIP),
}
losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@losses
def test_losses_pass_gradcheck_in_the_one_thing_that_learns(loss) -> None:
    learns = (-numbers().abs()).requires_grad_()
    constants = (numbers().sub(1).requires_grad_(), numbers().requires_grad_())
    assert torch.autograd.gradcheck(lambda x: loss(x, *constants, MASK), (learns,))
    assert torch.autograd.grad(loss(learns, *constants, MASK), constants, allow_unused=True) == (None, None)


@losses
def test_padding_changes_nothing(loss) -> None:
    narrow, other, third = numbers().requires_grad_(), numbers(), numbers()
    wide = spoilt(narrow.detach()).requires_grad_()
    values = loss(narrow, other, third, MASK), loss(wide, spoilt(other), spoilt(third), WIDE_MASK)
    torch.testing.assert_close(*values, rtol=1e-14, atol=0)
    grads = [torch.autograd.grad(value, x)[0] for value, x in zip(values, (narrow, wide), strict=True)]
    torch.testing.assert_close(grads[1][:, :U], grads[0], rtol=1e-14, atol=0)
    assert (grads[1][~WIDE_MASK] == 0).all()


@losses
def test_half_precision_is_computed_in_float32(loss) -> None:
    x, y, z = (torch.randn(R, U).bfloat16() for _ in range(3))
    found = loss(x, y, z, MASK)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(x.float(), y.float(), z.float(), MASK))


@pytest.mark.parametrize("apart", [-900.0, -30.0, 30.0, 900.0])
@pytest.mark.parametrize("gain", [-1.0, 1.0])
def test_extreme_ratios_stay_finite_and_point_the_right_way(apart: float, gain: float) -> None:
    """In fp32 the exponential of 90 is infinite."""
    old, mask = torch.full((1, 1), -1000.0), torch.ones(1, 1, dtype=torch.bool)
    logp = (old + apart).requires_grad_()
    loss, clipped = clipped_surrogate(logp, old, torch.full((1, 1), gain), mask, CLIP)
    (grad,) = torch.autograd.grad(loss, logp)
    past = (apart > 0) == (gain > 0)  # it has moved as it should, and too far
    assert loss.isfinite() and grad.isfinite().all() and clipped.item() == past
    assert (grad == 0).all() if past else grad.item() * gain <= 0
    assert past or apart < 0 or grad.item() > 0
    divergence = kl_estimate(logp, old, mask)
    (grad,) = torch.autograd.grad(divergence.sum(), logp)
    assert divergence.isfinite().all() and divergence.item() > 0
    assert grad.isfinite().all() and grad.item() * apart > 0, "downhill is towards the reference"


def test_the_divergence_of_near_policies_is_not_lost_in_rounding() -> None:
    logp = torch.full((1, 3), -1.0)
    near = logp + torch.tensor([[1e-3, -1e-4, 0.0]])
    apart = (near - logp).double()
    found = kl_estimate(logp, near, torch.ones(1, 3, dtype=torch.bool))
    assert (found >= 0).all()
    torch.testing.assert_close(found.double(), apart.expm1() - apart, rtol=0.02, atol=1e-10)
