"""From an official COMET folder (`hparams.yaml`, `checkpoints/model.ckpt`) to an estimator folder, once."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig

from energymt.data.hub import HubVocabulary
from energymt.errors import ConfigurationError, StorageError
from energymt.folders import atomic_folder, write_manifest
from energymt.models.comet_settings import effective, estimator_config, read_listed
from energymt.models.estimator import QualityEstimator
from energymt.models.estimator_config import EstimatorConfig
from energymt.models.estimator_folder import write_estimator
from energymt.storage import HUB_ID, fetch

ENCODER_TYPES = {"XLM-RoBERTa": "xlm-roberta", "XLM-RoBERTa-XL": "xlm-roberta-xl", "MiniLM": "bert"}
MINILM_TOKENIZER = "xlm-roberta-base"  # MiniLM reads the pieces of XLM-R
NAMES = {
    "encoder.model.": "encoder.",
    "estimator.ff.": "head.",
    "hidden2tag.": "labels.",
    "layerwise_attention.gamma": "mix.gamma",
}
MIX_WEIGHTS = "layerwise_attention.scalar_parameters."  # one scalar a layer, each under its number
# What a score does not need: an unused pooling layer, buffers, the weights of losses.
UNUSED = (
    *("encoder.model.pooler.", "encoder.model.embeddings.position_ids", "encoder.model.embeddings.token_type_ids"),
    *("layerwise_attention.dropout_", "wordloss.", "sentloss.", "train_", "val_"),
)


def convert_comet(folder: str | Path, output: Path, tokenizer: str | Path | None = None) -> list[str]:
    """Write the estimator folder of a COMET checkpoint; returns what its user should know, a sentence each.

    Args:
        folder: address of the folder with `hparams.yaml` and `checkpoints/model.ckpt`.
        output: folder to write, with a manifest; `load_estimator` reads it.
        tokenizer: address of the encoder's tokenizer and `config.json`; by default the Hugging Face id that
            `hparams.yaml` names as `pretrained_model`, of which no weights are fetched.

    Raises:
        ConfigurationError: a metric, an encoder or weights that an estimator cannot represent.
        StorageError: no COMET folder, a damaged checkpoint, or no tokenizer.
    """
    place = fetch(folder)
    place = place.parent.parent if place.suffix == ".ckpt" else place
    listed = read_listed(place)
    checkpoint = _read_checkpoint(place / "checkpoints" / "model.ckpt")
    settings = effective(listed, checkpoint.get("hyper_parameters"))
    pretrained = str(listed.get("pretrained_model") or settings.get("pretrained_model"))
    encoder, vocabulary = _encoder_parts(settings["encoder_model"], pretrained, tokenizer)
    config = estimator_config(listed["class_identifier"], settings, encoder.num_hidden_layers, place)
    state, notes = _state(checkpoint["state_dict"], config)
    with torch.device("meta"):
        network = AutoModel.from_config(encoder, add_pooling_layer=False)
        expected = QualityEstimator(config, network, vocabulary).state_dict()
    _require_weights(state, expected, place)
    with atomic_folder(output) as part:
        write_estimator(part, config, encoder, state, vocabulary)
        write_manifest(part, {"converted": str(folder), "pretrained_model": pretrained, "notes": notes})
    return notes


def _read_checkpoint(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise StorageError(f"{file} is missing; copy the whole COMET folder again.")
    try:
        checkpoint = _load(file)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and foreign:
            raise ConfigurationError(
                f"{file} holds a Python object besides weights and settings, {foreign[1]}, and energymt runs no code "
                f"of a checkpoint: save it again with state_dict and hyper_parameters alone."
            ) from None
        # What torch says of a pickle that it cannot read is to read it without protection.
        reason = "" if isinstance(error, pickle.UnpicklingError) else str(error).strip().partition("\n")[0].rstrip(".")
        raise StorageError(
            f"{file} is cut or damaged ({reason or type(error).__name__}); copy or download it again."
        ) from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), dict):
        raise StorageError(f"{file} is no Lightning checkpoint (it has no state_dict); name a COMET checkpoint.")
    return checkpoint


def _load(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):  # the format of torch before 1.6
            raise
        return torch.load(file, map_location="cpu", weights_only=True)


# ------------------------------------------------------------------------------------------------------------- encoder


def _encoder_parts(
    family: str, pretrained: str, tokenizer: str | Path | None
) -> tuple[PretrainedConfig, HubVocabulary]:
    """Configuration and tokenizer of the encoder; its weights lie in the checkpoint, and none are fetched."""
    if family not in ENCODER_TYPES:
        raise ConfigurationError(
            f"The checkpoint's encoder is of the kind {family!r}; an estimator's is one of {', '.join(ENCODER_TYPES)}."
        )
    address = tokenizer or (MINILM_TOKENIZER if family == "MiniLM" else pretrained)
    hint = "give the address of a folder with the encoder's tokenizer files and its config.json as `tokenizer`."
    try:
        vocabulary = HubVocabulary.open(_place(address))
    except StorageError as error:
        raise StorageError(f"The tokenizer of the encoder cannot be had: {str(error).rstrip('.')}; {hint}") from None
    for candidate in (address, pretrained):
        try:
            encoder = AutoConfig.from_pretrained(str(_place(candidate)))
        except (OSError, ValueError, StorageError):
            continue
        if encoder.model_type == ENCODER_TYPES[family]:
            return encoder, vocabulary
    raise StorageError(
        f"Neither {address} nor {pretrained} holds the config.json of a {family} encoder (model_type "
        f"{ENCODER_TYPES[family]!r}); {hint}"
    )


def _place(address: str | Path) -> str | Path:
    """A Hugging Face id stays one, for transformers fetches of it what it reads and no weights; the rest is fetched."""
    is_id = HUB_ID.fullmatch(str(address)) and "@" not in str(address) and not Path(address).expanduser().exists()
    return address if is_id else fetch(address)


# ------------------------------------------------------------------------------------------------------------- weights


def _state(weights: Mapping[str, Tensor], config: EstimatorConfig) -> tuple[dict[str, Tensor], list[str]]:
    """COMET's weights under our names, and notes on what was left out; unknown names stay as they are."""
    state: dict[str, Tensor] = {}
    shares: dict[int, Tensor] = {}
    notes: list[str] = []
    for name, tensor in weights.items():
        # A mix is there, but not in use, where COMET pools by `default`.
        if name.startswith(UNUSED) or (config.layer != "mix" and name.startswith("layerwise_attention.")):
            continue
        if name.startswith("hidden2tag.") and config.metric != "xcomet_metric":
            notes = ["The word-level head was left out: an estimator gives sentence scores alone."]
        elif name.startswith(MIX_WEIGHTS):
            shares[int(name.removeprefix(MIX_WEIGHTS))] = tensor
        else:
            theirs = next((start for start in NAMES if name.startswith(start)), "")
            state[NAMES.get(theirs, "") + name.removeprefix(theirs)] = tensor
    if shares:
        state["mix.weights_N"] = torch.cat([shares[layer] for layer in sorted(shares)])
    return state, notes


def _require_weights(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path) -> None:
    unknown, missing = sorted(state.keys() - expected.keys()), sorted(expected.keys() - state.keys())
    if unknown:
        raise ConfigurationError(
            f"The checkpoint in {folder} holds {len(unknown)} weights that its class has no place for (such as "
            f"{unknown[0]}): adapters and other additions must be merged into the encoder first."
        )
    if missing:
        raise StorageError(
            f"The checkpoint in {folder} lacks {len(missing)} weights (such as {missing[0]}): it was cut, or is of "
            f"another class or encoder than hparams.yaml says; download it again."
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ConfigurationError(
                f"The checkpoint in {folder} does not fit its settings: {name} is {list(tensor.shape)}, and "
                f"{list(expected[name].shape)} is expected; the tokenizer's config.json may be of another encoder."
            )
