"""A COMET folder becomes an estimator folder once; what an estimator cannot be is refused in a sentence."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from energymt.errors import ConfigurationError, StorageError
from energymt.models.comet_checkpoint import convert_comet
from energymt.models.estimator import QualityEstimator
from energymt.models.estimator_folder import load_estimator, write_estimator
from energymt.models.scoring import score_lines
from energymt.storage import verify_manifest
from tests import estimators

SIDES = (estimators.SOURCES, estimators.TRANSLATIONS, estimators.REFERENCES)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any], **options: Any) -> Path:
    """The checkpoint of a COMET folder, changed."""
    file = folder / "checkpoints" / "model.ckpt"
    content = torch.load(file, weights_only=True)
    torch.save(change(content) or content, file, **options)
    return folder


def without(content: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != key}


# ----------------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("kind", estimators.KINDS)
def test_a_folder_holds_safetensors_and_json_under_a_manifest(kind: str) -> None:
    folder = estimators.converted(kind)
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".model"}
    provenance = verify_manifest(folder)
    assert provenance["pretrained_model"] == str(estimators.pretrained())
    assert provenance["converted"].endswith("comet")


@pytest.mark.parametrize("kind", estimators.KINDS)
def test_an_estimator_comes_back_as_it_was(kind: str, tmp_path: Path) -> None:
    model = estimators.estimator(kind)
    write_estimator(tmp_path, model.config, model.encoder.config, model.state_dict(), model.vocabulary)
    again = load_estimator(tmp_path)
    assert again.config == model.config
    assert score_lines(again, *SIDES) == score_lines(model, *SIDES)


def test_the_checkpoint_file_may_be_named_itself(tmp_path: Path) -> None:
    folder = estimators.official(tmp_path / "comet", "kiwi")
    assert convert_comet(folder / "checkpoints" / "model.ckpt", tmp_path / "out") == []
    assert score_lines(load_estimator(tmp_path / "out"), *SIDES) == score_lines(estimators.estimator("kiwi"), *SIDES)


def test_a_word_level_head_is_left_out_with_a_note(tmp_path: Path) -> None:
    state = {**estimators.weights("kiwi"), "hidden2tag.weight": torch.ones(3, 12), "hidden2tag.bias": torch.ones(3)}
    folder = estimators.official(tmp_path / "comet", "kiwi", state)
    (note,) = convert_comet(folder, tmp_path / "out")
    assert "word-level head" in note
    assert verify_manifest(tmp_path / "out")["notes"] == [note]
    assert score_lines(load_estimator(tmp_path / "out"), *SIDES) == score_lines(estimators.estimator("kiwi"), *SIDES)


def test_the_first_token_of_the_last_layer_for_the_pool_default(tmp_path: Path) -> None:
    convert_comet(estimators.official(tmp_path / "comet", "referenceless", pool="default"), tmp_path / "out")
    model = load_estimator(tmp_path / "out")
    assert (model.config.layer, model.config.pool, model.mix) == (estimators.LAYERS, "cls", None)


@pytest.mark.parametrize(
    "listed, inside, wanted",
    [
        ("sparsemax_patch", "sparsemax", "softmax"),
        ("sparsemax", "sparsemax_patch", "softmax"),
        ("sparsemax", "softmax", "softmax"),
        ("softmax", "sparsemax", "sparsemax"),
        ("softmax", None, "softmax"),  # a checkpoint without settings of its own
    ],
)
def test_which_settings_count(listed: str, inside: str | None, wanted: str, tmp_path: Path) -> None:
    folder = estimators.official(tmp_path / "comet", "kiwi", layer_transformation=inside or listed)
    if inside is None:
        rewrite(folder, lambda content: without(content, "hyper_parameters"))
    file = folder / "hparams.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "layer_transformation": listed}))
    convert_comet(folder, tmp_path / "out")
    assert load_estimator(tmp_path / "out").config.transformation == wanted


def test_what_a_checkpoint_does_not_name_is_as_comet_has_it(tmp_path: Path) -> None:
    folder = estimators.official(tmp_path / "comet", "referenceless")
    rewrite(folder, lambda content: content["hyper_parameters"].pop("layer_norm") and None)
    convert_comet(folder, tmp_path / "out")
    config = load_estimator(tmp_path / "out").config
    assert (config.layer_norm, config.pool, config.layer) == (True, "avg", "mix")
    assert (config.transformation, config.activation, config.final_activation) == ("softmax", "tanh", None)


def test_a_checkpoint_in_the_format_of_before_torch_1_6(tmp_path: Path) -> None:
    folder = estimators.official(tmp_path / "comet", "kiwi")
    rewrite(folder, lambda content: None, _use_new_zipfile_serialization=False)
    convert_comet(folder, tmp_path / "out")
    assert score_lines(load_estimator(tmp_path / "out"), *SIDES) == score_lines(estimators.estimator("kiwi"), *SIDES)


def test_a_failed_conversion_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(StorageError, match="disk is full"):
        convert_comet(estimators.official(tmp_path / "comet", "kiwi"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["comet"]


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"class_identifier": "ranking_metric"}, "the class 'ranking_metric'; an estimator can be one of regression"),
        ({"class_identifier": None}, "the class None"),
        ({"encoder_model": "RemBERT"}, "of the kind 'RemBERT'; an estimator's is one of XLM-RoBERTa"),
        ({"encoder_model": "BERT"}, "of the kind 'BERT'"),
        ({"activations": "Swish"}, "activation is 'swish'"),
        ({"layer_transformation": "entmax"}, "transformation is 'entmax'"),
        ({"sent_layer": "last"}, "layer is 'last'"),
        ({"sent_layer": 7}, "layer 7, but its encoder has 0 to 2"),
        ({"input_segments": ["mt"]}, r"parts is \['mt'\]"),
        ({"hidden_sizes": []}, r"hidden_sizes is \[\]"),
        ({"hidden_sizes": [10, 7]}, r"head.3.weight is \[6, 10\], and \[7, 10\] is expected"),
    ],
)
def test_settings_that_no_estimator_has(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = estimators.official(tmp_path / "comet", "kiwi", **changes)
    with pytest.raises(ConfigurationError, match=message):
        convert_comet(folder, tmp_path / "out", estimators.pretrained())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "kind, changes, message",
    [
        ("referenceless", {"pool": "median"}, "pool is 'median'"),
        ("xcomet", {"error_labels": ["minor", "major"]}, r"labels errors as \['minor', 'major'\]"),
    ],
)
def test_settings_that_no_estimator_of_this_kind_has(kind: str, changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        convert_comet(estimators.official(tmp_path / "comet", kind, **changes), tmp_path / "out")


ADAPTER = "encoder.model.encoder.layer.0.output.adapters.nmt.adapter_down.0.weight"


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (
            {ADAPTER: torch.ones(2, 12)},
            ConfigurationError,
            "1 weights that its class has no place for .*adapters.*merged",
        ),
        ({"estimator.ff.6.bias": None}, StorageError, r"lacks 1 weights \(such as head.6.bias\)"),
        ({"layerwise_attention.scalar_parameters.2": None}, ConfigurationError, r"mix.weights_N is \[2\], and \[3\]"),
        (
            {"encoder.model.embeddings.LayerNorm.bias": torch.ones(5)},
            ConfigurationError,
            "config.json may be of another",
        ),
    ],
)
def test_weights_that_do_not_fit(changes: dict, error: type[Exception], message: str, tmp_path: Path) -> None:
    state = {name: value for name, value in {**estimators.weights("kiwi"), **changes}.items() if value is not None}
    with pytest.raises(error, match=message):
        convert_comet(estimators.official(tmp_path / "comet", "kiwi", state), tmp_path / "out")


def test_a_folder_that_is_none_of_comet(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"is no COMET checkpoint \(hparams.yaml is missing\)"):
        convert_comet(tmp_path, tmp_path / "out")
    folder = estimators.official(tmp_path / "comet", "kiwi")
    (folder / "checkpoints" / "model.ckpt").rename(tmp_path / "elsewhere.ckpt")
    with pytest.raises(StorageError, match=r"model.ckpt is missing"):
        convert_comet(folder, tmp_path / "out")


@pytest.mark.parametrize("text", ["- a list", "a: [1", "a: !!python/object/apply:os.getcwd []"])
def test_settings_that_cannot_be_read(text: str, tmp_path: Path) -> None:
    folder = estimators.official(tmp_path / "comet", "kiwi")
    (folder / "hparams.yaml").write_text(text)
    with pytest.raises(StorageError, match=r"hparams.yaml .*download the checkpoint again"):
        convert_comet(folder, tmp_path / "out")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"no pickle"])
def test_a_damaged_checkpoint(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    folder = estimators.official(tmp_path / "comet", "kiwi")
    file = folder / "checkpoints" / "model.ckpt"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(StorageError, match=r"model.ckpt is cut or damaged"):
        convert_comet(folder, tmp_path / "out")


def test_a_checkpoint_without_weights(tmp_path: Path) -> None:
    folder = rewrite(estimators.official(tmp_path / "comet", "kiwi"), lambda content: without(content, "state_dict"))
    with pytest.raises(StorageError, match="is no Lightning checkpoint"):
        convert_comet(folder, tmp_path / "out")


class Trap:
    """Code that a pickle would run."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_of_a_checkpoint_runs(zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = estimators.official(tmp_path / "comet", "kiwi")
    rewrite(folder, lambda content: {**content, "trap": Trap()}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ConfigurationError, match=r"Python object besides weights and settings, posix.mkdir, "):
        convert_comet(folder, tmp_path / "out")
    assert not (tmp_path / "trapped").exists()


def test_a_plain_pickle_is_no_checkpoint(tmp_path: Path) -> None:
    folder = estimators.official(tmp_path / "comet", "kiwi")
    (folder / "checkpoints" / "model.ckpt").write_bytes(pickle.dumps({"state_dict": {}}, protocol=2))
    with pytest.raises((ConfigurationError, StorageError), match=r"model.ckpt"):
        convert_comet(folder, tmp_path / "out")


# ---------------------------------------------------------------------------------------------- the encoder's own files


def test_a_tokenizer_may_lie_elsewhere(tmp_path: Path) -> None:
    folder = estimators.official(tmp_path / "comet", "kiwi", pretrained_model="nobody/no-such-encoder")
    convert_comet(folder, tmp_path / "out", tokenizer=estimators.pretrained())
    assert score_lines(load_estimator(tmp_path / "out"), *SIDES) == score_lines(estimators.estimator("kiwi"), *SIDES)


@pytest.mark.parametrize("name", ["nobody/no-such-encoder", "/no/such/folder"])
def test_a_tokenizer_that_cannot_be_fetched_is_asked_for(name: str, tmp_path: Path) -> None:
    folder = estimators.official(tmp_path / "comet", "kiwi", pretrained_model=name)
    with pytest.raises(StorageError, match=rf"tokenizer of the encoder cannot be had: .*{name}.* as `tokenizer`"):
        convert_comet(folder, tmp_path / "out")


def test_the_tokenizer_of_minilm_is_that_of_xlm_r(tmp_path: Path) -> None:
    folder = estimators.official(tmp_path / "comet", "kiwi", family="MiniLM")
    with pytest.raises(StorageError, match="xlm-roberta-base"):
        convert_comet(folder, tmp_path / "out")


def test_the_configuration_of_another_encoder_is_not_taken(tmp_path: Path) -> None:
    folder = estimators.official(tmp_path / "comet", "kiwi", pretrained_model="nobody/no-such-encoder")
    with pytest.raises(
        StorageError, match=r"holds the config.json of a XLM-RoBERTa encoder \(model_type 'xlm-roberta'"
    ):
        convert_comet(folder, tmp_path / "out", tokenizer=estimators.pretrained("MiniLM"))


def test_a_tokenizer_of_more_tokens_than_the_encoder_has(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    for file in estimators.pretrained().iterdir():
        (small / file.name).write_bytes(file.read_bytes())
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "vocab_size": 20}))
    with pytest.raises(ConfigurationError, match="the encoder embeds 20: they do not belong together"):
        convert_comet(estimators.official(tmp_path / "comet", "kiwi"), tmp_path / "out", tokenizer=small)


# ---------------------------------------------------------------------------------------------------- what is read back


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    convert_comet(estimators.official(tmp_path / "comet", "kiwi"), tmp_path / "out")
    return tmp_path / "out"


def test_a_comet_folder_is_converted_first(folder: Path) -> None:
    comet = folder.parent / "comet"
    with pytest.raises(StorageError, match=rf"COMET checkpoint: .*\(energymt models import {comet} FOLDER\)"):
        load_estimator(comet)
    with pytest.raises(StorageError, match=r"holds no estimator .* `energymt models import`"):
        load_estimator(folder.parent)


@pytest.mark.parametrize("text", ["{", "{}", '{"metric": "unified_metric", "extra": 1}'])
def test_a_damaged_description(text: str, folder: Path) -> None:
    (folder / "estimator.json").write_text(text)
    with pytest.raises(StorageError, match=r"estimator.json is damaged"):
        load_estimator(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors"])
def test_damaged_weights(name: str, folder: Path) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-20])
    with pytest.raises(StorageError, match=r"cannot be used .*copy the whole folder again"):
        load_estimator(folder)
    (folder / name).unlink()
    with pytest.raises(StorageError, match=r"cannot be used"):
        load_estimator(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "head.safetensors"])
def test_weights_that_are_not_all_there(name: str, folder: Path) -> None:
    state = safetensors.torch.load_file(folder / name)
    lost = sorted(state)[-1]
    safetensors.torch.save_file(without(state, lost), folder / name, metadata={"format": "pt"})
    with pytest.raises(StorageError, match=rf"{name} .*{lost}"):
        load_estimator(folder)


def test_an_encoder_that_numbers_embeddings_in_another_way_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(self: QualityEstimator, emb_BJD: torch.Tensor, mask_BJ: torch.Tensor) -> Any:
        positions = torch.arange(mask_BJ.shape[1]).expand_as(mask_BJ) + 1
        return [self.encoder(inputs_embeds=emb_BJD, attention_mask=mask_BJ.long(), position_ids=positions)[0]]

    monkeypatch.setattr(QualityEstimator, "states", shifted)
    with pytest.raises(ConfigurationError, match="cannot score soft tokens"):
        load_estimator(folder)
