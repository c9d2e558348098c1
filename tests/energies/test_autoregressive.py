"""The energy of one-hot tokens is the teacher's own NLL; padding, order and training mode change nothing."""

from itertools import product

import pytest
import torch
from torch.nn.functional import cross_entropy

from energymt.decoding import autoregressive
from energymt.energies import AutoregressiveEnergy
from energymt.errors import ConfigurationError
from energymt.operators import OPERATORS, Noise
from energymt.records import Prediction
from tests import tiny

PAIRS = list(product(OPERATORS, OPERATORS))
SOURCES = [[6, 7, 8], [9], [10, 11, 12, 13, 6]]
TARGETS = [[8, 9], [10, 11, 12, 7], [13]]


def nll_of_recurrent(model, source, target):
    """Step by step with the cell of PyTorch: −log p of each token and of the end."""
    memory = model.encode(tiny.source_of([source], model.vocabulary))
    state, logits = model.start(memory)
    total = 0.0
    for token in [*target, model.vocabulary.eos_id]:
        total -= logits.log_softmax(-1)[0, token].item()
        state, logits = model.step(state, torch.tensor([token]))
    return total


def nll_of_hugging_face(model, source, target):
    """By the network's own forward pass from `labels`, for one sentence without any padding."""
    eos, forced = model.vocabulary.eos_id, model.prefix_ids[1:]
    ids, labels = torch.tensor([[*source, eos]]), torch.tensor([[*forced, *target, eos]])
    logits = model.network(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).logits
    return cross_entropy(logits[0, len(forced) :], labels[0, len(forced) :], reduction="sum").item()


@pytest.fixture(scope="module", params=tiny.TEACHERS)
def family(request):
    return request.param


@torch.no_grad()
def test_the_energy_of_tokens_is_the_teacher_s_own_nll(family: str) -> None:
    model = tiny.teacher(family)
    own = nll_of_recurrent if family == "recurrent" else nll_of_hugging_face
    wanted_B = torch.tensor([own(model, source, target) for source, target in zip(SOURCES, TARGETS, strict=True)])
    source = tiny.source_of(SOURCES, model.vocabulary)
    ids_BT, mask_BT = tiny.padded(TARGETS, model.vocabulary.pad_id)
    assert torch.allclose(AutoregressiveEnergy(model).discrete(source, ids_BT, mask_BT), wanted_B, rtol=1e-4)
    prediction = Prediction.of_ids(ids_BT, mask_BT, tiny.SIZE)
    noisy = Prediction(prediction.logits_BTV, mask_BT, noise=Noise(1, 2, torch.arange(3)))
    for feed, score in PAIRS if family in ("recurrent", "scratch") else [("SX", "ST"), ("STL", "GX"), ("SG", "SX")]:
        energy = AutoregressiveEnergy(model, feed, score)
        given = noisy if {"SG", "GX"} & {feed, score} else prediction
        assert torch.allclose(energy(source, given), wanted_B, rtol=1e-4), (feed, score)


def test_the_end_of_the_sentence_is_counted_at_the_length_given() -> None:
    model = tiny.recurrent()
    source = tiny.source_of(SOURCES[:1], model.vocabulary)
    ids_BT, mask_BT = torch.tensor([[8, 9]]), torch.ones(1, 2, dtype=torch.bool)
    logp_BUV = model.decode(model.encode(source), ids_BT, mask_BT).log_softmax(-1)
    words = -logp_BUV[0, 0, 8] - logp_BUV[0, 1, 9]
    end = -logp_BUV[0, 2, model.vocabulary.eos_id]
    assert end > 0.1
    energy = AutoregressiveEnergy(model)
    for value in (
        energy.discrete(source, ids_BT, mask_BT),
        energy(source, Prediction.of_ids(ids_BT, mask_BT, tiny.SIZE)),
    ):
        assert value.item() == pytest.approx((words + end).item(), rel=1e-5)
    # At another length the end token is asked for elsewhere.
    shorter = energy.discrete(source, ids_BT, torch.tensor([[True, False]]))
    assert shorter.item() == pytest.approx(
        (-logp_BUV[0, 0, 8] - logp_BUV[0, 1, model.vocabulary.eos_id]).item(), rel=1e-5
    )


def predicted(width: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits with the tokens that cannot stand at −∞, and a mask of the lengths of TARGETS."""
    draw = torch.Generator().manual_seed(seed)
    logits_BTV = 2 * torch.randn(3, width, tiny.SIZE, generator=draw)
    logits_BTV[..., [0, 2, 3, 4]] = float("-inf")
    return logits_BTV, torch.arange(width) < torch.tensor([len(target) for target in TARGETS])[:, None]


@pytest.mark.parametrize("feed, score", PAIRS)
def test_padding_and_order_change_neither_energy_nor_gradient(feed: str, score: str) -> None:
    model = tiny.recurrent()
    energy = AutoregressiveEnergy(model, feed, score)
    logits_BTV, mask_BT = predicted()
    noise = Noise(3, 4, torch.tensor([5, 6, 7]))

    def run(rows, target_width=4, source_width=0, garbage=0.0):
        logits = logits_BTV[rows][:, :target_width].clone()
        mask = mask_BT[rows][:, :target_width]
        if target_width > 4:
            logits = torch.cat([logits, logits[:, :1].expand(-1, target_width - 4, -1)], dim=1)
            mask = torch.cat([mask, torch.zeros(len(rows), target_width - 4, dtype=torch.bool)], dim=1)
        logits = torch.where(mask[..., None], logits, logits + garbage).requires_grad_()
        source = tiny.source_of([SOURCES[row] for row in rows], model.vocabulary, source_width)
        given = Prediction(logits, mask, noise=Noise(noise.seed, noise.step, noise.sentence_ids_B[rows]))
        energy_B = energy(source, given)
        (grad,) = torch.autograd.grad(energy_B.sum(), logits)
        return {row: (energy_B[b].detach(), grad[b][mask[b]]) for b, row in enumerate(rows)}

    whole = run([0, 1, 2])
    shown = [run([2, 0, 1]), run([0, 1, 2], target_width=7, source_width=9, garbage=30.0), run([1]), run([2], 1)]
    for part in shown:
        for row, (value, grad) in part.items():
            assert torch.allclose(value, whole[row][0], rtol=1e-4)
            assert torch.allclose(grad, whole[row][1], rtol=1e-3, atol=1e-5)
    assert whole[0][1].abs().max() > 1e-3


def test_padding_gets_no_gradient() -> None:
    model = tiny.recurrent()
    logits_BTV, mask_BT = predicted()
    logits_BTV.requires_grad_()
    for feed, score in (("SX", "ST"), ("STL", "STL"), ("ST", "SX")):
        energy_B = AutoregressiveEnergy(model, feed, score)(
            tiny.source_of(SOURCES, model.vocabulary), Prediction(logits_BTV, mask_BT)
        )
        (grad,) = torch.autograd.grad(energy_B.sum(), logits_BTV)
        assert (grad[~mask_BT] == 0).all()
        assert (grad[mask_BT].abs().sum(-1) > 0).all()
        assert grad.isfinite().all()


def test_padding_that_the_teacher_rules_out_is_no_infinity() -> None:
    model = tiny.recurrent()
    with torch.no_grad():
        model.bias[model.vocabulary.pad_id] = float("-inf")
    ids_BT, mask_BT = tiny.padded(TARGETS, model.vocabulary.pad_id)
    source = tiny.source_of(SOURCES, model.vocabulary)
    energy = AutoregressiveEnergy(model, "ST", "ST")
    wanted_B = energy.discrete(source, ids_BT, mask_BT)
    assert wanted_B.isfinite().all()
    assert torch.allclose(energy(source, Prediction.of_ids(ids_BT, mask_BT, tiny.SIZE)), wanted_B, rtol=1e-4)
    logits_BTV, _ = predicted()
    logits_BTV.requires_grad_()
    energy_B = AutoregressiveEnergy(model)(source, Prediction(logits_BTV, mask_BT))
    assert torch.autograd.grad(energy_B.sum(), logits_BTV)[0].isfinite().all()


@pytest.mark.parametrize("family", ["recurrent", "scratch"])
def test_the_discrete_energy_is_that_of_the_argmax(family: str) -> None:
    model = tiny.teacher(family)
    energy = AutoregressiveEnergy(model, "SX", "SX")
    logits_BTV, mask_BT = predicted()
    source = tiny.source_of(SOURCES, model.vocabulary)
    prediction = Prediction(logits_BTV, mask_BT)
    wanted_B = energy.discrete(source, logits_BTV.argmax(-1), mask_BT)
    assert torch.allclose(energy(source, prediction.argmax()), wanted_B, rtol=1e-4)
    assert not torch.allclose(energy(source, prediction), wanted_B, rtol=1e-2)
    hard = AutoregressiveEnergy(model, "ST", "ST")
    assert torch.allclose(hard(source, prediction), wanted_B, rtol=1e-4)


def test_hard_operators_take_the_tokens_given() -> None:
    model = tiny.recurrent()
    logits_BTV, mask_BT = predicted()
    ids_BT = torch.randint(6, 14, (3, 4))
    source = tiny.source_of(SOURCES, model.vocabulary)
    sampled = AutoregressiveEnergy(model, "ST", "ST")(source, Prediction(logits_BTV, mask_BT, hard_ids_BT=ids_BT))
    assert torch.allclose(sampled, AutoregressiveEnergy(model).discrete(source, ids_BT, mask_BT), rtol=1e-4)


@pytest.mark.parametrize("feed, score", [("SG", "GX"), ("GX", "SG"), ("GX", "GX"), ("SX", "SG")])
def test_noise_is_named_by_seed_step_and_sentence(feed: str, score: str) -> None:
    model = tiny.recurrent()
    energy = AutoregressiveEnergy(model, feed, score)
    source = tiny.source_of([[6, 7]] * 3, model.vocabulary)
    logits_BTV = predicted()[0][:1].expand(3, -1, -1)
    mask_BT = torch.ones(3, 4, dtype=torch.bool)

    def value(seed=1, step=2, ids=(5, 5, 6)):
        return energy(source, Prediction(logits_BTV, mask_BT, noise=Noise(seed, step, torch.tensor(ids))))

    first = value()
    assert torch.equal(first, value())
    assert torch.isclose(first[0], first[1]) and not torch.isclose(first[1], first[2])
    assert not torch.equal(first, value(seed=2))
    assert not torch.equal(first, value(step=3))


def test_the_two_places_draw_noise_of_their_own() -> None:
    model = tiny.recurrent()
    source = tiny.source_of([[6, 7]], model.vocabulary)
    # Flat logits: the token that SG picks is decided by the noise alone.
    prediction = Prediction(
        torch.zeros(1, 9, tiny.SIZE), torch.ones(1, 9, dtype=torch.bool), noise=Noise(1, 1, torch.tensor([1]))
    )
    fed = prediction.noise.draw(0).gumbel(9, 0, tiny.SIZE).argmax(-1)
    scored = prediction.noise.draw(1).gumbel(9, 0, tiny.SIZE).argmax(-1)
    assert not torch.equal(fed, scored)
    logp_BUV = model.decode(model.encode(source), fed, prediction.mask_BT).log_softmax(-1)
    wanted = -logp_BUV[:, :-1].gather(-1, scored[..., None]).sum() - logp_BUV[0, -1, model.vocabulary.eos_id]
    assert AutoregressiveEnergy(model, "SG", "SG")(source, prediction).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_the_frozen_teacher_gets_no_gradient_and_no_dropout() -> None:
    model = tiny.recurrent(dropout=0.5).train()
    energy = AutoregressiveEnergy(model)
    assert not energy.teacher.training
    student = tiny.masked().train()
    source = tiny.source_of(SOURCES, model.vocabulary)
    mask_BT = predicted()[1]

    def forward():
        logits_BTV = student.predict(student.encode(source), student.unseen(mask_BT), mask_BT)
        return energy(source, Prediction(logits_BTV, mask_BT))

    energy_B = forward()
    energy_B.sum().backward()
    assert all(weight.grad is None and not weight.requires_grad for weight in model.parameters())
    assert student.embedding.weight.grad.abs().sum() > 0
    assert torch.equal(forward(), energy_B)


def test_operators_and_vocabularies_that_do_not_fit_are_refused() -> None:
    model = tiny.recurrent()
    with pytest.raises(ConfigurationError, match="XS"):
        AutoregressiveEnergy(model, "XS", "ST")
    with pytest.raises(ConfigurationError, match="TS"):
        AutoregressiveEnergy(model, "SX", "TS")
    source = tiny.source_of([[6]], model.vocabulary)
    prediction = Prediction(torch.zeros(1, 1, 17), torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ConfigurationError, match="17 tokens and the teacher's vocabulary has 16"):
        AutoregressiveEnergy(model)(source, prediction)


# --------------------------------------------------------------------------------------- a world that can be enumerated

WORLD = 3  # words
LONGEST = 3


class Few(tiny.Numbers):
    """Three words, and nothing else that a translation may hold."""

    def __init__(self) -> None:
        super().__init__(5 + WORLD)
        self.never_ids = (0, 1, 2, 4)


@pytest.mark.parametrize("family", ["recurrent", "scratch"])
def test_the_least_energy_is_what_an_exhaustive_search_finds(family: str) -> None:
    model = {"recurrent": tiny.recurrent, "scratch": tiny.scratch}[family](Few())
    every = [words for length in range(1, LONGEST + 1) for words in product(range(5, 5 + WORLD), repeat=length)]
    assert len(every) == 3 + 9 + 27
    ids_RT, mask_RT = tiny.padded(every, model.vocabulary.pad_id)
    discrete = AutoregressiveEnergy(model, "SX", "SX")
    for sentence in ([5, 6], [7], [6, 6, 7, 5]):
        source = tiny.source_of([sentence], model.vocabulary)
        rows = source.select(torch.zeros(len(every), dtype=torch.long))
        energy_R = discrete.discrete(rows, ids_RT, mask_RT)
        assert torch.allclose(discrete(rows, Prediction.of_ids(ids_RT, mask_RT, 8)), energy_R, rtol=1e-4)
        (found,) = autoregressive.decode(
            model, source, beam=len(every) + 1, n_best=len(every) + 1, max_length=LONGEST, length_penalty=0.0
        )
        found = [hypothesis for hypothesis in found if hypothesis.ids]  # all but the empty translation
        best = int(energy_R.argmin())
        assert found[0].ids == every[best]
        assert found[0].total == pytest.approx(-energy_R[best].item(), rel=1e-4)
        assert [hypothesis.ids for hypothesis in found] == [every[i] for i in energy_R.argsort().tolist()]


@pytest.mark.parametrize("family", ["recurrent", "scratch"])
def test_following_the_gradient_finds_the_least_energy(family: str) -> None:
    model = {"recurrent": tiny.recurrent, "scratch": tiny.scratch}[family](Few())
    every = list(product(range(5, 5 + WORLD), repeat=LONGEST))
    ids_RT, mask_RT = tiny.padded(every, model.vocabulary.pad_id)
    source = tiny.source_of([[5, 6]], model.vocabulary)
    rows = source.select(torch.zeros(len(every), dtype=torch.long))
    energy = AutoregressiveEnergy(model, "SX", "SX")
    energy_R = energy.discrete(rows, ids_RT, mask_RT)
    # From near each of the 27 corners, the best one among them; between corners the relaxed energy may be lower still.
    logits = Prediction.of_ids(ids_RT, mask_RT, 8).logits_BTV.clamp(min=-3.0)
    logits[..., [0, 1, 2, 3, 4]] = float("-inf")
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        energy(rows, Prediction(logits, mask_RT)).sum().backward()
        optimizer.step()
    reached_R = energy.discrete(rows, logits.argmax(-1), mask_RT)
    assert reached_R.min().item() == pytest.approx(energy_R.min().item(), rel=1e-4)
    assert reached_R.mean() < energy_R.mean() - energy_R.std()
    assert energy(rows, Prediction(logits, mask_RT)).min() < energy_R.min() + 0.1
