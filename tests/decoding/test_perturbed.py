"""Perturbed decoding: α = 0 changes nothing, a step goes up and is as long as asked for, and nothing else moves."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from energymt.alpha_curve import AlphaTranslator
from energymt.decoding import autoregressive, mask_predict, sampling
from energymt.decoding.perturbed import Perturbation, merit_gradient, perturbed, side_by_side
from energymt.decoding.translate import DecodingOptions, Translator
from energymt.energies import AutoregressiveEnergy
from energymt.errors import ConfigurationError
from energymt.models.proxy import QualityProxy
from energymt.models.translator import AutoregressiveModel, Memory
from energymt.records import Hypothesis, Source
from tests import proxies, tiny

FAMILIES = (*tiny.TEACHERS, *tiny.STUDENTS)
NORMS = ("relative", "sequence", "unit")
every_family = pytest.mark.parametrize("family", FAMILIES)
every_norm = pytest.mark.parametrize("norm", NORMS)
FAR = 1.5  # an α that changes translations


def model_of(family: str) -> Any:
    return tiny.student(family) if family in tiny.STUDENTS else tiny.teacher(family)


def source_for(model: Any, count: int = 8, width: int = 0) -> Source:
    return tiny.source_of(tiny.sentences(count), model.vocabulary, width)


@torch.no_grad()
def memory_of(model: Any, **changes: int) -> Memory:
    return model.encode(source_for(model, **changes))


def proxy_of(model: Any, **changes: Any) -> QualityProxy:
    return proxies.proxy(memory_of(model, count=1).states_BSD.shape[-1], **changes)


def decode(model: Any, source: Source, beam: int = 1) -> list[list[Hypothesis]]:
    if isinstance(model, AutoregressiveModel):
        return autoregressive.decode(model, source, beam=beam, n_best=beam)
    return mask_predict.decode(model, source, length_beam=beam, iterations=3, n_best=beam)


def tokens(found: list[list[Hypothesis]]) -> list[list[tuple[int, ...]]]:
    return [[hypothesis.ids for hypothesis in each] for each in found]


def real(memory: Memory, values_BS: Tensor) -> Tensor:
    return values_BS[memory.mask_BS]


# ---------------------------------------------------------------------------------------------------- what changes what


@pytest.mark.parametrize("beam", [1, 3])
@every_family
def test_without_a_step_nothing_changes_and_with_one_something_does(family: str, beam: int) -> None:
    model = model_of(family)
    proxy, source = proxy_of(model), source_for(model)
    plain = decode(model, source, beam)
    assert decode(perturbed(model, Perturbation(proxy, (0.0,))), source, beam) == plain  # ids, scores, totals, extras
    assert decode(perturbed(model, Perturbation(proxy, (0.0,), "unit", 3, 1.0)), source, beam) == plain
    found = decode(perturbed(model, Perturbation(proxy, (FAR,))), source, beam)
    assert all(new[0].total != old[0].total for new, old in zip(found, plain, strict=True))
    assert decode(model, source, beam) == plain, "the model itself is as it was"


@every_family
def test_padding_and_the_other_sentences_change_nothing(family: str) -> None:
    model = model_of(family)
    # Relative steps grow where a gradient is small, and roundings of the encoder with them.
    change = Perturbation(proxy_of(model), (0.5, 0.3), "sequence")
    small, wide = (change(memory_of(model, width=width)) for width in (0, 11))
    length = small.mask_BS.shape[1]
    assert torch.allclose(real(small, wide.states_BSD[:, :length]), real(small, small.states_BSD), atol=1e-6)
    found = tokens(decode(perturbed(model, change), source_for(model)))
    assert tokens(decode(perturbed(model, change), source_for(model, width=11))) == found
    for row, words in enumerate(tiny.sentences(8)):
        source = tiny.source_of([words], model.vocabulary)
        with torch.no_grad():
            alone = change(model.encode(source))
        assert torch.allclose(alone.states_BSD[0], small.states_BSD[row, : len(words) + 1], atol=1e-6)
        assert tokens(decode(perturbed(model, change), source)) == found[row : row + 1]


@every_norm
def test_padding_stays_whatever_it_holds(norm: Any) -> None:
    model = model_of("scratch")
    memory, change = memory_of(model), Perturbation(proxy_of(model), (0.7,), norm)
    wanted = change(memory)
    padding_BS1 = ~memory.mask_BS.unsqueeze(-1)
    assert torch.equal(wanted.states_BSD.masked_fill(~padding_BS1, 0), memory.states_BSD.masked_fill(~padding_BS1, 0))
    for content in (float("nan"), float("inf"), 1e30):
        dirty = Memory(memory.states_BSD.masked_fill(padding_BS1, content), memory.mask_BS)
        found = change(dirty)
        assert torch.equal(real(memory, found.states_BSD), real(memory, wanted.states_BSD))


@every_family
def test_nothing_frozen_receives_a_gradient(family: str) -> None:
    model = model_of(family).requires_grad_(True)
    proxy = proxy_of(model).requires_grad_(True)
    change = Perturbation(proxy, (0.5, 1.0), steps=2, trust=0.1)
    decode(perturbed(model, change), source_for(model), beam=2)
    memory = change(memory_of(model))
    assert not memory.states_BSD.requires_grad
    assert all(weight.grad is None for part in (model, proxy) for weight in part.parameters())


def test_lengths_are_those_of_the_states_as_they_were() -> None:
    model = model_of("masked")
    memory = memory_of(model)
    changed = Perturbation(proxy_of(model), (FAR,))(memory)
    assert changed.length_logp_BL is memory.length_logp_BL and changed.mask_BS is memory.mask_BS
    wide = Perturbation(proxy_of(model), (0.0, FAR)).each(memory)
    assert torch.equal(wide.length_logp_BL, memory.length_logp_BL.repeat_interleave(2, 0))


# ------------------------------------------------------------------------------------------------------------- the step


@every_norm
@pytest.mark.parametrize("higher", [True, False])
@every_family
def test_a_small_step_goes_up(family: str, higher: bool, norm: Any) -> None:
    model = model_of(family)
    memory = memory_of(model)
    for seed in range(4):
        proxy = proxy_of(model, seed=seed, higher=higher)
        proxy.shift.fill_(0.0)  # leaves more digits
        merits = [
            proxy.merit(Perturbation(proxy, (alpha,), norm)(memory).states_BSD, memory.mask_BS)
            for alpha in (-1e-2, 0.0, 1e-3, 1e-2)
        ]
        assert all(bool((low < high).all()) for low, high in pairwise(merits)), merits


def test_the_gradient_is_that_of_the_merit_where_gradients_are_off() -> None:
    model = model_of("recurrent")
    memory, proxy = memory_of(model), proxy_of(model, higher=False)
    states_BSD = memory.states_BSD.clone().requires_grad_(True)
    wanted = torch.autograd.grad(-2.0 * proxy(states_BSD, memory.mask_BS).sum(), states_BSD)[0]
    assert torch.allclose(merit_gradient(proxy, memory), wanted, atol=1e-6)
    with torch.inference_mode():
        inside = merit_gradient(proxy, model.encode(source_for(model)))
    assert torch.allclose(inside, wanted, atol=1e-6) and wanted.abs().max() > 1e-3


def lengths(memory: Memory, norm: Any, alpha: float, proxy: QualityProxy) -> Tensor:
    step_BSD = Perturbation(proxy, (alpha,), norm)(memory).states_BSD - memory.states_BSD
    return step_BSD.norm(dim=2)


@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_a_step_is_as_long_as_it_was_asked_for(scale: float) -> None:
    """Whatever the length of the gradient, and if its square is 0 in float32."""
    model = model_of("scratch")
    memory, proxy = memory_of(model), proxy_of(model)
    proxy.scale.fill_(scale)
    norms_BS = memory.states_BSD.norm(dim=2)
    relative, unit = lengths(memory, "relative", 0.5, proxy), lengths(memory, "unit", 0.5, proxy)
    assert torch.allclose(real(memory, relative), 0.5 * real(memory, norms_BS), rtol=1e-4)
    assert torch.allclose(real(memory, unit), torch.full_like(real(memory, unit), 0.5), rtol=1e-4)
    whole_B = lengths(memory, "sequence", 0.5, proxy).norm(dim=1)
    assert torch.allclose(whole_B, 0.5 * (norms_BS * memory.mask_BS).norm(dim=1), rtol=1e-4)


def test_the_direction_of_a_sequence_is_that_of_its_gradient() -> None:
    model = model_of("scratch")
    memory, proxy = memory_of(model), proxy_of(model)
    step_BSD = Perturbation(proxy, (0.5,), "sequence").direction(memory)
    gradient_BSD = merit_gradient(proxy, memory)
    ratio_B = step_BSD.flatten(1).norm(dim=1) / gradient_BSD.flatten(1).norm(dim=1)
    assert torch.allclose(step_BSD, ratio_B[:, None, None] * gradient_BSD, atol=1e-6)


@every_norm
def test_several_steps_are_steps_with_a_new_gradient_each(norm: Any) -> None:
    model = model_of("scratch")
    memory, proxy = memory_of(model), proxy_of(model)
    wanted = memory
    for _ in range(3):
        wanted = Perturbation(proxy, (0.3,), norm)(wanted)
    found = Perturbation(proxy, (0.9,), norm, steps=3)(memory)
    assert torch.allclose(found.states_BSD, wanted.states_BSD, atol=1e-6)
    assert not torch.allclose(found.states_BSD, Perturbation(proxy, (0.9,), norm)(memory).states_BSD, atol=1e-2)


def test_half_precision_stays_half() -> None:
    model = model_of("scratch")
    memory, change = memory_of(model), Perturbation(proxy_of(model), (0.5, 0.2))
    half = Memory(memory.states_BSD.bfloat16(), memory.mask_BS)
    for found in (change(half), change.each(half)):
        assert found.states_BSD.dtype == torch.bfloat16
    assert torch.allclose(change(half).states_BSD.float(), change(memory).states_BSD, atol=0.05, rtol=0.05)


# ------------------------------------------------------------------------------------------------ choices of a sentence


@pytest.mark.parametrize("steps", [1, 2])
def test_of_several_each_sentence_takes_what_promises_most(steps: int) -> None:
    model = model_of("scratch")
    memory, proxy = memory_of(model), proxy_of(model, heads=1, seed=3)
    alphas = (4.0, -0.5, 0.0, 1.0)
    ends = [Perturbation(proxy, (alpha,), steps=steps)(memory) for alpha in alphas]
    merits_AB = torch.stack([proxy.merit(end.states_BSD, end.mask_BS) for end in ends])
    best_B = merits_AB.argmax(0).tolist()
    assert len(set(best_B)) > 1, "the choice matters"
    found = Perturbation(proxy, alphas, steps=steps)(memory)
    for row, best in enumerate(best_B):
        assert torch.equal(found.states_BSD[row], ends[best].states_BSD[row])


def test_trust_leaves_sentences_alone_whose_gain_is_small() -> None:
    model = model_of("scratch")
    memory, proxy = memory_of(model), proxy_of(model)
    after = Perturbation(proxy, (0.3,))(memory)
    gain_B = proxy.merit(after.states_BSD, after.mask_BS) - proxy.merit(memory.states_BSD, memory.mask_BS)
    low, high = gain_B.sort().values[3:5].tolist()
    trust = (low + high) / 2 / proxy.error.item()
    found = Perturbation(proxy, (0.3,), trust=trust)(memory)
    for row, gain in enumerate(gain_B.tolist()):
        wanted = after if gain > high - 1e-6 else memory
        assert torch.equal(found.states_BSD[row], wanted.states_BSD[row])
    assert torch.equal(Perturbation(proxy, (0.3,), trust=1e6)(memory).states_BSD, memory.states_BSD)
    proxy.error.fill_(float("inf"))  # never calibrated
    assert torch.equal(Perturbation(proxy, (0.3,), trust=0.1)(memory).states_BSD, memory.states_BSD)


# --------------------------------------------------------------------------------------------------------- side by side

ALPHAS = (0.0, 0.4, FAR)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("beam", [1, 4])
@every_family
def test_all_alphas_at_once_are_those_one_by_one(family: str, beam: int, steps: int) -> None:
    model = model_of(family)
    proxy = proxy_of(model)
    options = DecodingOptions(beam=beam, length_beam=beam, iterations=3)
    texts = [" ".join(map(str, words)) for words in tiny.sentences(6, seed=2)]
    texts.insert(2, "  ")
    together = AlphaTranslator(model, Perturbation(proxy, ALPHAS, steps=steps), options).translate(texts)
    for number, alpha in enumerate(ALPHAS):
        change = Perturbation(proxy, (alpha,), steps=steps)
        alone = Translator(perturbed(model, change), options).translate(texts)
        for row, (found, [wanted]) in enumerate(zip(together, alone, strict=True)):
            if row == 2:
                assert [text for text, _ in found] == [wanted[0]] == [""]
                continue
            assert len(found) == len(ALPHAS)
            assert found[number][0] == wanted[0]
            assert found[number][1].total == pytest.approx(wanted[1].total, abs=1e-4)


def test_a_row_has_the_alpha_of_its_place() -> None:
    model = model_of("scratch")
    change, source = Perturbation(proxy_of(model), ALPHAS), source_for(model, count=3)
    rows_R = torch.arange(3).repeat_interleave(3)
    with torch.no_grad():
        memory, wide = model.encode(source), side_by_side(model, change).encode(source.select(rows_R))
    for number, alpha in enumerate(ALPHAS):
        wanted = Perturbation(change.proxy, (alpha,))(memory)
        assert torch.allclose(wide.states_BSD[number::3], wanted.states_BSD, atol=1e-6)
        assert torch.equal(wide.mask_BS[number::3], memory.mask_BS)


@pytest.mark.parametrize("family", tiny.STUDENTS)
def test_lengths_may_be_given_beside_several_alphas(family: str) -> None:
    model = model_of(family)
    options = DecodingOptions(length_beam=1, iterations=2)
    texts = [" ".join(map(str, words)) for words in tiny.sentences(4)]
    found = AlphaTranslator(model, Perturbation(proxy_of(model), ALPHAS), options).translate(texts, [3, 5, 2, 4])
    assert [[len(item.ids) for _, item in each] for each in found] == [[n] * 3 for n in (3, 5, 2, 4)]


# ---------------------------------------------------------------------------------------------------- what else decodes


@pytest.mark.parametrize("family", tiny.TEACHERS)
def test_samples_are_drawn_from_the_perturbed_translator(family: str) -> None:
    model = model_of(family)
    proxy, source = proxy_of(model), source_for(model)
    plain = sampling.candidates(model, source, 3)
    assert sampling.candidates(perturbed(model, Perturbation(proxy, (0.0,))), source, 3) == plain
    nudged = perturbed(model, Perturbation(proxy, (FAR,)))
    drawn = sampling.candidates(nudged, source, 3)
    assert tokens(drawn) != tokens(plain)
    with torch.no_grad():  # the score of a sample is the perturbed translator's own
        ids_BT, mask_BT = tiny.padded([each[0].ids for each in drawn], model.vocabulary.pad_id)
        logits_BUV = model.decode(Perturbation(proxy, (FAR,))(model.encode(source)), ids_BT, mask_BT)
    for row, [best, *_] in enumerate(drawn):
        logp_UV = logits_BUV[row].log_softmax(-1)
        ends = [*best.ids, model.vocabulary.eos_id]
        assert best.total == pytest.approx(sum(logp_UV[u, token].item() for u, token in enumerate(ends)), abs=1e-4)


@pytest.mark.parametrize("family", ["scratch", "masked"])
def test_candidates_of_a_perturbed_translator_are_reranked_by_the_energy_of_the_plain_source(family: str) -> None:
    model, teacher = model_of(family), tiny.recurrent()
    nudged = perturbed(model, Perturbation(proxy_of(model), (FAR,)))
    texts = [" ".join(map(str, words)) for words in tiny.sentences(6)]
    options = {"beam": 3, "length_beam": 3, "iterations": 2}
    energy = AutoregressiveEnergy(teacher)
    listed = Translator(nudged, DecodingOptions(**options, n_best=3)).translate(texts)
    ranked = Translator(nudged, DecodingOptions(**options), energy=energy).translate(texts)
    for text, candidates, [(_, best)] in zip(texts, listed, ranked, strict=True):
        source = tiny.source_of([[int(word) for word in text.split()]], model.vocabulary)
        found = {}
        for _, item in candidates:
            ids_1T = torch.tensor([item.ids], dtype=torch.long).reshape(1, -1)
            found[item.ids] = energy.discrete(source, ids_1T, torch.ones_like(ids_1T, dtype=torch.bool)).item()
        assert best.ids == min(found, key=lambda ids: found[ids])
        assert best.extra["energy"] == pytest.approx(found[best.ids], abs=1e-4)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"alphas": (float("nan"),)}, "finite number, and not nan"),
        ({"alphas": (0.1, float("inf"))}, "finite number, and not 0.1, inf"),
        ({"alphas": ()}, "and not nothing"),
        ({"steps": 0}, "one step at least, and not 0"),
        ({"trust": -1.0}, "at least 0, and not -1"),
        ({"trust": float("nan")}, "at least 0, and not nan"),
        ({"trust": float("inf")}, "at least 0, and not inf"),
    ],
)
def test_impossible_numbers_are_refused(changes: dict[str, Any], part: str) -> None:
    with pytest.raises(ConfigurationError, match=part):
        Perturbation(**{"proxy": proxies.proxy(4), "alphas": (0.5,), **changes})


def test_a_proxy_that_knows_nothing_is_refused() -> None:
    proxy = proxies.proxy(4)
    proxy.scale.fill_(0.0)
    with pytest.raises(ConfigurationError, match=r"knows nothing of its metric.*train it longer"):
        Perturbation(proxy, (0.5,))
