"""Stochastic gradients against the exact one, in a world small enough to enumerate (`tests.enumerated`)."""

from itertools import product

import pytest
import torch
from torch import Tensor

from energymt.energies.contrastive import contrastive_loss, first_of
from energymt.operators import OPERATORS, relax
from energymt.policy import (
    clipped_surrogate,
    generalised_advantages,
    kl_estimate,
    leave_one_out,
    reinforce_loss,
    token_log_probs,
)
from energymt.records import SoftTarget, Source
from tests import estimators
from tests.enumerated import World

DRAWS = 40
HARD = ("STL", "SG", "ST")
CLIP = 0.2
worlds = pytest.mark.parametrize("world", [True, False], ids=["fixed length", "free length"], indirect=True)


@pytest.fixture(scope="module")
def world(request: pytest.FixtureRequest) -> World:
    return World(seed=1, fixed=request.param)


# ---------------------------------------------------------------- a) independent positions, an energy linear in each


POSITIONS, WORDS = 3, 3
ALL = torch.tensor(list(product(range(WORDS), repeat=POSITIONS)))


def multilinear(relaxed_RTV: Tensor, coefficients: Tensor) -> Tensor:
    """Σ_{ijk} c_ijk p_1i p_2j p_3k, [R]."""
    first, second, third = relaxed_RTV.unbind(1)
    return torch.einsum("ijk,ri,rj,rk->r", coefficients, first, second, third)


def factorised() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, the coefficients, the probability of each sentence, and the exact gradient."""
    logits_TV = torch.randn(POSITIONS, WORDS, dtype=torch.float64, requires_grad=True)
    coefficients = torch.randn(WORDS, WORDS, WORDS, dtype=torch.float64)
    probs_Y = logits_TV.softmax(-1)[torch.arange(POSITIONS), ALL].prod(1)
    expected = (probs_Y * coefficients[ALL.unbind(1)]).sum()
    (exact,) = torch.autograd.grad(expected, logits_TV, retain_graph=True)
    return logits_TV, coefficients, probs_Y.detach(), exact


def test_a_multilinear_energy_of_soft_tokens_has_the_exact_gradient() -> None:
    logits_TV, coefficients, _, exact = factorised()
    energy = multilinear(relax("SX", logits_TV.unsqueeze(0)), coefficients).sum()
    (found,) = torch.autograd.grad(energy, logits_TV)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


def test_an_energy_that_bends_between_two_tokens_is_not_exact() -> None:
    """p² and p are one energy of sentences, and two of soft tokens."""
    logits_TV = factorised()[0]
    soft = relax("SX", logits_TV.unsqueeze(0))[0, 0, 0]
    straight, bent = (torch.autograd.grad(value, logits_TV, retain_graph=True)[0] for value in (soft, soft**2))
    assert (bent - straight).norm() > 0.05 * straight.norm()


@pytest.mark.parametrize("feed, sampled, exactly", [("ST", True, True), ("ST", False, False), ("STL", True, False)])
def test_st_at_a_sample_is_exact_in_the_mean_for_a_multilinear_energy(feed: str, sampled: bool, exactly: bool) -> None:
    """A sample sees the energy's slope where it stands; in the mean over samples that slope is the expected one."""
    logits_TV, coefficients, probs_Y, exact = factorised()
    logits_YTV = logits_TV.unsqueeze(0).expand(len(ALL), -1, -1)
    energy_Y = multilinear(relax(feed, logits_YTV, ALL if sampled else None), coefficients)
    (found,) = torch.autograd.grad((probs_Y * energy_Y).sum(), logits_TV)
    if exactly:
        torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)
    else:
        assert (found - exact).norm() > 0.05 * exact.norm()


# ------------------------------------------------------------------- b) an autoregressive translator, a real estimator


@worlds
def test_the_world_is_whole_and_its_gradient_is_that_of_differences(world: World) -> None:
    assert world.probs_Y.sum().item() == pytest.approx(1.0, abs=1e-12)
    assert world.energy_Y.std() > 0.01
    assert torch.autograd.gradcheck(world.expected_energy, (world.table_PA.clone().requires_grad_(),))
    assert world.exact_gradient().norm() > 1e-3


@worlds
@pytest.mark.parametrize("feed", OPERATORS)
def test_qe_ebm_is_biased(world: World, feed: str) -> None:
    """Later tokens get no credit, and the energy is not linear: no operator gives the exact gradient in the mean."""
    draws = DRAWS if OPERATORS[feed].noisy else 1
    exact = world.exact_gradient()
    means = []
    for sampled in (True, False):
        energy_NY, grad_NYPA = world.relaxed(feed, sampled, draws)
        assert energy_NY.isfinite().all() and grad_NYPA.isfinite().all()
        grad_NPA = torch.stack([world.mean(grad_YPA) for grad_YPA in grad_NYPA])
        means.append(grad_NPA.mean(0))
        error = 0.0 if draws == 1 else (grad_NPA.std(0) / draws**0.5).norm()
        assert (means[-1] - exact).norm() > 0.1 * exact.norm() + 4 * error
    assert torch.equal(*means) != (feed in HARD), "a hard operator alone has another value for a sample"


@worlds
@pytest.mark.parametrize("feed", ["STL", "ST"])
def test_the_energy_at_a_sample_is_that_of_the_sample(world: World, feed: str) -> None:
    at_samples_Y, at_argmax_Y = (world.relaxed(feed, sampled)[0][0] for sampled in (True, False))
    torch.testing.assert_close(at_samples_Y, world.energy_Y, rtol=0, atol=1e-12)
    assert (at_argmax_Y - world.energy_Y).abs().max() > 0.01


class Additive:
    """A score that is linear in each token, whatever stands beside it."""

    def __init__(self) -> None:
        model = estimators.estimator("kiwi").double()
        self.vocabulary, self.table_VD = model.vocabulary, model.table_VD
        self.weight_TD = torch.randn(POSITIONS, self.table_VD.shape[1], dtype=torch.float64)

    def __call__(self, source: Source, target: SoftTarget) -> Tensor:
        return (target.emb_BTD * self.weight_TD * target.mask_BT.unsqueeze(-1)).sum((1, 2))


def test_what_is_lost_for_an_additive_energy_is_the_credit_for_later_tokens() -> None:
    world = World(seed=2, fixed=True, estimator=Additive())
    lengths_P = torch.tensor([length for length in range(POSITIONS + 1) for _ in range(WORDS**length)])
    last_P, before_P = lengths_P == POSITIONS - 1, lengths_P < POSITIONS - 1
    exact = world.exact_gradient()
    for feed, sampled in (("SX", False), ("ST", True), ("ST", False)):
        found = world.mean(world.relaxed(feed, sampled)[1][0])
        torch.testing.assert_close(found[last_P], exact[last_P], rtol=0, atol=1e-12)
        assert (found[before_P] - exact[before_P]).norm() > 0.1 * exact[before_P].norm()


def test_words_and_decisions_make_up_a_sentence() -> None:
    world = World(seed=3)
    table_PA = world.table_PA.masked_fill(~world.allowed_PA, float("-inf"))
    go_on_P = (-table_PA.softmax(-1)[:, -1]).log1p()
    word_PA = table_PA[:, :-1].log_softmax(-1)
    for row, (prefix_U, choice_U) in enumerate(zip(world.prefix_YU, world.choice_YU, strict=True)):
        length = int(world.mask_YT[row].sum())
        words = sum(float(word_PA[prefix_U[t], choice_U[t]] + go_on_P[prefix_U[t]]) for t in range(length))
        stop = float(table_PA.log_softmax(-1)[prefix_U[length], -1])
        assert words + stop == pytest.approx(world.log_probs(world.table_PA)[row].item(), abs=1e-9)
    # Behind every prefix the mean of the decisions' gradients is 0, as that of a whole sentence is.
    torch.testing.assert_close(world.mean(world.stops()), torch.zeros_like(world.table_PA), rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_the_end_by_reinforce_has_the_exact_gradient_of_stopping(seed: int) -> None:
    world = World(seed)
    exact = world.exact_gradient()
    words = world.mean(world.relaxed("ST", True, end=False)[1][0])
    ends = world.mean(world.energy_Y[:, None, None] * world.stops())
    assert words[:, -1].abs().max() == 0, "the relaxation says nothing of the end"
    assert exact[:, -1].norm() > 0.1 * exact.norm()
    torch.testing.assert_close(ends[:, -1], exact[:, -1], rtol=0, atol=1e-7)


# ------------------------------------------------------------------------------------------- c) REINFORCE, PPO and NCE


@worlds
def test_reinforce_with_leave_one_out_is_unbiased_over_all_pairs(world: World) -> None:
    pairs_GK = torch.cartesian_prod(world.everyone_Y, world.everyone_Y)
    probs_G = world.probs_Y[pairs_GK].prod(1)
    found = torch.tensordot(probs_G, world.reinforce(pairs_GK), dims=1)
    torch.testing.assert_close(found, world.exact_gradient(), rtol=0, atol=1e-12)


@worlds
def test_reinforce_with_leave_one_out_is_unbiased_in_samples(world: World) -> None:
    """In the exact direction and in 20 others: in a single coordinate, that of a rare prefix, few samples say much."""
    exact_X = world.exact_gradient().flatten()
    directions_DX = torch.cat([exact_X.unsqueeze(0), torch.randn(20, len(exact_X), dtype=torch.float64)])
    directions_DX /= directions_DX.norm(dim=1, keepdim=True)
    found_GD = world.reinforce(world.sample(groups=2000, count=4, seed=5)).flatten(1) @ directions_DX.T
    error_D = found_GD.std(0) / len(found_GD) ** 0.5
    assert ((found_GD.mean(0) - directions_DX @ exact_X).abs() <= 4 * error_D).all()
    assert (error_D < 0.05 * exact_X.norm()).all(), "enough samples to see a bias"


def policy(world: World, table_PA: Tensor, sentence_R: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of sentences and their mask."""
    logits_RUV = world.logits(table_PA.expand(len(sentence_R), -1, -1), sentence_R)
    mask_RU = world.mask_YU[sentence_R]
    return token_log_probs(logits_RUV, world.choice_ids_A[world.choice_YU[sentence_R]], mask_RU), mask_RU


def at_the_end(number_R: Tensor, mask_RU: Tensor) -> Tensor:
    """A number on the end token of each row."""
    return torch.zeros(mask_RU.shape).double().scatter(1, mask_RU.sum(1, keepdim=True) - 1, number_R.unsqueeze(1))


@worlds
def test_the_first_step_of_ppo_is_reinforce(world: World) -> None:
    sentence_R = world.sample(groups=1, count=24)[0]
    table_PA = world.table_PA.clone().requires_grad_()
    logp_RU, mask_RU = policy(world, table_PA, sentence_R)
    reward_R = leave_one_out(-world.energy_Y[sentence_R].view(6, 4)).flatten()
    reward_RU = at_the_end(reward_R, mask_RU)
    advantage_RU, return_RU = generalised_advantages(reward_RU, torch.zeros_like(reward_RU), mask_RU, 1.0, 1.0)
    assert torch.equal(advantage_RU, reward_R.unsqueeze(1) * mask_RU) and torch.equal(return_RU, advantage_RU)
    loss, clipped = clipped_surrogate(logp_RU, logp_RU.detach(), advantage_RU, mask_RU, CLIP)
    (ppo,) = torch.autograd.grad(loss, table_PA, retain_graph=True)
    (reinforce,) = torch.autograd.grad(reinforce_loss(logp_RU, mask_RU, reward_R), table_PA)
    assert torch.equal(ppo, reinforce) and ppo.abs().max() > 1e-3
    assert clipped.item() == 0


@worlds
def test_later_steps_of_ppo_are_those_of_the_formula(world: World) -> None:
    sentence_R = world.sample(groups=1, count=24)[0]
    table_PA = world.table_PA.clone().requires_grad_()
    old_RU = policy(world, world.table_PA, sentence_R)[0]
    advantage_R = leave_one_out(-world.energy_Y[sentence_R].view(6, 4)).flatten()
    for step in range(3):
        logp_RU, mask_RU = policy(world, table_PA, sentence_R)
        advantage_RU = advantage_R.unsqueeze(1).expand_as(logp_RU)
        loss, clipped = clipped_surrogate(logp_RU, old_RU, advantage_RU, mask_RU, CLIP)
        wanted, held = 0.0, 0
        for row, place in mask_RU.nonzero().tolist():
            ratio, advantage = (logp_RU[row, place] - old_RU[row, place]).exp().item(), advantage_R[row].item()
            bounded = min(max(ratio, 1 - CLIP), 1 + CLIP)
            wanted -= min(ratio * advantage, bounded * advantage)
            held += bounded * advantage < ratio * advantage
        assert loss.item() == pytest.approx(wanted, abs=1e-12) and clipped.item() == held
        assert (held > 0) == (step > 0), "the steps are large enough to be clipped"
        (grad,) = torch.autograd.grad(loss, table_PA)
        with torch.no_grad():
            table_PA -= 2.0 * grad / grad.abs().max()


@worlds
def test_the_kl_estimate_is_the_divergence_and_draws_to_the_reference(world: World) -> None:
    table_PA = world.table_PA.clone().requires_grad_()
    reference_PA = table_PA.detach() + torch.randn_like(table_PA)
    logp_YU, mask_YU = policy(world, table_PA, world.everyone_Y)
    reference_YU = policy(world, reference_PA, world.everyone_Y)[0]
    estimate = world.mean(kl_estimate(logp_YU, reference_YU, mask_YU).sum(1))
    divergence = world.mean(world.log_probs(world.table_PA) - world.log_probs(reference_PA))
    torch.testing.assert_close(estimate, divergence, rtol=0, atol=1e-12)
    # Its gradient is that of KL(reference ‖ p) behind each prefix, prefixes by how often p reaches them.
    logs_PA, fixed_PA = (
        table.masked_fill(~world.allowed_PA, float("-inf")).log_softmax(-1) for table in (table_PA, reference_PA)
    )
    crossed_P = -(fixed_PA.exp() * logs_PA.masked_fill(~world.allowed_PA, 0.0)).sum(-1)
    reached_P = torch.zeros(len(table_PA)).double()
    rows_YU = world.probs_Y.unsqueeze(1) * mask_YU
    reached_P.index_add_(0, world.prefix_YU.flatten(), rows_YU.flatten())
    wanted, found = (torch.autograd.grad(value, table_PA)[0] for value in ((reached_P * crossed_P).sum(), estimate))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    assert (found * (reference_PA - table_PA.detach())).sum() < 0, "downhill is towards the reference"


@pytest.mark.parametrize("form", ["binary", "ranking"])
@pytest.mark.parametrize("world", [False], ids=["free length"], indirect=True)
def test_nce_pushes_gold_up_and_samples_down(world: World, form) -> None:
    """The first group is a gold whose samples were all dropped."""
    sizes_G = torch.tensor([1, 4, 3])
    candidates_C = world.sample(groups=1, count=8)[0]
    scores_C = (-world.energy_Y[candidates_C]).requires_grad_()
    loss, _ = contrastive_loss(scores_C, world.log_probs(world.table_PA)[candidates_C], sizes_G, form)
    (grad_C,) = torch.autograd.grad(loss, scores_C)
    gold_C = torch.zeros(8, dtype=torch.bool)
    gold_C[first_of(sizes_G)] = True
    assert loss.isfinite() and grad_C.isfinite().all()
    assert (grad_C[1:][gold_C[1:]] < 0).all() and (grad_C[~gold_C] > 0).all()
    assert grad_C[0].abs() < 1e-7 if form == "ranking" else grad_C[0] < 0
