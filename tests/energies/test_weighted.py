"""A weighted energy is the weighted sum, in value, gradient and name."""

import pytest
import torch

from energymt.energies import AutoregressiveEnergy, Energy, WeightedEnergy
from energymt.records import Prediction
from tests import tiny


class Lengths:
    """A made-up energy: the mass on token 7."""

    unit = "sevens"

    def __call__(self, source, prediction):
        return prediction.logits_BTV.softmax(-1)[..., 7].sum(1)


@pytest.fixture
def parts():
    return AutoregressiveEnergy(tiny.recurrent()), Lengths()


@pytest.fixture
def given():
    source = tiny.source_of([[6, 7], [8]], tiny.Numbers())
    return source, Prediction(torch.randn(2, 3, tiny.SIZE, requires_grad=True), torch.ones(2, 3, dtype=torch.bool))


def test_energies_and_their_gradients_add_up(parts, given) -> None:
    teacher, sevens = parts
    energy = WeightedEnergy({"teacher": (0.5, teacher), "sevens": (-2.0, sevens)})
    value_B = energy(*given)
    assert torch.allclose(value_B, 0.5 * teacher(*given) - 2.0 * sevens(*given))
    logits = given[1].logits_BTV
    grads = [torch.autograd.grad(e(*given).sum(), logits)[0] for e in (energy, teacher, sevens)]
    assert torch.allclose(grads[0], 0.5 * grads[1] - 2.0 * grads[2], atol=1e-6)


def test_parts_come_one_by_one_and_unweighted(parts, given) -> None:
    teacher, sevens = parts
    shown = WeightedEnergy({"teacher": (0.5, teacher), "sevens": (-2.0, sevens)}).parts(*given)
    assert list(shown) == ["teacher", "sevens"]
    assert torch.equal(shown["teacher"], teacher(*given))
    assert torch.equal(shown["sevens"], sevens(*given))


def test_each_part_keeps_its_operators(given) -> None:
    model = tiny.recurrent()
    soft, hard = AutoregressiveEnergy(model, "SX", "SX"), AutoregressiveEnergy(model, "ST", "ST")
    both = WeightedEnergy({"soft": (1.0, soft), "hard": (1.0, hard)})
    assert torch.allclose(both(*given), soft(*given) + hard(*given))
    assert not torch.allclose(soft(*given), hard(*given), rtol=1e-2)


def test_it_is_an_energy_and_energies_nest(parts, given) -> None:
    teacher, sevens = parts
    inner = WeightedEnergy({"teacher": (2.0, teacher)})
    outer = WeightedEnergy({"inner": (0.5, inner), "sevens": (1.0, sevens)})
    assert isinstance(outer, Energy)
    assert outer.unit == "0.5 × 2 × nats per sentence + 1 × sevens"
    assert torch.allclose(outer(*given), teacher(*given) + sevens(*given))


def test_no_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        WeightedEnergy({})
