import copy
import math

import pytest
import sacrebleu
import torch

from energymt.decoding import autoregressive
from energymt.errors import ConfigurationError, DivergenceError
from energymt.export import ctranslate
from energymt.export.ctranslate import CTranslateTranslator
from energymt.export.specification import export_ctranslate
from tests import tiny

FAMILIES = ("scratch", *tiny.NETWORKS)


@pytest.fixture
def engine(tmp_path):
    """`engine(model)`: the model in CTranslate2."""

    def make(model, int8=False):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        export_ctranslate(model, folder, int8=int8)
        return CTranslateTranslator(folder)

    return make


@pytest.fixture
def numbers(monkeypatch):
    """`numbers(model)`: its made-up vocabulary is the one that every export loads."""
    return lambda model: monkeypatch.setattr(ctranslate, "load_vocabulary", lambda folder: model.vocabulary)


def certain(model):
    """No probability on tokens that cannot stand: what CTranslate2 and PyTorch treat differently."""
    model.network.final_logits_bias[0, list(model.vocabulary.never_ids)] = -40.0
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_pytorchs_greedy_output(family, engine, numbers, ids_of):
    model = tiny.teacher(family)
    numbers(model)
    source = tiny.source_of(tiny.sentences(20), model.vocabulary)
    wanted = autoregressive.decode(model, source, max_length=12)
    found = engine(model).search(source, max_length=12)
    # After a forced token CTranslate2 never ends at once.
    kept = [row for row, [best] in enumerate(wanted) if best.ids or len(model.prefix_ids) == 1]
    assert len(kept) > 10
    assert ids_of([found[row] for row in kept]) == ids_of([wanted[row] for row in kept])


@pytest.mark.parametrize("family", ["scratch", "marian", "bart", "mbart"])
def test_totals_are_pytorchs_where_no_token_is_forbidden_that_has_probability(family, engine, numbers):
    model = certain(tiny.teacher(family))
    numbers(model)
    source = tiny.source_of(tiny.sentences(20), model.vocabulary)
    for beam, length_penalty in ((1, 1.0), (1, 0.0), (3, 0.6)):
        settings = {"beam": beam, "length_penalty": length_penalty, "max_length": 12}
        wanted = autoregressive.decode(model, source, **settings)
        found = engine(model).search(source, **settings)
        same = [(a, b) for [a], [b] in zip(wanted, found, strict=True) if a.ids == b.ids]
        assert len(same) > 10
        for a, b in same:
            assert (b.total, b.score) == pytest.approx((a.total, a.score), abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"beam": 1},
        {"beam": 4},
        {"beam": 4, "n_best": 3},
        {"beam": 5, "length_penalty": 0.0},
        {"beam": 4, "patience": 2.0},
        {"beam": 4, "patience": math.inf},
    ],
)
def test_a_trained_model_finds_what_pytorch_finds(settings, engine, learned_teacher, source, ids_of):
    model = certain(copy.deepcopy(learned_teacher))
    wanted = autoregressive.decode(model, source, **settings)
    found = engine(model).search(source, **settings)
    assert ids_of(found) == ids_of(wanted)
    assert len({hypotheses[0].ids for hypotheses in wanted}) > 40
    for a, b in zip(wanted, found, strict=True):
        assert [item.total for item in b] == pytest.approx([item.total for item in a], abs=1e-3)
        assert [item.score for item in b] == sorted((item.score for item in b), reverse=True)


def test_order_and_padding_of_a_batch_change_nothing(engine, learned_teacher, source, ids_of):
    model = engine(learned_teacher)
    together = model.search(source, beam=3)
    backwards = model.search(source.select(torch.arange(len(source)).flip(0)), beam=3)
    alone = [model.search(source.select(torch.tensor([row])), beam=3)[0] for row in range(8)]
    assert ids_of(backwards)[::-1] == ids_of(together)
    assert ids_of(alone) == ids_of(together[:8])


def test_int8_stays_within_two_bleu(engine, sure_teacher, words, texts):
    source = tiny.source_of([words.encode(text) for text in texts(200)], words)
    wanted = autoregressive.decode(sure_teacher, source, beam=4)
    found = engine(sure_teacher, int8=True).search(source, beam=4)
    lines = [[words.decode(items[0].ids) for items in system] for system in (found, wanted)]
    assert sacrebleu.corpus_bleu(lines[0], lines[1:]).score > 98


def test_no_translation_is_longer_than_its_own_limit(engine, learned_teacher, source):
    model = certain(copy.deepcopy(learned_teacher))
    limits = [row % 7 for row in range(len(source))]
    wanted = autoregressive.decode(model, source, max_length=limits)
    found = engine(model).search(source, max_length=limits)
    assert any(len(a[0].ids) == limit for a, limit in zip(wanted, limits, strict=True))
    for a, b, limit in zip(wanted, found, limits, strict=True):
        assert len(b[0].ids) <= limit
        assert b[0].ids == a[0].ids
        assert b[0].total == pytest.approx(a[0].total, abs=1e-3)


def test_more_rows_than_tokens_are_left_out(engine, words, learned_teacher, source, ids_of):
    padded = copy.deepcopy(learned_teacher)
    padded.network.resize_token_embeddings(words.size + 7)
    assert padded.network.get_input_embeddings().weight.shape[0] > words.size
    assert ids_of(engine(padded).search(source)) == ids_of(autoregressive.decode(learned_teacher, source))


def test_exporting_leaves_the_model_as_it_was(engine, learned_teacher):
    config, weights = learned_teacher.network.config.to_dict(), copy.deepcopy(learned_teacher.state_dict())
    engine(learned_teacher, int8=True)
    assert learned_teacher.network.config.to_dict() == config
    assert all(torch.equal(tensor, weights[name]) for name, tensor in learned_teacher.state_dict().items())


@pytest.mark.parametrize("model", [tiny.recurrent, tiny.masked])
def test_other_architectures_are_refused_in_one_sentence(model, tmp_path):
    with pytest.raises(ConfigurationError, match="CTranslate2 takes autoregressive transformers") as caught:
        export_ctranslate(model(), tmp_path, int8=False)
    assert "--engine torch" in str(caught.value)


def test_a_family_that_ctranslate2_does_not_know_is_named(tmp_path, monkeypatch):
    model = tiny.scratch()
    model.network.config = type("ProphetNetConfig", (), {})()
    with pytest.raises(ConfigurationError, match="no ProphetNet"):
        export_ctranslate(model, tmp_path, int8=False)


def test_impossible_numbers_are_refused(engine, learned_teacher, source):
    model = engine(learned_teacher)
    for settings in ({"beam": 2, "n_best": 3}, {"n_best": 0}, {"length_penalty": -1.0}, {"max_length": [1, 2]}):
        with pytest.raises(ConfigurationError):
            model.search(source, **settings)


def test_weights_that_are_not_numbers_are_noticed(engine, learned_teacher, source):
    broken = copy.deepcopy(learned_teacher)
    with torch.no_grad():
        broken.network.model.encoder.layers[0].fc2.weight[0, 0] = float("nan")
    with pytest.raises(DivergenceError):
        engine(broken).search(source, beam=2)
