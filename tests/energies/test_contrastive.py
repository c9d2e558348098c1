"""Noise-contrastive losses against their definitions, group by group."""

import math

import pytest
import torch

from energymt.energies.contrastive import contrastive_loss, first_of

SIZES = torch.tensor([3, 1, 2])
SCORES = torch.tensor([0.4, -1.0, 2.0, 0.3, 5.0, -5.0], dtype=torch.float64)
LOG_PROBS = torch.tensor([-1.0, -0.5, -2.0, -0.1, -3.0, -0.2], dtype=torch.float64)


def groups() -> list[list[float]]:
    logits = (SCORES - LOG_PROBS).tolist()
    return [logits[:3], logits[3:4], logits[4:]]


def test_binary_is_the_cross_entropy_of_gold_against_each_sample() -> None:
    def loss(logit: float, gold: bool) -> float:
        return math.log1p(math.exp(-logit if gold else logit))

    wanted = sum(loss(logit, place == 0) for group in groups() for place, logit in enumerate(group))
    found, count = contrastive_loss(SCORES, LOG_PROBS, SIZES, "binary")
    assert found.item() == pytest.approx(wanted, rel=1e-6)
    assert count == 6


def test_ranking_is_the_softmax_over_a_group() -> None:
    wanted = sum(math.log(sum(math.exp(logit) for logit in group)) - group[0] for group in groups())
    found, count = contrastive_loss(SCORES, LOG_PROBS, SIZES, "ranking")
    assert found.item() == pytest.approx(wanted, rel=1e-6)
    assert count == 3


@pytest.mark.parametrize("form", ["binary", "ranking"])
def test_gold_is_pushed_up_and_samples_down(form) -> None:
    scores = SCORES.clone().requires_grad_()
    contrastive_loss(scores, LOG_PROBS, SIZES, form)[0].backward()
    assert scores.grad is not None
    gold = torch.zeros(6, dtype=torch.bool)
    gold[first_of(SIZES)] = True
    alone = torch.tensor([False, False, False, form == "ranking", False, False])  # a gold that nothing is against
    assert (scores.grad[gold & ~alone] < 0).all() and (scores.grad[~gold] > 0).all()
    assert scores.grad[alone].abs().sum() < 1e-6


@pytest.mark.parametrize("form", ["binary", "ranking"])
def test_large_scores_do_not_overflow(form) -> None:
    scores = torch.tensor([-500.0, 500.0], requires_grad=True)
    loss, _ = contrastive_loss(scores, torch.zeros(2), torch.tensor([2]), form)
    loss.backward()
    assert loss.item() == pytest.approx(1000.0) and scores.grad is not None and scores.grad.isfinite().all()
