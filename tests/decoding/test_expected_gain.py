"""Where it was tried what steps come to, that decides which α a sentence gets and whether it is nudged at all."""

import pytest
import torch

from energymt.decoding.perturbed import Perturbation
from energymt.models.gains import Gain
from energymt.models.proxy import QualityProxy
from tests.decoding.test_perturbed import memory_of, model_of, proxy_of

MODEL = model_of("scratch")
MEMORY = memory_of(MODEL)


def tried(kept: dict[float, float], error: float = 1.0, steps: int = 1) -> QualityProxy:
    """A proxy of which it is known what steps of these lengths come to."""
    proxy = proxy_of(MODEL)
    gains = [Gain("relative", steps, alpha, 1.0, 1.0, part, error, 100) for alpha, part in kept.items()]
    proxy.gains = {gain.key: gain for gain in gains}
    return proxy


def promise(proxy: QualityProxy, alpha: float) -> torch.Tensor:
    after = Perturbation(proxy, (alpha,))(MEMORY)
    return proxy.merit(after.states_BSD, after.mask_BS) - proxy.merit(MEMORY.states_BSD, MEMORY.mask_BS)


def chosen(change: Perturbation, alphas: tuple[float, ...]) -> list[float]:
    """Which α each sentence got, by its states."""
    found = change(MEMORY).states_BSD
    ends = {alpha: Perturbation(change.proxy, (alpha,))(MEMORY).states_BSD for alpha in (0.0, *alphas)}
    return [
        next(alpha for alpha, end in ends.items() if torch.equal(end[row], found[row])) for row in range(len(found))
    ]


def test_promises_are_the_proxys_merit_there_minus_here() -> None:
    proxy = tried({})
    found_AB = Perturbation(proxy, (0.0, 0.1, 0.3)).promises(MEMORY)
    wanted_AB = torch.stack([promise(proxy, alpha) for alpha in (0.0, 0.1, 0.3)])
    torch.testing.assert_close(found_AB, wanted_AB, rtol=0, atol=1e-5)
    assert not found_AB[0].any() and (found_AB[1] > 0).all()


def test_of_several_alphas_the_one_of_which_most_is_expected() -> None:
    alphas = (0.1, 0.3)
    assert set(chosen(Perturbation(tried({}), alphas), alphas)) == {0.3}  # promised more
    assert set(chosen(Perturbation(tried({0.1: 0.5, 0.3: 0.01}), alphas), alphas)) == {0.1}  # kept more
    assert set(chosen(Perturbation(tried({0.3: 0.01}), alphas), alphas)) == {0.3}  # of 0.1 nothing is known
    proxy = tried({})
    kept = float(promise(proxy, 0.1).median() / promise(proxy, 0.3).median())
    split = tried({0.1: 1.0, 0.3: kept})
    wanted = torch.where(promise(proxy, 0.1) >= kept * promise(proxy, 0.3), 0.1, 0.3).tolist()
    assert chosen(Perturbation(split, alphas), alphas) == pytest.approx(wanted)
    assert len(set(wanted)) == 2


@pytest.mark.parametrize("alphas", [(0.3, 0.1, 0.0), (0.0, 0.1, 0.3)])
def test_what_brings_nothing_is_left_alone(alphas: tuple[float, ...]) -> None:
    assert set(chosen(Perturbation(tried({0.1: 0.0, 0.3: 0.0}), alphas), alphas)) == {0.0}
    assert set(chosen(Perturbation(tried({0.1: 0.2, 0.3: 0.0}), alphas), alphas)) == {0.1}


def test_trust_counts_in_errors_of_a_gain() -> None:
    proxy = tried({0.3: 0.5}, error=2.0)
    gain_B = 0.5 * promise(proxy, 0.3)
    low, high = gain_B.sort().values[3:5].tolist()
    found = chosen(Perturbation(proxy, (0.3,), trust=(low + high) / 2 / 2.0), (0.3,))
    assert found == [0.3 if gain > high - 1e-6 else 0.0 for gain in gain_B.tolist()]
    assert len(set(found)) == 2
    assert set(chosen(Perturbation(tried({0.3: 0.0}), (0.3,), trust=1e-9), (0.3,))) == {0.0}
    assert set(chosen(Perturbation(tried({0.3: 0.0}), (0.3,)), (0.3,))) == {0.3}  # without trust all are nudged


def test_other_steps_are_other_gains() -> None:
    """In four parts, or in another unit: nothing is known of them, and the promise itself counts."""
    proxy = tried({0.3: 0.0})
    for other in (Perturbation(proxy, (0.3,), steps=4, trust=1e-9), Perturbation(proxy, (0.3,), "unit", trust=1e-9)):
        assert not other.tried
        assert not torch.equal(other(MEMORY).states_BSD, MEMORY.states_BSD)
    assert Perturbation(tried({0.3: 0.5}, steps=4), (0.3, 0.0), steps=4).tried
