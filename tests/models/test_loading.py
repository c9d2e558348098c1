"""A model folder gives back the translator that wrote it, and says what is wrong with one that cannot."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.errors import ConfigurationError, StorageError
from energymt.models import VARIANTS, load_translator, make_translator
from energymt.models.transformer import TransformerTranslator, start_tokens
from energymt.models.translator import AutoregressiveModel
from tests import tiny

MAKERS = {
    "transformer": tiny.scratch,
    "recurrent": tiny.recurrent,
    "masked": tiny.masked,
    "tagger": tiny.tagger,
}


@pytest.fixture(scope="module")
def vocabulary() -> SentencePieceVocabulary:
    words = [consonant + vowel for consonant in "bdgklm" for vowel in "aeiou"]
    return SentencePieceVocabulary.train([" ".join(words)] * 5, 40, model_type="word")


def outputs(model) -> torch.Tensor:
    memory = model.encode(tiny.source_of([[6, 7], [8]], model.vocabulary))
    target_BT, mask_BT = tiny.padded([[9, 6, 7], [8]], 0)
    predict = model.decode if isinstance(model, AutoregressiveModel) else model.predict
    with torch.no_grad():
        return predict(memory, target_BT, mask_BT)


@pytest.mark.parametrize("architecture", MAKERS)
def test_a_translator_comes_back_as_it_was(architecture: str, vocabulary, tmp_path: Path) -> None:
    model = MAKERS[architecture](vocabulary)
    model.save(tmp_path)
    again = load_translator(tmp_path)
    assert type(again) is type(model)
    assert again.architecture == architecture
    assert not again.training
    assert again.vocabulary.fingerprint == vocabulary.fingerprint
    assert again.longest == model.longest
    assert torch.equal(outputs(again), outputs(model))
    assert again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("architecture", MAKERS)
def test_a_folder_holds_no_pickle(architecture: str, vocabulary, tmp_path: Path) -> None:
    MAKERS[architecture](vocabulary).save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".model", ".safetensors"}


@pytest.mark.parametrize("architecture", MAKERS)
def test_weights_alone_go_into_a_model_of_the_same_shape(architecture: str, vocabulary, tmp_path: Path) -> None:
    model, other = MAKERS[architecture](vocabulary), MAKERS[architecture](vocabulary)
    tiny.shake(other, seed=1)
    assert not torch.equal(outputs(other), outputs(model))
    model.save_weights(tmp_path)
    other.load_weights(tmp_path)
    assert torch.equal(outputs(other), outputs(model))


@pytest.mark.parametrize("family", tiny.NETWORKS)
def test_a_hugging_face_folder_becomes_a_translator(family: str, tmp_path: Path) -> None:
    network, vocabulary, code = tiny.network(family)
    network.save_pretrained(tmp_path)
    model = TransformerTranslator.from_checkpoint(tmp_path, vocabulary, code).eval()
    assert torch.equal(outputs(model), outputs(tiny.teacher(family)))
    assert model.prefix_ids == start_tokens(network, code)


@pytest.mark.parametrize("family", tiny.NETWORKS)
def test_a_wrapped_checkpoint_keeps_its_prefix_and_its_bias(family: str, vocabulary, tmp_path: Path) -> None:
    network, _, code = tiny.network(family)
    network.resize_token_embeddings(vocabulary.size)
    model = TransformerTranslator(network, vocabulary, start_tokens(network, code)).eval()
    model.save(tmp_path)
    again = load_translator(tmp_path)
    assert again.prefix_ids == model.prefix_ids
    assert torch.equal(outputs(again), outputs(model))


@pytest.mark.parametrize(
    "harm, what",
    [
        (lambda folder: shutil.rmtree(folder), "holds no translator"),
        (lambda folder: (folder / "translator.json").unlink(), "translator.json is missing"),
        (lambda folder: (folder / "vocabulary.json").unlink(), "vocabulary.json is missing"),
        (lambda folder: rewrite(folder, architecture="abacus"), "architecture 'abacus'"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"short"), "model.safetensors"),
        (lambda folder: without_bias(folder), "model.safetensors"),
        (lambda folder: (folder / "translator.json").write_text("{"), "translator.json"),
        (lambda folder: rewrite(folder, config={"embeding": 6}), "translator.json"),
        (lambda folder: rewrite(folder, config={"embedding": 12}), "model.safetensors"),
    ],
    ids=[
        "no-folder",
        "no-description",
        "no-vocabulary",
        "unknown",
        "no-weights",
        "cut",
        "tensor",
        "broken",
        "key",
        "shape",
    ],
)
def test_a_damaged_folder_is_named(harm, what: str, vocabulary, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny.recurrent(vocabulary).save(folder)
    harm(folder)
    with pytest.raises(StorageError, match=what) as caught:
        load_translator(folder)
    assert str(folder) in str(caught.value)


def rewrite(folder: Path, **changes) -> None:
    file = folder / "translator.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def without_bias(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["bias"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


# --------------------------------------------------------------------------------------------------------- named sizes


@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.endswith(("base", "paper", "small"))])
def test_named_sizes_make_what_their_name_says(variant: str, vocabulary) -> None:
    model = make_translator(variant, vocabulary, dropout=0.5)
    family = variant.partition("-")[0]
    assert model.architecture == {"t5": "transformer", "whisper": "speech"}.get(family, family)
    assert model.vocabulary is vocabulary
    dropouts = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    assert dropouts <= {0.5} and (dropouts or model.network.config.dropout == 0.5)


def test_an_unknown_size_is_refused(vocabulary) -> None:
    with pytest.raises(ConfigurationError, match="masked-toy"):
        make_translator("masked-huge", vocabulary)


@pytest.mark.parametrize("change", [{"widht": 8}, {"width": 0.5}, {"dropout": 3.0}, {"heads": 5}, {"heads": 0}])
@pytest.mark.parametrize("variant", ["masked-toy", "transformer-toy"])
def test_an_impossible_change_is_refused_in_one_sentence(variant: str, change: dict[str, float], vocabulary) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(change))):
        make_translator(variant, vocabulary, **change)
