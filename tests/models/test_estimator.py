"""A quality estimator on soft tokens: mixtures that are single rows score as text, and the gradient is exact."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from energymt.errors import ConfigurationError, DataError
from energymt.models.layer_mix import LayerMix, sparsemax
from energymt.models.scoring import score_lines
from energymt.records import SoftTarget, Source
from tests import estimators

ORDERS = [(kind, "comet") for kind in estimators.ENERGIES] + [("kiwi", "published")]
energies = pytest.mark.parametrize("kind, order", ORDERS)


def scored(model, sources=estimators.SOURCES, translations=estimators.TRANSLATIONS) -> torch.Tensor:
    with torch.no_grad():
        return model(estimators.source_of(model, sources), estimators.target_of(model, translations))


def wider(ids, mask, emb=None, by: int = 3):
    """The same rows in a wider batch, with rubbish in the padding."""
    rows = len(ids)
    ids = torch.cat([ids, torch.full((rows, by), 9)], 1)
    mask = torch.cat([mask, torch.zeros(rows, by, dtype=torch.bool)], 1)
    return ids, mask, None if emb is None else torch.cat([emb, emb.new_full((rows, by, emb.shape[-1]), torch.nan)], 1)


@pytest.mark.parametrize("family", estimators.FAMILIES)
@pytest.mark.parametrize("kind", estimators.ENERGIES)
def test_one_hot_in_is_text_in(kind: str, family: str) -> None:
    model = estimators.estimator(kind, family)
    wanted = score_lines(model, estimators.SOURCES, estimators.TRANSLATIONS)
    assert max(wanted) - min(wanted) > 0.05
    assert scored(model).tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("order", ["comet", "published"])
def test_a_joint_input_by_the_encoder_s_own_lookup(order: str) -> None:
    """Token ids into Hugging Face's forward pass, sentence by sentence, and the layers above it written out."""
    model = estimators.estimator("kiwi-softmax", order=order)
    words, wanted = model.vocabulary, []
    shares = model.mix.weights_N.softmax(0)
    for source, translation in zip(estimators.SOURCES, estimators.TRANSLATIONS, strict=True):
        first, second = words.encode(translation), words.encode(source)
        if order == "published":
            first, second = second, first
        ids = torch.tensor([[words.bos_id, *first, words.eos_id, words.eos_id, *second, words.eos_id]])
        states = model.encoder(input_ids=ids, output_hidden_states=True).hidden_states
        assert torch.equal(states[-1], model.encoder(input_ids=ids).last_hidden_state)
        mixed = model.mix.gamma * sum(share * state[0, 0] for share, state in zip(shares, states, strict=True))
        wanted.append(model.head(mixed).item())
    assert scored(model).tolist() == pytest.approx(wanted, abs=1e-6)


def test_the_order_matters() -> None:
    gap = scored(estimators.estimator("kiwi")) - scored(estimators.estimator("kiwi", order="published"))
    assert gap.abs().min() > 1e-3


@energies
def test_neither_padding_nor_neighbours_change_a_score(kind: str, order: str) -> None:
    model = estimators.estimator(kind, order=order)
    source, target = (
        estimators.source_of(model, estimators.SOURCES),
        estimators.target_of(model, estimators.TRANSLATIONS),
    )
    wanted = scored(model)
    with torch.no_grad():
        ids, mask, emb = wider(target.ids_BT, target.mask_BT, target.emb_BTD)
        padded = model(Source(*wider(source.ids_BS, source.mask_BS)[:2]), SoftTarget(ids, emb, mask))
        turned = torch.tensor([3, 1, 4, 0, 2])
        shuffled = model(source.select(turned), SoftTarget(None, target.emb_BTD[turned], target.mask_BT[turned]))
    torch.testing.assert_close(padded, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(shuffled, wanted[turned], rtol=0, atol=1e-6)
    alone = [scored(model, [s], [t]).item() for s, t in zip(estimators.SOURCES, estimators.TRANSLATIONS, strict=True)]
    assert alone == pytest.approx(wanted.tolist(), abs=1e-6)


@energies
def test_special_tokens_of_a_source_do_not_count(kind: str, order: str) -> None:
    model = estimators.estimator(kind, order=order)
    source, target = (
        estimators.source_of(model, estimators.SOURCES),
        estimators.target_of(model, estimators.TRANSLATIONS),
    )
    without_start = Source(source.ids_BS[:, 1:], source.mask_BS[:, 1:])
    with torch.no_grad():
        torch.testing.assert_close(model(without_start, target), model(source, target), rtol=0, atol=1e-6)


@energies
def test_the_gradient_is_exact(kind: str, order: str) -> None:
    model = estimators.estimator(kind, order=order).double()
    source = estimators.source_of(model, ["ein Buch .", "zwei Kinder"])
    mask_BT = torch.tensor([[True, True, True], [True, False, False]])
    emb_BTD = torch.randn(2, 3, estimators.WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda emb: model(source, SoftTarget(None, emb, mask_BT)), (emb_BTD,))
    (gradient_BTD,) = torch.autograd.grad(model(source, SoftTarget(None, emb_BTD, mask_BT)).sum(), (emb_BTD,))
    assert torch.equal(gradient_BTD.ne(0).any(-1), mask_BT)


@energies
def test_nothing_frozen_receives_a_gradient(kind: str, order: str) -> None:
    model = estimators.estimator(kind, order=order)
    target = estimators.target_of(model, estimators.TRANSLATIONS)
    emb_BTD = target.emb_BTD.requires_grad_()
    model(estimators.source_of(model, estimators.SOURCES), target).sum().backward()
    assert emb_BTD.grad.abs().sum() > 0
    assert not model.training
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert not model.table_VD.requires_grad


@pytest.mark.parametrize("way", ["weights", "autocast"])
@pytest.mark.parametrize("kind", [*estimators.ENERGIES, "layer"])
def test_scores_of_a_bf16_encoder_are_not_rounded_to_bf16(kind: str, way: str) -> None:
    """Near 100 two numbers in bf16 are half a point from each other, and whole scores here are a few points apart."""
    model = estimators.estimator("kiwi" if kind == "layer" else kind)
    if kind == "layer":
        model.config, model.mix = model.config.model_copy(update={"layer": -1}), None
    with torch.no_grad():
        model.head[-1].bias += 100.0
    wanted_B, kept = scored(model), model.head[0].weight.clone()
    if way == "weights":
        model.bfloat16()
        assert model.table_VD.dtype == torch.bfloat16
        assert torch.equal(model.head[0].weight, kept)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way == "autocast"):
        found_B = scored(model)
    assert found_B.dtype == torch.float32
    assert not torch.equal(found_B, found_B.bfloat16().float())
    assert 0 < (found_B - wanted_B).abs().max() < 0.1


def test_text_is_scored_above_a_bf16_encoder_as_soft_tokens_are() -> None:
    for kind in (*estimators.ENERGIES, "xcomet"):
        model = estimators.estimator(kind)
        wanted = score_lines(model, estimators.SOURCES, estimators.TRANSLATIONS)
        found = torch.tensor(score_lines(model.bfloat16(), estimators.SOURCES, estimators.TRANSLATIONS))
        assert found.tolist() == pytest.approx(wanted, abs=0.1)
        assert not torch.equal(found, found.bfloat16().float())


def test_other_precisions_are_of_the_whole_estimator() -> None:
    for dtype in (torch.float64, torch.float32):
        model = estimators.estimator("kiwi").to(dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        assert scored(model).dtype == dtype


def test_embeddings_stay_frozen_in_training() -> None:
    model = estimators.estimator("kiwi").requires_grad_(True)
    source, target = (
        estimators.source_of(model, estimators.SOURCES),
        estimators.target_of(model, estimators.TRANSLATIONS),
    )
    model(source, target).sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"encoder.embeddings.word_embeddings.weight"}


def test_layers_are_dropped_in_training_alone() -> None:
    mix = LayerMix(3, "softmax", layer_norm=False, dropout=0.5)
    states = [torch.full((1, 1, 1), float(10**n)) for n in range(3)]
    mask = torch.ones(1, 1, dtype=torch.bool)
    means = {round(mix(states, mask).item(), 3) for _ in range(60)}
    assert means == {1.0, 10.0, 100.0, 5.5, 50.5, 55.0, 37.0}  # of each set of layers that are left
    assert {round(mix.eval()(states, mask).item(), 3) for _ in range(20)} == {37.0}


def test_sparsemax() -> None:
    weights = torch.tensor([0.5, 0.2, -1.0], dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(sparsemax(weights), torch.tensor([0.65, 0.35, 0.0], dtype=torch.float64))
    torch.testing.assert_close(sparsemax(weights + 7), sparsemax(weights))
    torch.testing.assert_close(sparsemax(torch.zeros(4)), torch.full((4,), 0.25))
    torch.testing.assert_close(sparsemax(torch.tensor([3.0, 1.0])), torch.tensor([1.0, 0.0]))
    assert torch.autograd.gradcheck(sparsemax, (weights,))


@pytest.mark.parametrize("kind", estimators.ENERGIES)
def test_a_text_beyond_the_limit_is_cut_as_text_is(kind: str) -> None:
    model = estimators.estimator(kind)
    sources, translations = (
        [estimators.LONG, "ein Buch ."],
        ["a woman reads a book .", " ".join(estimators.REFERENCES * 3)],
    )
    target = estimators.target_of(model, translations)
    assert target.mask_BT.sum(1).max() > model.longest_text
    wanted = score_lines(model, sources, translations)
    assert scored(model, sources, translations).tolist() == pytest.approx(wanted, abs=1e-6)
    emb_BTD = target.emb_BTD.requires_grad_()
    model(estimators.source_of(model, sources), target).sum().backward()
    reached = emb_BTD.grad.ne(0).any(-1)[1]
    assert reached.tolist() == [True] * model.longest_text + [False] * (len(reached) - model.longest_text)


def test_the_table_is_as_long_as_the_vocabulary() -> None:
    model = estimators.estimator("kiwi", "XLM-RoBERTa-XL")
    rows = model.encoder.get_input_embeddings().weight
    assert rows.shape[0] > model.table_VD.shape[0] == model.vocabulary.size
    assert model.table_VD.data_ptr() == rows.data_ptr()


@pytest.mark.parametrize("kind", ["regression", "xcomet"])
def test_a_metric_with_references_or_spans_is_no_energy(kind: str) -> None:
    model = estimators.estimator(kind)
    assert not model.differentiable
    with pytest.raises(ConfigurationError, match="is no energy"):
        scored(model)


def test_a_unified_metric_without_sources_is_no_energy() -> None:
    model = estimators.estimator("unified")
    assert model.differentiable
    model.config = model.config.model_copy(update={"parts": ("mt", "ref")})
    with pytest.raises(ConfigurationError, match="is no energy"):
        scored(model)


def test_embeddings_of_another_model_are_refused() -> None:
    model = estimators.estimator("kiwi")
    target = estimators.target_of(model, ["a book ."])
    with pytest.raises(ConfigurationError, match=r"width 11.*12 wide"):
        model(estimators.source_of(model, ["ein Buch ."]), replace(target, emb_BTD=target.emb_BTD[..., 1:]))


@pytest.mark.parametrize("foreign", [-100, 10_000])
def test_a_source_of_another_vocabulary_is_refused(foreign: int) -> None:
    model = estimators.estimator("kiwi")
    source = estimators.source_of(model, ["ein Buch ."])
    source.ids_BS[0, 2] = foreign
    with pytest.raises(DataError, match=f"token id {foreign}"):
        model(source, estimators.target_of(model, ["a book ."]))


@pytest.mark.parametrize(
    "kind, options, changes, message",
    [
        ("referenceless", {"order": "published"}, {}, "published"),
        ("kiwi", {}, {"layer": 3}, "layer 3, but its encoder has 0 to 2"),
        ("xcomet", {}, {"word_layer": -1}, "word_layer -1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(kind: str, options: dict, changes: dict, message: str) -> None:
    model = estimators.estimator(kind)
    config = model.config.model_copy(update=changes)
    with pytest.raises(ConfigurationError, match=message):
        type(model)(config, model.encoder, model.vocabulary, **options)


def test_scores_of_all_kinds_differ() -> None:
    """Else the tests above would not tell one way of mixing, pooling or joining from another."""
    scores = sorted(scored(estimators.estimator(kind))[0].item() for kind in estimators.ENERGIES)
    assert min(high - low for low, high in pairwise(scores)) > 1e-4
