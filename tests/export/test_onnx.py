import copy

import pytest
import sacrebleu
import torch

from energymt.decoding import mask_predict
from energymt.errors import ConfigurationError, DivergenceError
from energymt.export import onnx as exported
from energymt.export.onnx import OnnxTranslator, export_onnx
from tests import tiny

LENGTHS = [1 + row % 9 for row in range(60)]
SETTINGS = [
    {"length_beam": 1, "iterations": 1},
    {"length_beam": 3, "iterations": 1},
    {"length_beam": 4, "iterations": 1, "n_best": 4},
    {"length_beam": 1, "iterations": 1, "lengths_B": LENGTHS},
    {"length_beam": 3, "iterations": 1, "lengths_B": torch.tensor(LENGTHS), "n_best": 2},
    {"length_beam": 100, "iterations": 1},
    {"length_beam": 1, "iterations": 4},
    {"length_beam": 3, "iterations": 5, "n_best": 3},
]


@pytest.fixture
def engine(tmp_path):
    """`engine(model)`: the model in ONNX Runtime."""

    def make(model, int8=False, **settings):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        export_onnx(model, folder, int8=int8)
        return OnnxTranslator(folder, **settings)

    return make


@pytest.fixture(params=["masked", "tagger"])
def student(request, words):
    """Random weights, large enough to have opinions."""
    model = {"masked": tiny.masked, "tagger": tiny.tagger}[request.param](words)
    tiny.shake(model, 0.3, seed=1)
    return model


def same(found, wanted, tolerance=1e-4):
    assert [[item.ids for item in items] for items in found] == [[item.ids for item in items] for items in wanted]
    for a, b in zip(found, wanted, strict=True):
        for mine, other in zip(a, b, strict=True):
            numbers = (mine.score, mine.total, mine.extra["length_logp"])
            assert numbers == pytest.approx((other.score, other.total, other.extra["length_logp"]), abs=tolerance)


@pytest.mark.parametrize("settings", SETTINGS)
def test_float32_gives_what_pytorch_gives(settings, engine, student, source):
    wanted = mask_predict.decode(student, source, **settings)
    assert len({items[0].ids for items in wanted}) > 5
    same(engine(student).search(source, **settings), wanted)


@pytest.mark.parametrize("lengths", [None, [0] * 60])
@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize("length_beam", [1, 3, 100])
def test_a_translation_has_one_token_at_least(length_beam, iterations, lengths, engine, student, source):
    """Whatever the length head thinks of length 0, and whatever length is asked for."""
    vectors = []
    student.length.register_forward_pre_hook(lambda head, arguments: vectors.append(arguments[0]))
    student.encode(source)
    with torch.no_grad():
        student.length.lengths.weight[0] = 1e3 * vectors[0][0]
        logits_BL = vectors[0] @ student.length.lengths.weight.t()
    assert (logits_BL.argmax(1) == 0).sum() > 5, "length 0 tempts nobody: the test sees nothing"
    settings = {"length_beam": length_beam, "iterations": iterations, "lengths_B": lengths, "n_best": 1}
    wanted = mask_predict.decode(student, source, **settings)
    assert all(len(item.ids) >= 1 and item.extra["length_logp"] > -1e3 for items in wanted for item in items)
    same(engine(student).search(source, **settings), wanted)


def test_a_trained_model_gives_what_pytorch_gives(engine, learned_student, source, words):
    model = engine(learned_student)
    # Of words that are equally sure, rounding decides which are masked again, and so what the others are told by.
    for settings, tolerance in (
        ({"length_beam": 3, "iterations": 4}, 0.01),
        ({"length_beam": 1, "iterations": 1}, 1e-4),
    ):
        wanted = mask_predict.decode(learned_student, source, **settings)
        same(model.search(source, **settings), wanted, tolerance)
    right = [[5 + (word - 4) % 20 for word in ids.tolist() if word > 4 for _ in range(2)] for ids in source.ids_BS]
    assert sum(list(items[0].ids) == ids for items, ids in zip(wanted, right, strict=True)) > 55


def test_the_networks_agree(engine, student, source):
    model = engine(student)
    with torch.no_grad():
        wanted, found = student.encode(source), model.encode(source)
        assert torch.allclose(found.states_BSD[source.mask_BS], wanted.states_BSD[source.mask_BS], atol=1e-5)
        assert torch.allclose(found.length_logp_BL, wanted.length_logp_BL, atol=1e-4)
        mask = torch.arange(7) < torch.tensor([1 + row % 7 for row in range(len(source))])[:, None]
        tokens = student.unseen(mask)
        tokens[:, ::2] = torch.randint(5, 25, tokens[:, ::2].shape)
        wanted_logits, logits = student.predict(wanted, tokens, mask), model.predict(found, tokens, mask)
        assert logits.shape == wanted_logits.shape
        assert torch.allclose(logits[mask], wanted_logits[mask], atol=1e-4)
        (ids, logp), (wanted_ids, wanted_logp) = (
            network.choose(memory, tokens, mask, mask) for network, memory in ((model, found), (student, wanted))
        )
        assert torch.equal(ids, wanted_ids)
        assert torch.allclose(logp, wanted_logp, atol=1e-4)


def test_order_and_padding_of_a_batch_change_nothing(engine, student, source):
    model = engine(student)
    together = model.search(source, length_beam=2, iterations=1)
    same(model.search(source.select(torch.arange(60).flip(0)), length_beam=2, iterations=1)[::-1], together)
    for row in range(8):
        alone = source.select(torch.tensor([row]))
        short = type(source)(alone.ids_BS[alone.mask_BS][None], alone.mask_BS[alone.mask_BS][None])
        same(model.search(short, length_beam=2, iterations=1), [together[row]])


def test_a_batch_that_is_cut_into_passes_stays_whole(engine, student, source, monkeypatch):
    model = engine(student)
    together = model.search(source, length_beam=3, iterations=1, lengths_B=LENGTHS)
    monkeypatch.setattr(exported, "TOKENS_AT_ONCE", 70)
    same(model.search(source, length_beam=3, iterations=1, lengths_B=LENGTHS), together)


@pytest.mark.parametrize("size", [16, 128, 300])
def test_no_forbidden_token_is_chosen_whatever_the_size_of_the_vocabulary(size, engine, monkeypatch):
    # The mask token stands behind the vocabulary, as with a tokenizer that has none.
    vocabulary = tiny.Numbers(size, mask=size)
    monkeypatch.setattr(exported, "load_vocabulary", lambda folder: vocabulary)
    model = tiny.masked(vocabulary)
    with torch.no_grad():
        model.bias[[vocabulary.pad_id, vocabulary.bos_id, vocabulary.eos_id]] = 50.0
        model.bias[-1] = 3.0
    source = tiny.source_of(tiny.sentences(30), vocabulary)
    found = engine(model).search(source, length_beam=2, iterations=1)
    same(found, mask_predict.decode(model, source, length_beam=2, iterations=1))
    ids = {token for items in found for token in items[0].ids}
    assert size - 1 in ids and not ids & {0, 2, 3, size}


@pytest.mark.parametrize("settings", [{"length_beam": 1, "iterations": 1}, {"length_beam": 1, "iterations": 4}])
def test_int8_stays_within_two_bleu(settings, engine, learned_student, words, texts):
    source = tiny.source_of([words.encode(text) for text in texts(200)], words)
    wanted = mask_predict.decode(learned_student, source, **settings)
    found = engine(learned_student, int8=True).search(source, **settings)
    lines = [[words.decode(items[0].ids) for items in system] for system in (found, wanted)]
    assert sacrebleu.corpus_bleu(lines[0], lines[1:]).score > 98
    assert any(a[0].score != pytest.approx(b[0].score, abs=1e-6) for a, b in zip(found, wanted, strict=True))


def test_an_int8_tagger_translates(engine, words, source):
    student = tiny.tagger(words)
    found = engine(student, int8=True).search(source, length_beam=1, iterations=1)
    wanted = mask_predict.decode(student, source, length_beam=1, iterations=1)
    pairs = [pair for a, b in zip(found, wanted, strict=True) for pair in zip(a[0].ids, b[0].ids, strict=True)]
    assert sum(mine == other for mine, other in pairs) > 0.95 * len(pairs)


def test_int8_is_smaller_and_graphs_share_their_weights(engine, words):
    student = tiny.masked(words, width=128, feedforward=512, heads=4)
    sizes = {int8: (engine(student, int8=int8).folder / "weights.bin").stat().st_size for int8 in (False, True)}
    parameters = sum(parameter.numel() for parameter in student.parameters())
    assert sizes[False] < 4 * 1.2 * parameters
    assert sizes[True] < 0.4 * sizes[False]


def test_a_ranking_is_asked(engine, student, source):
    model = engine(student)
    seen = []

    def shortest_first(rows, ids_RT, mask_RT):
        seen.append(ids_RT.shape)
        return -mask_RT.sum(1).float()

    settings = {"length_beam": 3, "iterations": 1, "rank": shortest_first}
    same(model.search(source, **settings), mask_predict.decode(student, source, **settings))
    assert seen[0] == seen[1]


def test_threads_change_nothing(engine, student, source):
    settings = {"length_beam": 2, "iterations": 1}
    same(engine(student, threads=2).search(source, **settings), engine(student).search(source, **settings))


def test_a_saved_copy_translates_too(engine, student, source, tmp_path):
    model = engine(student)
    model.save(tmp_path / "copy")
    settings = {"length_beam": 2, "iterations": 1}
    same(OnnxTranslator(tmp_path / "copy").search(source, **settings), model.search(source, **settings))


def test_impossible_numbers_are_refused(engine, student, source):
    model = engine(student)
    for settings in (
        {"iterations": 0},
        {"length_beam": 2, "n_best": 3},
        {"length_beam": 0},
        {"length_beam": 1, "lengths_B": [3]},
    ):
        with pytest.raises(ConfigurationError):
            model.search(source, **{"iterations": 1, **settings})


def test_weights_that_are_not_numbers_are_noticed(engine, student, source):
    broken = copy.deepcopy(student)
    with torch.no_grad():
        broken.embedding.weight[10] = float("nan")
    for iterations in (1, 3):
        with pytest.raises(DivergenceError):
            engine(broken).search(source, length_beam=1, iterations=iterations)


def test_autoregressive_models_are_refused_in_one_sentence(tmp_path):
    with pytest.raises(ConfigurationError, match="export it to ctranslate2"):
        export_onnx(tiny.scratch(), tmp_path, int8=False)
