"""A quality estimator in a folder: the encoder as a Hugging Face checkpoint, the layers above it, the tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from energymt.data.hub import HubVocabulary
from energymt.data.vocabulary import load_vocabulary
from energymt.errors import ConfigurationError, StorageError
from energymt.models.estimator import MARKERS, QualityEstimator, longest_input
from energymt.models.estimator_config import EstimatorConfig, Order
from energymt.models.pretrained import without_bars

ESTIMATOR_FILE = QualityEstimator.FILE
ENCODER_WEIGHTS_FILE = "model.safetensors"
HEAD_FILE = "head.safetensors"
TABLE = "word_embeddings.weight"  # of XLM-R, XLM-R-XL and BERT alike
ENCODER = "encoder."  # what the encoder's weights are called in a state


def write_estimator(
    folder: Path,
    config: EstimatorConfig,
    encoder: PretrainedConfig,
    state: Mapping[str, Tensor],
    vocabulary: HubVocabulary,
) -> None:
    """Write configuration, weights (a `QualityEstimator.state_dict()`) and tokenizer; `load_estimator` reads them."""
    vocabulary.save(folder)
    encoder.save_pretrained(folder)
    weights = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    below = {name.removeprefix(ENCODER): tensor for name, tensor in weights.items() if name.startswith(ENCODER)}
    above = {name: tensor for name, tensor in weights.items() if not name.startswith(ENCODER)}
    safetensors.torch.save_file(below, folder / ENCODER_WEIGHTS_FILE, metadata={"format": "pt"})
    safetensors.torch.save_file(above, folder / HEAD_FILE)
    (folder / ESTIMATOR_FILE).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_estimator(folder: Path | str, order: Order = "comet") -> QualityEstimator:
    """The estimator in a folder that `convert_comet` or `write_estimator` wrote: in eval mode, every weight frozen.

    Raises:
        StorageError: the folder holds no estimator, or a damaged one.
        ConfigurationError: an order that this metric does not have, or an encoder that reads embeddings in another
            way than token ids.
    """
    folder = Path(folder)
    config = read_estimator_config(folder)
    vocabulary = load_vocabulary(folder)
    if not isinstance(vocabulary, HubVocabulary):
        raise StorageError(f"{folder} holds a {vocabulary.kind} vocabulary, which no estimator has; convert it again.")
    try:
        estimator = QualityEstimator(config, read_encoder(folder), vocabulary, order)
        missing, unknown = estimator.load_state_dict(safetensors.torch.load_file(folder / HEAD_FILE), strict=False)
        wrong = [name for name in missing if not name.startswith(ENCODER)] + unknown
        if wrong:
            raise ValueError(f"{HEAD_FILE} and {ESTIMATOR_FILE} disagree on {wrong[0]}")
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:  # missing, cut, or of other shapes
        reason = " ".join(str(error).split()).rstrip(".")
        raise StorageError(f"The weights in {folder} cannot be used ({reason}); copy the whole folder again.") from None
    estimator.eval().requires_grad_(False)
    _require_identity(estimator)
    return estimator


def read_estimator_config(folder: Path) -> EstimatorConfig:
    """What kind of estimator a folder holds, without its weights.

    Raises:
        StorageError: it holds none, or a damaged one.
    """
    file = folder / ESTIMATOR_FILE
    if not file.is_file():
        hint = (
            "name a folder that `energymt train estimator` or `energymt models import` (of a COMET checkpoint) wrote."
        )
        if (folder / "hparams.yaml").is_file():
            hint = f"it is a COMET checkpoint: make an estimator of it first (energymt models import {folder} FOLDER)."
        raise StorageError(f"{folder} holds no estimator ({ESTIMATOR_FILE} is missing); {hint}")
    try:
        return EstimatorConfig.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:  # no JSON, or not these keys
        raise StorageError(
            f"{file} is damaged ({' '.join(str(error).split())}); copy the whole folder again."
        ) from None


def load_table(folder: Path | str) -> tuple[Tensor, HubVocabulary]:
    """The token embeddings and the vocabulary of an estimator alone, for whoever mixes rows and is scored elsewhere.

    The table is mapped into memory, one copy for all processes of a machine.

    Raises:
        StorageError: the folder holds no estimator, or a damaged one.
    """
    folder = Path(folder)
    vocabulary = load_vocabulary(folder)
    try:
        with safe_open(folder / ENCODER_WEIGHTS_FILE, framework="pt") as file:
            (name,) = [name for name in file.keys() if name.endswith(TABLE)]  # noqa: SIM118 - no mapping
            table_VD: Tensor = file.get_tensor(name)[: vocabulary.size].float()
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise StorageError(
            f"No embeddings can be read from {folder} ({reason}); copy the whole folder again."
        ) from None
    assert isinstance(vocabulary, HubVocabulary)
    return table_VD, vocabulary


def read_longest_text(folder: Path | str) -> int:
    """`QualityEstimator.longest_text` of the estimator in a folder, without its weights."""
    return longest_input(AutoConfig.from_pretrained(folder, local_files_only=True)) - MARKERS


def read_encoder(folder: Path) -> PreTrainedModel:
    """The encoder in a folder, in float32 and without its own pooling layer.

    Raises:
        OSError, RuntimeError, TypeError, ValueError, SafetensorError: there is none, or it is cut or of another kind.
    """
    with without_bars():
        network, report = AutoModel.from_pretrained(
            folder, add_pooling_layer=False, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    if report["missing_keys"]:  # they would be left at random values
        raise ValueError(f"{ENCODER_WEIGHTS_FILE} lacks {min(report['missing_keys'])}")
    return network


@torch.no_grad()
def _require_identity(estimator: QualityEstimator) -> None:
    """Embeddings in must be token ids in: another numbering of positions, say, would make soft scores meaningless."""
    words = estimator.vocabulary
    rows = [[words.bos_id, *range(4, 9), words.eos_id], [words.bos_id, 4, words.eos_id, *[words.pad_id] * 4]]
    ids_BJ = torch.tensor(rows).clamp(max=words.size - 1)
    mask_BJ = ids_BJ != words.pad_id
    wanted_BJD = estimator.encoder(input_ids=ids_BJ, attention_mask=mask_BJ.long()).last_hidden_state
    found_BJD = estimator.states(estimator.lookup(ids_BJ), mask_BJ)[-1]
    gap = (found_BJD - wanted_BJD)[mask_BJ].abs().max().item()
    if not gap <= 1e-4 * (1.0 + wanted_BJD.abs().max().item()):
        raise ConfigurationError(
            f"{type(estimator.encoder).__name__} cannot score soft tokens: its states from token ids and from their "
            f"embeddings differ by {gap:.2g}, so relaxed tokens would not mean the same as tokens."
        )
