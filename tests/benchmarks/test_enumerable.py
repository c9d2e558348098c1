"""The table of gradients in enumerable worlds has every estimator, and the one that is unbiased reads so."""

import re
import sys

import pytest
import torch
from torch import Tensor

from benchmarks import enumerable
from energymt.energies import QualityEnergy
from energymt.operators import Noise
from energymt.policy import leave_one_out, reinforce_loss, stop_log_probs, token_log_probs
from energymt.records import Prediction
from tests.enumerated import World


def test_a_small_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["enumerable", "--worlds", "1", "--draws", "2"])
    monkeypatch.setattr(enumerable, "GROUPS", 20)
    enumerable.main()
    out = capsys.readouterr().out
    for setting in enumerable.SETTINGS:
        assert f"**{setting.title}**" in out
    number = r"-?\d+\.\d\d \(-?\d+\.\d\d to -?\d+\.\d\d\)"
    rows = re.findall(rf"^\| (\w+ \| \S+) \| {number} \| {number} \| {number} \|$", out, re.MULTILINE)
    hard = [f"{name} | {value}" for name in ("STL", "SG", "ST") for value in ("sampled", "argmax")]
    assert sorted(rows) == sorted(3 * ["SX | –", "GX | –", "REINFORCE | –", *hard])
    assert out.count("| REINFORCE | – | 0.00 (0.00 to 0.00) | 1.00 (1.00 to 1.00) |") == 3


def trained(world: World, feed: str, sampled: bool, groups: int) -> Tensor:
    """The gradient of each group of K samples by the loss of `qe_ebm` with `ending: reinforce`, [G, X]."""
    sentence_GK = world.sample(groups, enumerable.K, seed=9)
    sentence_R, count = sentence_GK.flatten(), sentence_GK.numel()
    table_RPA = world.tables(count)
    logits_RUV, mask_RT = world.logits(table_RPA, sentence_R), world.mask_YT[sentence_R]
    eos_id = world.vocabulary.eos_id
    words_RTV = logits_RUV[:, :-1].masked_fill(torch.arange(logits_RUV.shape[-1]) == eos_id, float("-inf"))
    hard_RT = world.ids_YT[sentence_R] if sampled else None
    prediction = Prediction(words_RTV, mask_RT, hard_RT, Noise(11, 0, torch.arange(count)))
    source = world.source.select(torch.zeros(count, dtype=torch.long))
    energy_R = QualityEnergy(world.estimator, world.vocabulary, feed)(source, prediction)
    advantage_R = leave_one_out(-energy_R.detach().view(-1, enumerable.K)).flatten()
    # A sentence of the greatest length had no choice but to stop.
    free_RU = world.mask_YU[sentence_R] & (torch.arange(logits_RUV.shape[1]) < mask_RT.shape[1])
    ends_RU = token_log_probs(logits_RUV, torch.full_like(free_RU, eos_id, dtype=torch.long), free_RU)
    stops_RU = torch.arange(free_RU.shape[1]) == mask_RT.sum(1, keepdim=True)
    loss = energy_R.sum() + reinforce_loss(stop_log_probs(ends_RU, stops_RU), free_RU, advantage_R)
    (grad_RPA,) = torch.autograd.grad(loss / enumerable.K, table_RPA)
    return grad_RPA.flatten(1).view(groups, enumerable.K, -1).sum(1)


@pytest.mark.parametrize("feed, sampled", [("SX", False), ("ST", True), ("GX", False)])
def test_the_end_by_reinforce_is_that_of_the_trainable(feed: str, sampled: bool) -> None:
    world, groups = World(1), 600
    exact = world.exact_gradient()
    row = enumerable.with_ending(world, exact, feed, sampled, 20 if feed == "GX" else 1)
    grad_GX, exact_X = trained(world, feed, sampled, groups), exact.flatten()
    noise = (grad_GX.var(0).sum().sqrt() / exact_X.norm()).item()
    assert row.noise == pytest.approx(noise, rel=0.06)
    error = grad_GX.mean(0) - exact_X
    # What chance adds to a squared length is the variance of the mean.
    bias = (error.square().sum() / exact_X.square().sum() - noise**2 / groups).clamp(min=0).sqrt().item()
    assert row.bias == pytest.approx(bias, abs=0.06)
