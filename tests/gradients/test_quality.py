"""Gradients of the quality energy: exact for soft operators, and for each of the five those of a dense form over the
whole vocabulary (ENGINE, Table 1), from logits and from a projection.
"""

import pytest
import torch

from energymt.data.vocabulary import Vocabulary
from energymt.operators import OPERATORS
from energymt.records import Prediction, Projection, SoftTarget
from tests import bridged, estimators
from tests.bridged import SOURCES, energy_of, logits_of, noise_of, source_of

SOFT, HARD = ("SX", "GX"), ("STL", "SG", "ST")
feeds = pytest.mark.parametrize("feed", OPERATORS)


@pytest.fixture(params=bridged.VOCABULARIES)
def words(request: pytest.FixtureRequest) -> Vocabulary:
    return bridged.VOCABULARIES[request.param]()


@pytest.mark.parametrize("feed", SOFT)
def test_soft_operators_pass_gradcheck(feed: str, words: Vocabulary) -> None:
    energy = energy_of(words, feed, torch.float64)
    source, mask_BT = source_of(words, SOURCES[2:4]), torch.tensor([[True, True], [True, False]])
    logits_BTV = torch.randn(2, 2, words.size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda z: energy(source, Prediction(z, mask_BT, noise=noise_of(2))), (logits_BTV,), fast_mode=True
    )


@feeds
@pytest.mark.parametrize("sampled", [False, True])
def test_every_operator_equals_the_dense_form(feed: str, sampled: bool, words: Vocabulary) -> None:
    """Value and Jacobian of ENGINE Table 1, written out over the whole vocabulary."""
    energy = energy_of(words, feed, torch.float64)
    model = energy.estimator
    source, mask_BT = source_of(words, SOURCES[:3]), torch.tensor([[True] * 3, [True, True, False], [False] * 3])
    logits_BTV = logits_of(words, 3, 3, torch.float64).requires_grad_()
    ids_BT = torch.tensor(words.encode(SOURCES[4])[:9]).view(3, 3) if sampled else None
    noise = noise_of(3)
    fast_B = energy(source, Prediction(logits_BTV, mask_BT, ids_BT, noise))
    seen = logits_BTV + noise.draw(2).gumbel(3, 0, words.size, torch.float64) if feed in ("SG", "GX") else logits_BTV
    soft_BTV = seen.softmax(-1)
    if feed in HARD:
        chosen_BT = seen.argmax(-1) if ids_BT is None else ids_BT
        hard_BTV = torch.nn.functional.one_hot(chosen_BT, words.size).double()
        surrogate = logits_BTV.masked_fill(logits_BTV == float("-inf"), 0.0) if feed == "STL" else soft_BTV
        soft_BTV = (hard_BTV - surrogate).detach() + surrogate
    target = SoftTarget(None, soft_BTV @ energy.bridge.table(model.table_VD), mask_BT)
    slow_B = -model(estimators.source_of(model, SOURCES[:3]), target)
    torch.testing.assert_close(fast_B, slow_B, rtol=0, atol=1e-10)
    direction_B = torch.randn(3, dtype=torch.float64)
    (fast,), (slow,) = (torch.autograd.grad(value_B, logits_BTV, direction_B) for value_B in (fast_B, slow_B))
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-10)
    assert (fast[mask_BT].abs().amax(-1) > 1e-6).all()
    assert (fast[~mask_BT] == 0).all() and (fast[..., list(words.never_ids)] == 0).all()


@feeds
def test_a_projection_is_the_logits_that_it_stands_for(feed: str, words: Vocabulary) -> None:
    energy = energy_of(words, feed, torch.float64)
    source, mask_BT = source_of(words, SOURCES[:2]), torch.tensor([[True] * 3, [True, False, False]])
    hidden_BTH = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    bias_V = logits_of(words, 1, 1, torch.float64)[0, 0]
    projection = Projection(hidden_BTH, torch.randn(words.size, 6, dtype=torch.float64), bias_V)
    short = Prediction(None, mask_BT, noise=noise_of(2), projection=projection)
    long = Prediction(projection.logits(), mask_BT, noise=noise_of(2))
    values = [energy(source, given) for given in (short, long)]
    torch.testing.assert_close(*values, rtol=0, atol=1e-10)
    torch.testing.assert_close(*(torch.autograd.grad(energy_B.sum(), hidden_BTH)[0] for energy_B in values))
    torch.testing.assert_close(energy.covered_mass(short), energy.covered_mass(long))
