"""A T5 from scratch: the start token of every T5, relative positions, one table, and a folder that gives it back."""

from pathlib import Path

import pytest
import torch

from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.decoding import autoregressive
from energymt.models import load_translator, make_translator
from energymt.models.t5 import RelativeConfig, new_t5
from energymt.models.transformer import TransformerTranslator
from tests import tiny

SIZES = {"width": 8, "feedforward": 12, "layers": 2, "heads": 2, "head_width": 4, "dropout": 0.0}
WORDS = ["dog", "cat", "house", "tree", "river", "stone", "the"]


def t5() -> TransformerTranslator:
    torch.manual_seed(5)
    model = new_t5(RelativeConfig(**SIZES), tiny.Numbers())
    tiny.shake(model)
    return model.eval()


def test_it_scores_what_it_translates() -> None:
    model = t5()
    assert model.prefix_ids == (model.vocabulary.pad_id,)
    source = tiny.source_of(tiny.sentences(6), model.vocabulary)
    with torch.no_grad():
        for each, [found] in enumerate(autoregressive.decode(model, source, beam=1)):
            row = torch.tensor([each])
            ids_1T, mask_1T = tiny.padded([found.ids], model.vocabulary.pad_id)
            logp_UV = model.decode(model.encode(source.select(row)), ids_1T, mask_1T)[0].log_softmax(-1)
            wanted = sum(logp_UV[u, token].item() for u, token in enumerate([*found.ids, model.vocabulary.eos_id]))
            assert found.total == pytest.approx(wanted, abs=1e-4)


def test_padding_changes_nothing_and_order_does() -> None:
    model = t5()
    words = [6, 7, 8, 9]
    with torch.no_grad():
        narrow = model.encode(tiny.source_of([words], model.vocabulary)).states_BSD
        wide = model.encode(tiny.source_of([words], model.vocabulary, width=9)).states_BSD
        turned = model.encode(tiny.source_of([words[::-1]], model.vocabulary)).states_BSD
    assert torch.allclose(wide[:, :5], narrow, atol=1e-6)
    assert not torch.allclose(turned[:, :4].flip(1), narrow[:, :4], atol=1e-2)


def test_one_table_serves_encoder_decoder_and_output() -> None:
    network = t5().network
    tables = [network.get_input_embeddings(), network.get_encoder().get_input_embeddings(), network.lm_head]
    assert len({table.weight.data_ptr() for table in tables}) == 1
    assert network.config.feed_forward_proj == "gated-gelu"


def test_its_folder_gives_it_back(tmp_path: Path) -> None:
    words = SentencePieceVocabulary.train(WORDS * 3, 40, model_type="word")
    torch.manual_seed(5)
    model = make_translator("t5-toy", words, width=8, feedforward=12, heads=2, head_width=4).eval()
    tiny.shake(model)
    model.save_pretrained(tmp_path / "t5")
    loaded = load_translator(tmp_path / "t5")
    source = tiny.source_of([words.encode("dog cat"), words.encode("the stone tree")], words)
    target = tiny.padded([words.encode("house"), words.encode("cat the")], words.pad_id)
    with torch.no_grad():
        assert torch.equal(loaded.decode(loaded.encode(source), *target), model.decode(model.encode(source), *target))


def test_the_layers_of_the_small_one_are_those_of_flan_t5_small() -> None:
    """Which has 76,961,152 parameters, and of them two tables of 32,128 rows."""
    model = make_translator("t5-small", tiny.Numbers())
    layers = sum(weight.numel() for weight in model.parameters()) - tiny.SIZE * 512
    assert layers == 76_961_152 - 2 * 32_128 * 512
