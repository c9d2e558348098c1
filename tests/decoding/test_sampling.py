"""Samples follow the translator's distribution, in whatever batch they are drawn; their log-probabilities are its."""

import math
from collections import Counter
from itertools import product

import pytest
import torch
from torch import Tensor

from energymt import operators, teacher_forcing
from energymt.decoding.sampling import SAMPLE_STREAM, Samples, candidates, possible, sample, sample_log_probs
from energymt.errors import ConfigurationError, DivergenceError
from energymt.models import AutoregressiveModel
from energymt.noise import Noise
from energymt.records import Projection, Source
from energymt.teacher_forcing import teacher_forced
from tests import tiny as families

Outcome = tuple[tuple[int, ...], bool]
"""The tokens, and whether the end token was drawn."""

LONGEST = 2


def outcomes(samples: Samples) -> list[Outcome]:
    rows = zip(samples.ids_RT, samples.mask_RT, samples.ended_R.tolist(), strict=True)
    return [(tuple(ids[mask].tolist()), ended) for ids, mask, ended in rows]


def noise_of(rows: list[int], seed: int = 1, step: int = 2) -> Noise:
    return Noise(seed, step, torch.tensor(rows), SAMPLE_STREAM)


def next_token(
    model: AutoregressiveModel, source: Source, prefix: tuple[int, ...], temperature: float, top_p: float
) -> Tensor:
    """p(y_t | y_<t, x) for each of the V tokens, by the definition."""
    ids_1T = torch.tensor([prefix], dtype=torch.long)
    logits_V = model.decode(model.encode(source), ids_1T, torch.ones_like(ids_1T, dtype=torch.bool))[0, -1].double()
    logits_V[list(model.vocabulary.never_ids)] = -math.inf
    probs = (logits_V / temperature).softmax(0)
    nucleus, mass = torch.zeros_like(probs), 0.0
    for token in probs.argsort(descending=True).tolist():
        if mass >= top_p:
            break
        nucleus[token], mass = probs[token], mass + float(probs[token])
    return nucleus / nucleus.sum()


@torch.no_grad()
def distribution(
    model: AutoregressiveModel, source: Source, temperature: float = 1.0, top_p: float = 1.0
) -> dict[Outcome, float]:
    """The probability of every outcome of at most LONGEST tokens."""
    words = model.vocabulary
    choices = [token for token in range(words.size) if token not in (*words.never_ids, words.eos_id)]
    found: dict[Outcome, float] = {}
    for length in range(LONGEST + 1):
        for ids in product(choices, repeat=length):
            parts = [next_token(model, source, ids[:place], temperature, top_p) for place in range(length)]
            value = math.prod(float(probs[token]) for probs, token in zip(parts, ids, strict=True))
            ended = length < LONGEST
            if ended:
                value *= float(next_token(model, source, ids, temperature, top_p)[words.eos_id])
            found[ids, ended] = value
    assert sum(found.values()) == pytest.approx(1.0)
    return found


# ----------------------------------------------------------------------------------------------------- what is drawn


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.6, 1.0), (1.0, 0.7), (1.7, 0.8)])
def test_samples_follow_the_distribution(temperature: float, top_p: float, tiny, batch) -> None:
    """Noise of seed 1: every frequency within 4 standard errors, and χ² within 4 of its own standard deviations."""
    sentences, count = [[5, 6], [7]], 4000
    drawn = sample(
        tiny, batch(sentences), noise_of([3, 8]), count, max_length=LONGEST, temperature=temperature, top_p=top_p
    )
    found = outcomes(drawn)
    assert drawn.rows_R.tolist() == [0] * count + [1] * count
    for place, words in enumerate(sentences):
        wanted = distribution(tiny, batch([words]), temperature, top_p)
        seen = Counter(found[place * count : (place + 1) * count])
        assert all(wanted[outcome] > 0 for outcome in seen)
        assert len(seen) > 4
        for outcome, probability in wanted.items():
            error = math.sqrt(count * probability * (1 - probability))
            assert abs(seen[outcome] - count * probability) <= 4 * error + 1, outcome
        frequent = {outcome: count * p for outcome, p in wanted.items() if count * p > 5}
        chi_square = sum((seen[outcome] - expected) ** 2 / expected for outcome, expected in frequent.items())
        assert chi_square < len(frequent) + 4 * math.sqrt(2 * len(frequent))


def test_the_samples_of_a_batch_do_not_follow_each_other(tiny, batch) -> None:
    """Pairs (k, k + 1) of first tokens, and pairs of sentences, are independent within 4 standard errors."""
    count = 4000
    drawn = sample(tiny, batch([[5, 6], [5, 6]]), noise_of([0, 1]), count, max_length=1).ids_RT[:, 0].view(2, count)
    for left, right in ((drawn[0, :-1], drawn[0, 1:]), (drawn[0], drawn[1])):
        for token in (5, 6, 7):
            one, other = (left == token).double().mean(), (right == token).double().mean()
            both = ((left == token) & (right == token)).double().mean()
            error = math.sqrt(float(one * other * (1 - one * other)) / count)
            assert abs(float(both - one * other)) <= 4 * error


def test_a_sample_depends_on_its_name_alone(model, batch, sentences) -> None:
    lines, rows, count = sentences(6), [4, 0, 9, 2, 7, 5], 3
    whole = outcomes(sample(model, batch(lines), noise_of(rows), count, max_length=12))
    assert len(set(whole)) > len(rows)
    halves = [
        outcomes(sample(model, batch(lines[part]), noise_of(rows[part]), count, max_length=12))
        for part in (slice(0, 2), slice(2, 6))
    ]
    assert halves[0] + halves[1] == whole
    assert outcomes(sample(model, batch(lines, width=17), noise_of(rows), count, max_length=12)) == whole
    order = [3, 5, 0, 1, 4, 2]
    moved = sample(model, batch([lines[i] for i in order]), noise_of([rows[i] for i in order]), count, max_length=12)
    assert outcomes(moved) == [whole[i * count + k] for i in order for k in range(count)]


@pytest.mark.parametrize("change", ["seed", "step", "stream", "sentence", "k"])
def test_every_part_of_the_name_counts(change: str, model, batch, sentences) -> None:
    source, rows = batch(sentences(4)), [0, 1, 2, 3]
    first = sample(model, source, noise_of(rows), 2, max_length=12)
    if change == "k":
        assert outcomes(first)[0::2] != outcomes(first)[1::2]
        return
    others = {
        "seed": noise_of(rows, seed=2),
        "step": noise_of(rows, step=3),
        "stream": noise_of(rows).draw(1),
        "sentence": noise_of([5, 6, 7, 8]),
    }
    assert outcomes(sample(model, source, others[change], 2, max_length=12)) != outcomes(first)


def test_a_model_in_training_samples_without_dropout_and_goes_on_training() -> None:
    model = families.scratch(dropout=0.5)
    source = families.source_of(families.sentences(4), model.vocabulary)
    wanted = outcomes(sample(model, source, noise_of([0, 1, 2, 3]), 3))
    model.train()
    assert outcomes(sample(model, source, noise_of([0, 1, 2, 3]), 3)) == wanted
    assert model.training and all(module.training for module in model.modules())


@pytest.mark.parametrize("options", [{}, {"top_p": 0.7, "temperature": 1.5}])
def test_rows_that_are_drawn_apart_are_the_same(
    options: dict[str, float], model, batch, sentences, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, noise = batch(sentences(4)), noise_of([0, 1, 2, 3])
    together = sample(model, source, noise, 3, max_length=12, **options)
    monkeypatch.setitem(operators.BLOCK, "cpu", 2 * model.vocabulary.size)
    apart = sample(model, source, noise, 3, max_length=12, **options)
    assert torch.equal(apart.ids_RT, together.ids_RT) and torch.equal(apart.ended_R, together.ended_R)


# ------------------------------------------------------------------------------------------------------------- lengths


def test_what_never_ends_has_the_greatest_length(recurrent, batch) -> None:
    with torch.no_grad():
        recurrent.bias[recurrent.vocabulary.eos_id] = -1e4
    source = batch([[5], [6, 7, 8]])
    free = sample(recurrent, source, noise_of([0, 1]), 2)
    assert free.mask_RT.sum(1).tolist() == [12, 12, 16, 16]  # twice the source and ten
    assert not free.ended_R.any()
    assert (free.ids_RT[~free.mask_RT] == recurrent.vocabulary.pad_id).all()
    bound = sample(recurrent, source, noise_of([0, 1]), 2, max_length=3)
    assert bound.mask_RT.sum(1).tolist() == [3] * 4
    assert torch.equal(bound.ids_RT, free.ids_RT[:, :3])


def test_no_sample_is_longer_than_the_model_can_read() -> None:
    model = families.scratch(longest=8)
    source = families.source_of(families.sentences(3, longest=4), model.vocabulary)
    drawn = sample(model, source, noise_of([0, 1, 2]), 20, max_length=50)
    lengths_R = drawn.mask_RT.sum(1)
    assert lengths_R.max() == model.longest == 7, "one of 8 positions is the start token's"
    assert drawn.ended_R[lengths_R < 7].all() and not drawn.ended_R[lengths_R == 7].any()


def test_what_ends_at_once_is_empty(recurrent, batch) -> None:
    with torch.no_grad():
        recurrent.bias[recurrent.vocabulary.eos_id] = 1e4
    drawn = sample(recurrent, batch([[5], [6, 7]]), noise_of([0, 1]), 2)
    assert drawn.ids_RT.tolist() == [[recurrent.vocabulary.pad_id]] * 4
    assert not drawn.mask_RT.any() and drawn.ended_R.all()


def test_special_tokens_are_never_drawn(recurrent, batch, sentences) -> None:
    never = list(recurrent.vocabulary.never_ids)
    with torch.no_grad():
        recurrent.bias[never] = 1e4
    drawn = sample(recurrent, batch(sentences(5)), noise_of([0, 1, 2, 3, 4]), 20, max_length=8)
    forbidden = torch.tensor([*never, recurrent.vocabulary.eos_id])
    assert drawn.mask_RT.any() and not torch.isin(drawn.ids_RT[drawn.mask_RT], forbidden).any()


@pytest.mark.parametrize("options", [{"top_p": 1e-6}, {"temperature": 1e-4}])
def test_a_narrow_nucleus_or_a_cold_one_is_greedy(options: dict[str, float], model, batch, sentences) -> None:
    lines = sentences(3)
    found = outcomes(sample(model, batch(lines), noise_of([0, 1, 2]), 2, max_length=4, **options))
    for place, words in enumerate(lines):
        ids: tuple[int, ...] = ()
        ended = False
        while len(ids) < 4 and not ended:
            with torch.no_grad():
                best = int(next_token(model, batch([words]), ids, 1.0, 1.0).argmax())
            ended = best == model.vocabulary.eos_id
            ids = ids if ended else (*ids, best)
        assert found[2 * place : 2 * place + 2] == [(ids, ended)] * 2


# --------------------------------------------------------------------------------------------------- log-probabilities


def test_log_probabilities_are_those_of_the_distribution(tiny, batch) -> None:
    sentences, count = [[5, 6], [7]], 200
    source = batch(sentences)
    drawn = sample(tiny, source, noise_of([3, 8]), count, max_length=LONGEST)
    logits_RUV = tiny.decode(tiny.encode(source).select(drawn.rows_R), drawn.ids_RT, drawn.mask_RT)
    logp_RU, mask_RU = sample_log_probs(tiny, logits_RUV, drawn)
    found = outcomes(drawn)
    assert {ended for _, ended in found} == {True, False}
    wanted = [distribution(tiny, batch([words])) for words in sentences]
    exact = [math.log(wanted[row // count][outcome]) for row, outcome in enumerate(found)]
    assert logp_RU.sum(1).tolist() == pytest.approx(exact, abs=1e-5)
    assert mask_RU.sum(1).tolist() == [len(ids) + ended for ids, ended in found]
    assert (logp_RU[~mask_RU] == 0).all() and (logp_RU[mask_RU] < 0).all()
    logp_RU.sum().backward()
    gradients = [parameter.grad for parameter in tiny.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)
    assert max(float(gradient.abs().max()) for gradient in gradients) > 0


def test_log_probabilities_are_the_same_without_logits(
    model, batch, sentences, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = batch(sentences(3))
    drawn = sample(model, source, noise_of([0, 1, 2]), 2, max_length=5)
    memory = model.encode(source).select(drawn.rows_R)
    parts = (model, memory, drawn.ids_RT, drawn.mask_RT)
    dense_RU, _ = sample_log_probs(model, teacher_forced(*parts), drawn)
    ranked = candidates(model, source, 3, max_length=5)
    monkeypatch.setattr(teacher_forcing, "LARGE", 0)
    projection = teacher_forced(*parts)
    assert isinstance(projection, Projection)
    found_RU, _ = sample_log_probs(model, projection, drawn)
    torch.testing.assert_close(found_RU, dense_RU, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(candidates(model, source, 3, max_length=5), ranked, strict=True):
        assert [hypothesis.ids for hypothesis in ours] == [hypothesis.ids for hypothesis in theirs]
        assert [hypothesis.total for hypothesis in ours] == pytest.approx([other.total for other in theirs], rel=1e-5)


def test_special_tokens_have_no_share_of_the_probability(recurrent, batch, sentences) -> None:
    source = batch(sentences(3))
    drawn = sample(recurrent, source, noise_of([0, 1, 2]), 4, max_length=6)

    def log_probs() -> Tensor:
        logits_RUV = recurrent.decode(recurrent.encode(source).select(drawn.rows_R), drawn.ids_RT, drawn.mask_RT)
        return sample_log_probs(recurrent, logits_RUV, drawn)[0].detach()

    before = log_probs()
    with torch.no_grad():
        recurrent.bias[list(recurrent.vocabulary.never_ids)] += 3.0
    assert torch.equal(log_probs(), before)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "count, options",
    [
        (0, {}),
        (1, {"temperature": 0.0}),
        (1, {"temperature": -1.0}),
        (1, {"top_p": 0.0}),
        (1, {"top_p": 1.5}),
        (1, {"max_length": 0}),
    ],
)
def test_impossible_numbers_are_refused(count: int, options: dict[str, float], tiny, batch) -> None:
    with pytest.raises(ConfigurationError, match="Sampling takes at least one sample"):
        sample(tiny, batch([[5]]), noise_of([0]), count, **options)


def test_weights_that_are_not_numbers_are_named(recurrent, batch) -> None:
    with torch.no_grad():
        recurrent.bias[6] = math.nan
    with pytest.raises(DivergenceError, match="weights hold NaN"):
        sample(recurrent, batch([[5]]), noise_of([0]), 2)


def test_special_and_end_tokens_are_forbidden_and_nothing_else_changes(recurrent) -> None:
    model, words = recurrent, recurrent.vocabulary
    logits_BTV = torch.randn(2, 3, words.size, requires_grad=True)
    found = possible(model, logits_BTV, end=False)
    never = sorted({*words.never_ids, words.eos_id})
    rest = [token for token in range(words.size) if token not in never]
    assert (found[..., never] == -math.inf).all()
    assert torch.equal(found[..., rest], logits_BTV[..., rest])
    found[..., rest].sum().backward()
    assert (logits_BTV.grad[..., rest] == 1).all() and not logits_BTV.grad[..., never].any()
    bias_V = torch.zeros(words.size)
    assert possible(model, bias_V, end=False).isinf().nonzero().flatten().tolist() == never
    assert not bias_V.any()
    assert possible(model, bias_V).isinf().nonzero().flatten().tolist() == [n for n in never if n != words.eos_id]


@pytest.mark.parametrize("biased", [True, False])
def test_of_a_projection_the_bias_forbids(biased: bool, recurrent) -> None:
    size = recurrent.vocabulary.size
    bias_V = torch.randn(size) if biased else None
    projection = Projection(torch.randn(2, 3, 4), torch.randn(size, 4), bias_V)
    found = possible(recurrent, projection, end=False).logits()
    torch.testing.assert_close(found, possible(recurrent, projection.logits(), end=False))
    assert projection.bias_V is bias_V
