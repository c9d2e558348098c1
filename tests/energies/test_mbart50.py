"""The paper's pair, small: an mBART-50 whose adapters learn from a COMET-KIWI that reads the same pieces (QE-EBM)."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import MBartConfig, MBartForConditionalGeneration

from energymt.configuration import LoraSettings
from energymt.data.hub import HubVocabulary
from energymt.decoding.autoregressive import decode
from energymt.energies import QualityEnergy
from energymt.models import load_translator
from energymt.models.adapters import ADAPTER, adapt_translator
from energymt.models.transformer import TransformerTranslator
from energymt.operators import OPERATORS
from energymt.records import Prediction, Projection
from tests import bridged, estimators, tiny
from tests.bridged import SOURCES, TRANSLATIONS, ids_of, noise_of, source_of


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the hub holds it; its start token is the end token, and the language code comes behind."""
    torch.manual_seed(4)
    sizes = {**tiny.BART_SIZES, "vocab_size": bridged.mbart().size, "max_position_embeddings": 64}
    network = MBartForConditionalGeneration(MBartConfig(**sizes, scale_embedding=True))
    tiny.shake(network)
    with torch.no_grad():
        for name, weight in network.named_parameters():  # what is said depends on the source, and on the place
            if "encoder_attn.out_proj" in name or "embed_positions" in name:
                weight.mul_(6.0)
    folder = tmp_path_factory.mktemp("checkpoint") / "mbart50"
    network.save_pretrained(folder)
    return folder


@pytest.fixture
def words() -> HubVocabulary:
    return bridged.mbart()


@pytest.fixture
def model(checkpoint: Path, words: HubVocabulary) -> TransformerTranslator:
    return TransformerTranslator.from_checkpoint(checkpoint, words, words.target_code).eval()


@pytest.fixture
def adapted(model: TransformerTranslator) -> TransformerTranslator:
    """With adapters that have learnt a little: at first, no gradient reaches A."""
    torch.manual_seed(1)
    adapt_translator(model.network, LoraSettings(rank=3))
    tiny.shake(model, 0.2)  # what learns, and nothing else
    return model


def prediction(model: TransformerTranslator, dense: bool = False) -> Prediction:
    """What the translator says of the translations' places, without special tokens, as logits or as a projection."""
    words = model.vocabulary
    ids_BT, mask_BT = ids_of(words, TRANSLATIONS)
    projection = model.decode_projection(model.encode(source_of(words, SOURCES)), ids_BT, mask_BT)
    assert projection.bias_V is not None
    bias_V = projection.bias_V.index_fill(0, torch.tensor([*words.never_ids, words.eos_id]), float("-inf"))
    projection = Projection(projection.hidden_BTH[:, :-1], projection.matrix_VH, bias_V)
    given = Prediction(None, mask_BT, noise=noise_of(len(SOURCES)), projection=projection)
    return replace(given, logits_BTV=projection.logits(), projection=None) if dense else given


def test_ids_are_the_estimator_s_but_for_the_language_codes(words: HubVocabulary) -> None:
    energy = QualityEnergy(estimators.estimator("kiwi"), words)
    reader, bridge = energy.estimator.vocabulary, energy.bridge
    assert bridge.identical and bridge.coverage == 1.0
    first = words.tokenizer.convert_tokens_to_ids("ar_AR")
    # XLM-R's <mask> has the number of mBART-50's first language: 250001 in the published ones.
    assert first == reader.mask_id == reader.size - 1 and words.piece(words.mask_id) == "<mask>"
    assert words.size == reader.size + 52
    text = torch.arange(4, first)
    assert torch.equal(bridge.row_V[text], text) and bridge.covered_V[text].all()
    codes = torch.arange(first, words.size)
    assert (bridge.row_V[codes] == -1).all() and not bridge.covered_V[codes].any()
    unknown_D = reader_row(energy, reader.unk_id)
    assert torch.equal(energy.table_VD[codes], unknown_D.expand(len(codes), -1))
    assert not torch.equal(reader_row(energy, reader.mask_id), unknown_D)


def reader_row(energy: QualityEnergy, row: int) -> Tensor:
    return energy.estimator.table_VD[row]


@pytest.mark.parametrize("feed", OPERATORS)
def test_the_energy_s_gradient_reaches_the_adapters_and_nothing_else(
    feed: str, adapted: TransformerTranslator, words: HubVocabulary
) -> None:
    energy, source = QualityEnergy(estimators.estimator("kiwi"), words, feed), source_of(words, SOURCES)
    found = []
    for dense in (False, True):
        adapted.zero_grad()
        energy(source, prediction(adapted, dense)).sum().backward()
        found.append({name: p.grad for name, p in adapted.named_parameters() if p.grad is not None})
    assert found[0].keys() == {name for name, _ in adapted.named_parameters() if ADAPTER in name}
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-3, atol=1e-6, msg=name)
        assert gradient.any(), name
    assert not any(weight.grad is not None for weight in energy.estimator.parameters())


def test_adapters_that_follow_the_gradient_lower_the_energy(
    adapted: TransformerTranslator, words: HubVocabulary
) -> None:
    energy, source = QualityEnergy(estimators.estimator("kiwi"), words, "SX"), source_of(words, SOURCES)
    optimizer = torch.optim.Adam([weight for weight in adapted.parameters() if weight.requires_grad], lr=0.03)
    values = []
    for _ in range(15):
        optimizer.zero_grad()
        total = energy(source, prediction(adapted)).sum()
        total.backward()
        optimizer.step()
        values.append(total.item())
    assert values[-1] < values[0] - 0.1


# ------------------------------------------------------------------------------------------ where a decoder begins


def test_labels_that_were_cut_still_begin_with_the_language(model: TransformerTranslator, words: HubVocabulary) -> None:
    """mBART's own shift moves the last label to the front: where the end token was cut off, that is a word."""
    assert model.prefix_ids == (words.eos_id, words.tokenizer.convert_tokens_to_ids("en_XX"))
    source = source_of(words, SOURCES[:1])
    whole = words.encode(TRANSLATIONS[0])
    cut = torch.tensor([whole[:4]])
    with torch.no_grad():
        found_BUV = model.decode(model.encode(source), cut, torch.ones_like(cut, dtype=torch.bool))
        long = torch.tensor([whole])
        long_BUV = model.decode(model.encode(source), long, torch.ones_like(long, dtype=torch.bool))
        labels = words.tokenizer(text_target=TRANSLATIONS[0], truncation=True, max_length=6, return_tensors="pt")
        assert labels.input_ids[0].tolist() == [words.target_code, *whole[:4], words.eos_id]
        own_BUV = model.network(input_ids=source.ids_BS, labels=labels.input_ids).logits
        bare_BUV = model.network(input_ids=source.ids_BS, labels=labels.input_ids[:, :-1]).logits
    torch.testing.assert_close(found_BUV, long_BUV[:, :5], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found_BUV, own_BUV[:, 1:], rtol=1e-5, atol=1e-5)
    assert (bare_BUV[:, 1:] - found_BUV[:, :-1]).abs().max() > 1e-3


@pytest.mark.parametrize("merged", [False, True])
def test_generation_that_is_cut_begins_with_the_language(
    merged: bool, adapted: TransformerTranslator, words: HubVocabulary, tmp_path: Path
) -> None:
    adapted.save_pretrained(tmp_path / "model")
    again = load_translator(tmp_path / "model")
    assert isinstance(again, TransformerTranslator) and again.prefix_ids == adapted.prefix_ids
    source = source_of(words, SOURCES)
    found = decode(again if merged else adapted, source, max_length=5)
    longer = decode(again if merged else adapted, source, max_length=9)
    assert max(len(hypotheses[0].ids) for hypotheses in longer) == 9
    assert len({hypotheses[0].ids for hypotheses in found}) > 1
    generated = again.network.generate(
        input_ids=source.ids_BS,
        attention_mask=source.mask_BS.long(),
        forced_bos_token_id=words.target_code,
        bad_words_ids=[[token] for token in words.never_ids if token != words.target_code],
        forced_eos_token_id=None,
        max_new_tokens=6,  # the language code is one of them
        num_beams=1,
        do_sample=False,
    )
    for row, ids in enumerate(generated.tolist()):
        assert tuple(ids[:2]) == adapted.prefix_ids
        written = tuple(words.words(ids[2:]))
        assert found[row][0].ids == longer[row][0].ids[:5] == written
