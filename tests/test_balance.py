"""How two gradients are weighed, against plain formulas and against what the weights are for."""

import json

import pytest
import torch
from torch import Tensor

from energymt.balance import Balance, BalanceConfig
from energymt.configuration import validate
from energymt.errors import ConfigurationError

STEPS = 100
LOSSES = (2.0, 0.5)


def gradients(cosine: float, labelled: float = 3.0, unlabelled: float = 0.5) -> Tensor:
    """Two gradients [2, D] of these norms and this cosine, labelled first, in float64."""
    draw = torch.Generator().manual_seed(4)
    basis_D2, _ = torch.linalg.qr(torch.randn(7, 2, dtype=torch.float64, generator=draw))
    first, second = basis_D2.T
    return torch.stack([labelled * first, unlabelled * (cosine * first + (1 - cosine**2) ** 0.5 * second)])


def gram(found_2D: Tensor) -> Tensor:
    return found_2D @ found_2D.T


def balance(kind: str, **changes) -> Balance:
    return Balance(BalanceConfig(kind=kind, **changes), STEPS)


def energy_part(found_2D: Tensor, weights: tuple[float, float]) -> Tensor:
    """What stands in the step beside the gradient of the labelled part."""
    return weights[0] * found_2D[0] + weights[1] * found_2D[1] - found_2D[0]


# ----------------------------------------------------------------------------------------------------- plain formulas


@pytest.mark.parametrize("step, ramp", [(0, 0.05), (9, 0.5), (19, 1.0), (80, 1.0)])
@pytest.mark.parametrize("cosine", [-0.9, 0.0, 0.7])
def test_ratio_gives_the_energy_a_share_of_the_norm(step: int, ramp: float, cosine: float) -> None:
    found = gradients(cosine)
    weights = balance("ratio", weight=0.3, ramp=0.2).weigh(gram(found), step, LOSSES)
    assert weights[0] == 1.0
    assert float((weights[1] * found[1]).norm()) == pytest.approx(ramp * 0.3 * 3.0)


@pytest.mark.parametrize("step, ramp", [(0, 0.05), (9, 0.5), (19, 1.0), (80, 1.0)])
def test_a_constant_weight_grows_over_the_ramp(step: int, ramp: float) -> None:
    weights = balance("constant", weight=0.3, ramp=0.2).weigh(gram(gradients(0.1)), step, LOSSES)
    assert weights == (1.0, pytest.approx(ramp * 0.3))


def test_without_a_ramp_the_first_step_has_the_whole_weight() -> None:
    assert balance("constant", weight=0.3, ramp=0.0).weigh(gram(gradients(0.1)), 0, LOSSES) == (1.0, 0.3)


@pytest.mark.parametrize("step, weight", [(0, 0.0), (1000, 0.00025), (4000, 0.001), (9000, 0.001)])
def test_as_published(step: int, weight: float) -> None:
    found = balance("published", weight=5.0).weigh(gram(gradients(0.1)), step, LOSSES)
    assert found == (pytest.approx(1 - 10 * weight), pytest.approx(weight))


@pytest.mark.parametrize("kind", ["ratio", "projection"])
@pytest.mark.parametrize("share", [0.5, 0.1, 0.01])
def test_an_energy_that_fades_is_not_amplified_without_end(kind: str, share: float) -> None:
    own = balance(kind, weight=0.3, ramp=0.02)  # over two steps, of the norms 0.4 and 0.6
    for step, norm in enumerate((0.4, 0.6)):
        own.weigh(gram(gradients(0.0, unlabelled=norm)), step, LOSSES)
    again = balance(kind, weight=0.3, ramp=0.02)
    again.load(json.loads(json.dumps(own.state())))
    faint = gram(gradients(0.0, unlabelled=0.5 * share))
    for found in (own, again):
        assert found.weigh(faint, 50, LOSSES)[1] == pytest.approx(0.3 * 3.0 / (0.5 * max(0.1, share)))
    assert own.weigh(gram(gradients(0.0, unlabelled=5.0)), 51, LOSSES)[1] == pytest.approx(0.3 * 3.0 / 5.0)


# --------------------------------------------------------------------------------------------------------- projection


@pytest.mark.parametrize("cosine", [-0.99, -0.5, -0.01])
def test_projection_leaves_nothing_against_the_labelled_gradient(cosine: float) -> None:
    found = gradients(cosine)
    weights = balance("projection", weight=0.3, ramp=0.0).weigh(gram(found), 5, LOSSES)
    left = energy_part(found, weights)
    assert float(left @ found[0]) == pytest.approx(0.0, abs=1e-12)
    assert float(left.norm()) == pytest.approx(0.3 * 3.0)
    assert float(left @ found[1]) > 0, "what is left still lowers the energy"
    assert float((weights[0] * found[0] + weights[1] * found[1]) @ found[0]) == pytest.approx(9.0)


@pytest.mark.parametrize("cosine", [0.0, 0.6])
def test_where_nothing_is_against_it_projection_is_ratio(cosine: float) -> None:
    matrix = gram(gradients(cosine)).clamp(min=0)
    kinds = ("projection", "ratio")
    first, second = (balance(kind, weight=0.3).weigh(matrix, 3, LOSSES) for kind in kinds)
    assert first == pytest.approx(second)


def test_of_the_opposite_gradient_nothing_is_left() -> None:
    found = gradients(-1.0)
    assert balance("projection", ramp=0.0).weigh(gram(found), 5, LOSSES) == (1.0, 0.0)


# ----------------------------------------------------------------------------------------------------------- GradNorm


def learn(
    found: Balance, steps: int, norms: tuple[float, float], losses: tuple[float, float] = LOSSES
) -> tuple[float, float]:
    matrix = gram(gradients(0.2, *norms))
    for step in range(steps):
        weights = found.weigh(matrix, step, losses)
    return weights


def test_gradnorm_starts_with_equal_weights_and_makes_norms_equal() -> None:
    found = balance("gradnorm", asymmetry=0.0)
    assert learn(found, 1, (4.0, 1.0)) == (1.0, 1.0)
    weights = learn(found, 200, (4.0, 1.0))
    assert sum(weights) == pytest.approx(2.0)
    assert weights[0] * 4.0 == pytest.approx(weights[1] * 1.0, rel=0.2)  # the last step may have gone beyond
    finer = balance("gradnorm", asymmetry=0.0, rate=0.001)
    weights = learn(finer, 3000, (4.0, 1.0))
    assert weights[0] * 4.0 == pytest.approx(weights[1] * 1.0, rel=0.01)


def test_gradnorm_knows_no_unit() -> None:
    first, second = balance("gradnorm"), balance("gradnorm")
    assert learn(first, 50, (4.0, 1.0)) == pytest.approx(learn(second, 50, (4e3, 1e3)))


def test_gradnorm_favours_the_part_that_trains_slowly() -> None:
    """Norms stand as (L / L_0)^α, about: what both are to be does not add up to what they have together. The labelled
    loss has halved, the other is what it was.
    """
    found = balance("gradnorm", asymmetry=0.5, rate=0.001)
    learn(found, 1, (1.0, 1.0), LOSSES)
    weights = learn(found, 2000, (1.0, 1.0), (LOSSES[0] / 2, LOSSES[1]))
    assert weights[0] / weights[1] == pytest.approx(0.5**0.5, rel=0.05)


def test_gradnorm_goes_one_step_against_the_sign_of_the_gap() -> None:
    found = balance("gradnorm", asymmetry=0.0, rate=0.1)
    learn(found, 1, (3.0, 1.0))  # weighted norms 3 and 1, both to be 2; steps in mean norms 1.5 and 0.5
    total = (1 - 0.1 * 1.5) + (1 + 0.1 * 0.5)
    assert found.learnt == pytest.approx([2 * (1 - 0.15) / total, 2 * (1 + 0.05) / total])


def test_the_state_of_gradnorm_goes_through_json() -> None:
    whole, interrupted = balance("gradnorm"), balance("gradnorm")
    learn(whole, 20, (4.0, 1.0))
    learn(interrupted, 8, (4.0, 1.0))
    resumed = balance("gradnorm")
    resumed.load(json.loads(json.dumps(interrupted.state())))
    learn(resumed, 12, (4.0, 1.0))
    assert (resumed.learnt, resumed.first) == (whole.learnt, whole.first)
    assert resumed.first == list(LOSSES)
    resumed.load(balance("gradnorm").state())
    assert resumed.learnt == [1.0, 1.0] and resumed.first == []


def test_weights_stay_within_their_cap() -> None:
    found = balance("gradnorm", asymmetry=0.0, rate=3.0)
    weights = learn(found, 30, (1e6, 1e-3))
    assert all(0 < weight < 2 for weight in weights)


# ---------------------------------------------------------------------------------------------------------- zero norms


@pytest.mark.parametrize("kind", ["ratio", "constant", "projection", "published", "gradnorm"])
@pytest.mark.parametrize("norms", [(0.0, 0.0), (3.0, 0.0), (0.0, 0.5)])
def test_a_gradient_of_zero_gives_finite_weights(kind: str, norms: tuple[float, float]) -> None:
    weights = balance(kind).weigh(gram(gradients(-0.5, *norms)), 50, LOSSES)
    assert all(0 <= weight < 2 for weight in weights)
    assert weights[0] > 0.9


def test_gradnorm_learns_nothing_of_a_part_that_is_not_there() -> None:
    """A step without unlabelled sentences, or none of which could be scored, has a gradient of zero and no loss."""
    found = balance("gradnorm")
    learn(found, 5, (4.0, 0.0), (2.0, 0.0))
    assert found.learnt == [1.0, 1.0] and found.first == []
    learn(found, 5, (4.0, 1.0))
    assert found.first == list(LOSSES)
    assert found.learnt[0] < 1.0 < found.learnt[1]


@pytest.mark.parametrize(
    "values", [{"kind": "none"}, {"weight": -1}, {"weight": float("inf")}, {"ramp": 1.5}, {"rate": 0}]
)
def test_impossible_settings_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(values))):
        validate(BalanceConfig, values, "a test")
