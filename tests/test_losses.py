"""Losses against PyTorch's own and against numbers written out by hand."""

import math

import pytest
import torch

from energymt.losses import cross_entropy, length_loss, with_end

MASK = torch.tensor([[True, True, False], [True, False, False]])
TARGETS = torch.tensor([[1, 4, 0], [2, 0, 0]])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
def test_cross_entropy_is_that_of_pytorch(smoothing: float) -> None:
    logits = torch.randn(2, 3, 5)
    wanted = torch.nn.functional.cross_entropy(logits[MASK], TARGETS[MASK], label_smoothing=smoothing, reduction="sum")
    assert torch.allclose(cross_entropy(logits, TARGETS, MASK, smoothing), wanted)


def test_smoothing_is_spread_over_the_tokens_that_can_stand() -> None:
    logits = torch.tensor([[[0.0, float("-inf"), 0.0, math.log(2.0), float("-inf")]]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([[3]]), torch.ones(1, 1, dtype=torch.bool), 0.3)
    quarter, half = math.log(4.0), math.log(2.0)
    assert loss.item() == pytest.approx(0.7 * half + 0.3 * (quarter + quarter + half) / 3)
    (grad,) = torch.autograd.grad(loss, logits)
    assert grad.isfinite().all()
    assert grad[0, 0, [1, 4]].tolist() == [0.0, 0.0]
    assert grad.sum().item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_passes_gradcheck(smoothing: float) -> None:
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, TARGETS, MASK, smoothing), (logits,))


def test_what_is_not_masked_does_not_count() -> None:
    logits = torch.randn(2, 3, 5)
    other = torch.where(MASK[..., None], logits, torch.full_like(logits, float("nan")))
    assert torch.equal(cross_entropy(logits, TARGETS, MASK, 0.1), cross_entropy(other, TARGETS, MASK, 0.1))
    assert cross_entropy(logits, TARGETS, torch.zeros_like(MASK), 0.1).item() == 0.0


def test_bf16_logits_are_summed_in_float32() -> None:
    logits = torch.randn(1, 1, 400).bfloat16()
    loss = cross_entropy(logits, torch.tensor([[7]]), torch.ones(1, 1, dtype=torch.bool))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(-logits.float().log_softmax(-1)[0, 0, 7].item(), rel=1e-6)


def test_the_end_token_stands_behind_the_last_token() -> None:
    targets, mask = with_end(TARGETS, MASK, eos_id=3)
    assert mask.tolist() == [[True, True, True, False], [True, True, False, False]]
    assert targets[mask].tolist() == [1, 4, 3, 2, 3]
    full, mask = with_end(torch.tensor([[5, 6]]), torch.ones(1, 2, dtype=torch.bool), eos_id=3)
    assert full.tolist() == [[5, 6, 3]] and mask.all()


def test_length_loss_is_the_sum_of_minus_log_p() -> None:
    logp_BL = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.25] * 4]).log()
    loss = length_loss(logp_BL, torch.tensor([2, 1, 3]))
    assert loss.item() == pytest.approx(-math.log(0.3) - math.log(0.3) - math.log(0.25))


def test_lengths_that_the_head_does_not_know_count_as_the_nearest() -> None:
    logp_BL = torch.tensor([[float("-inf"), math.log(0.2), math.log(0.8)]])
    assert length_loss(logp_BL, torch.tensor([9])).item() == pytest.approx(-math.log(0.8))
    assert length_loss(logp_BL, torch.tensor([0])).item() == pytest.approx(-math.log(0.2))
