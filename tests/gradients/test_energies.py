"""Gradients of the autoregressive energy: exact where nothing is approximated, and for each of the 25 operator pairs
those of a dense form written here from the formulas of the paper (ENGINE, Eqs. 2 and 3, Table 1).
"""

from itertools import product

import pytest
import torch

from energymt.energies import AutoregressiveEnergy, WeightedEnergy
from energymt.operators import OPERATORS, Noise
from energymt.records import Prediction, Source
from tests import tiny

B, T = 2, 3
PAIRS = list(product(OPERATORS, OPERATORS))
FAMILIES = ("recurrent", "marian")
LENGTHS = (3, 2)


@pytest.fixture(params=FAMILIES)
def teacher(request):
    return tiny.teacher(request.param).double()


@pytest.fixture
def source(teacher):
    return tiny.source_of([[6, 7, 8], [9]], teacher.vocabulary)


@pytest.fixture
def mask() -> torch.Tensor:
    return torch.arange(T) < torch.tensor(LENGTHS)[:, None]


@pytest.fixture
def noise() -> Noise:
    return Noise(seed=3, step=7, sentence_ids_B=torch.tensor([11, 12]))


def logits_of(forbidden=()) -> torch.Tensor:
    logits = torch.randn(B, T, tiny.SIZE, dtype=torch.float64)
    logits[..., list(forbidden)] = float("-inf")
    return logits.requires_grad_()


def dense_operator(name: str, logits: torch.Tensor, gumbel: torch.Tensor) -> torch.Tensor:
    """ENGINE Table 1 by the straight-through trick: (value − surrogate), detached, plus the surrogate."""
    seen = logits + gumbel if name in ("SG", "GX") else logits
    soft = seen.softmax(-1)
    if name in ("SX", "GX"):
        return soft
    hard = torch.nn.functional.one_hot(seen.argmax(-1), logits.shape[-1]).to(logits.dtype)
    surrogate = seen.masked_fill(seen == float("-inf"), 0.0) if name == "STL" else soft
    return (hard - surrogate).detach() + surrogate


def dense_energy(teacher, source, logits, mask, feed: str, score: str, noise: Noise) -> torch.Tensor:
    """Sentence by sentence, token by token, with nothing padded and every vector of size V written out."""
    length, size = logits.shape[1:]
    gumbel = [noise.draw(stream).gumbel(length, 0, size, logits.dtype) for stream in (0, 1)]
    energies = []
    for b, tokens in enumerate(mask.sum(1).tolist()):
        width = int(source.mask_BS[b].sum())
        memory = teacher.encode(Source(source.ids_BS[b : b + 1, :width], source.mask_BS[b : b + 1, :width]))
        fed = dense_operator(feed, logits[b : b + 1, :tokens], gumbel[0][b : b + 1, :tokens])
        scored = dense_operator(score, logits[b : b + 1, :tokens], gumbel[1][b : b + 1, :tokens])
        total = torch.zeros((), dtype=logits.dtype)
        for t in range(tokens + 1):
            prefix = fed[:, :t] @ teacher.embedding_VD
            logp = teacher.decode_soft(memory, prefix, torch.ones(1, t, dtype=torch.bool))[0, -1].log_softmax(-1)
            total = total - (logp[teacher.vocabulary.eos_id] if t == tokens else scored[0, t] @ logp)
        energies.append(total)
    return torch.stack(energies)


@pytest.mark.parametrize("feed, score", list(product(("SX", "GX"), ("SX", "GX"))))
def test_soft_pairs_pass_gradcheck(feed: str, score: str, teacher, source, mask, noise: Noise) -> None:
    energy, mask = AutoregressiveEnergy(teacher, feed, score), mask[:, 1:]  # of 2 tokens and 1
    logits = logits_of()[:, 1:].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: energy(source, Prediction(z, mask, noise=noise)), (logits,))


@pytest.mark.parametrize("feed, score", PAIRS)
def test_every_pair_equals_the_dense_form(feed: str, score: str, teacher, source, mask, noise: Noise) -> None:
    logits = logits_of()
    fast_B = AutoregressiveEnergy(teacher, feed, score)(source, Prediction(logits, mask, noise=noise))
    slow_B = dense_energy(teacher, source, logits, mask, feed, score, noise)
    assert fast_B.isfinite().all()
    assert torch.allclose(fast_B, slow_B)
    direction = torch.randn(B, dtype=torch.float64)
    (fast,), (slow,) = (torch.autograd.grad(value, logits, direction) for value in (fast_B, slow_B))
    assert torch.allclose(fast, slow, atol=1e-10)
    assert (fast[mask].abs().amax(-1) > 1e-6).all()
    assert (fast[~mask] == 0).all()


@pytest.mark.parametrize("feed, score", PAIRS)
def test_tokens_that_cannot_stand_get_no_gradient(feed: str, score: str, teacher, source, mask, noise: Noise) -> None:
    forbidden = [*teacher.vocabulary.never_ids, teacher.vocabulary.eos_id]
    logits = logits_of(forbidden)
    energy_B = AutoregressiveEnergy(teacher, feed, score)(source, Prediction(logits, mask, noise=noise))
    assert energy_B.isfinite().all()
    (grad,) = torch.autograd.grad(energy_B.sum(), logits)
    assert grad.isfinite().all()
    assert (grad[..., forbidden] == 0).all()
    assert (grad[mask].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("feed, score", [("ST", "SX"), ("ST", "ST"), ("STL", "STL"), ("SG", "ST")])
def test_a_sampled_token_is_the_value_and_the_jacobian_stays(feed, score, teacher, source, mask, noise) -> None:
    """With `hard_ids` the value is another corner; the surrogate that carries the gradient is the same."""
    logits, ids = logits_of(), torch.randint(6, 14, (B, T))
    given = Prediction(logits, mask, hard_ids_BT=ids, noise=noise)
    fast_B = AutoregressiveEnergy(teacher, feed, score)(source, given)
    hard = torch.nn.functional.one_hot(ids, tiny.SIZE).double()

    def relaxed(name, stream):
        if name == "SX":
            return logits.softmax(-1)
        seen = logits + noise.draw(stream).gumbel(T, 0, tiny.SIZE, logits.dtype) if name == "SG" else logits
        surrogate = logits if name == "STL" else seen.softmax(-1)
        return (hard - surrogate).detach() + surrogate

    logp = teacher.decode_soft(teacher.encode(source), relaxed(feed, 0) @ teacher.embedding_VD, mask).log_softmax(-1)
    end_B = logp[..., teacher.vocabulary.eos_id].gather(1, mask.sum(1, keepdim=True))[:, 0]
    slow_B = -((relaxed(score, 1) * logp[:, :-1]).sum(-1) * mask).sum(1) - end_B
    assert torch.allclose(fast_B, slow_B)
    assert torch.allclose(*(torch.autograd.grad(value.sum(), logits)[0] for value in (fast_B, slow_B)), atol=1e-10)


def test_a_weighted_energy_passes_gradcheck(teacher, source, mask) -> None:
    one, other = AutoregressiveEnergy(teacher, "SX", "SX"), AutoregressiveEnergy(tiny.recurrent().double(), "SX", "SX")
    energy, mask = WeightedEnergy({"one": (0.3, one), "other": (-1.5, other)}), mask[:, 1:]
    logits = logits_of()[:, 1:].detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: energy(source, Prediction(z, mask)), (logits,))


def test_the_last_token_feels_the_end_of_the_sentence(source, mask) -> None:
    """O1 of the last token is read by −log p(eos) alone: without the end token its gradient would be zero."""
    teacher = tiny.recurrent().double()
    logits = logits_of()
    fed_only = AutoregressiveEnergy(teacher, "SX", "ST")(
        source, Prediction(logits, mask, hard_ids_BT=torch.full((B, T), 7))
    )
    (grad,) = torch.autograd.grad(fed_only.sum(), logits)
    scored = logits.detach().requires_grad_()
    fed = teacher.decode_soft(teacher.encode(source), logits.detach().softmax(-1) @ teacher.embedding_VD, mask)
    surrogate = (scored.softmax(-1) * fed.log_softmax(-1)[:, :-1]).sum(-1)
    (score_grad,) = torch.autograd.grad(-(surrogate * mask).sum(), scored)
    for b, tokens in enumerate(LENGTHS):
        assert (grad - score_grad)[b, tokens - 1].abs().max() > 1e-6
