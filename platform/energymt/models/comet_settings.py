"""The settings of a COMET checkpoint as the configuration of an estimator.

They are those that unbabel-comet 2.2.7 would use: the ones inside the checkpoint, and `hparams.yaml` for the class
alone, with one exception: where that file says `sparsemax_patch`, the layers are mixed by softmax. (Versions up to
2.2.4 took softmax whatever the settings said, and the published scores of such models stand on it.)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from energymt.errors import ConfigurationError, StorageError
from energymt.models.estimator_config import EstimatorConfig

SETTINGS_FILE = "hparams.yaml"
SEVERITIES = ["minor", "major", "critical"]
REGRESSION = {
    "layer": "mix",
    "layer_transformation": "softmax",
    "layer_norm": True,
    "pool": "avg",
    "hidden_sizes": [3072, 1024],
    "activations": "Tanh",
    "final_activation": None,
    "dropout": 0.1,
    "encoder_model": "XLM-RoBERTa",
}
UNIFIED = {
    **REGRESSION,
    "sent_layer": "mix",
    "layer_transformation": "sparsemax",
    "input_segments": ["mt", "src", "ref"],
}
DEFAULTS: dict[str, dict[str, Any]] = {  # what COMET takes for a setting that a checkpoint does not name
    "regression_metric": REGRESSION,
    "referenceless_regression_metric": {**REGRESSION, "hidden_sizes": [2048, 1024]},
    "unified_metric": UNIFIED,
    "xcomet_metric": {
        **UNIFIED,
        "encoder_model": "XLM-RoBERTa-XL",
        "layer_norm": False,
        "hidden_sizes": [2560, 1280],
        "word_layer": 36,
        "error_labels": SEVERITIES,
    },
}


def read_listed(folder: Path) -> dict[str, Any]:
    """What `hparams.yaml` lists.

    Raises:
        StorageError: the folder has no such file, or it cannot be read.
        ConfigurationError: the class that it names has no estimator.
    """
    file = folder / SETTINGS_FILE
    if not file.is_file():
        raise StorageError(
            f"{folder} is no COMET checkpoint ({SETTINGS_FILE} is missing); name the folder that holds "
            f"{SETTINGS_FILE} and checkpoints/model.ckpt."
        )
    try:
        listed = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise StorageError(f"{file} cannot be read ({reason}); download the checkpoint again.") from None
    if not isinstance(listed, dict):
        raise StorageError(f"{file} holds no keys and values; download the checkpoint again.")
    metric = listed.get("class_identifier")
    if metric not in DEFAULTS:
        raise ConfigurationError(
            f"{file} names the class {metric!r}; an estimator can be one of {', '.join(DEFAULTS)}."
        )
    return listed


def effective(listed: Mapping[str, Any], inside: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings that count: `inside` the checkpoint, or those listed where it has none; defaults for the rest."""
    settings = {**DEFAULTS[listed["class_identifier"]], **(inside or listed)}
    if "sparsemax_patch" in (listed.get("layer_transformation"), settings["layer_transformation"]):
        settings["layer_transformation"] = "softmax"
    return settings


def estimator_config(metric: str, settings: Mapping[str, Any], encoder_layers: int, folder: Path) -> EstimatorConfig:
    """The configuration of an estimator with an encoder of that many layers.

    Raises:
        ConfigurationError: a setting that an estimator does not have.
    """
    joint = metric in ("unified_metric", "xcomet_metric")
    parts = {"unified_metric": settings.get("input_segments"), "referenceless_regression_metric": ["src"]}
    others = [part for part in ("src", "ref") if part in (parts.get(metric) or ("src", "ref"))]
    labels = settings.get("error_labels")
    if metric == "xcomet_metric" and labels != SEVERITIES:
        raise ConfigurationError(f"The checkpoint in {folder} labels errors as {labels}, not as {SEVERITIES}.")
    # COMET ignores `pool` where inputs are joint. Its `default` is the first token of the last layer.
    last = not joint and settings["pool"] == "default"
    final = settings["final_activation"]
    values = {
        "metric": metric,
        "parts": ["mt", *others],
        "layer": encoder_layers if last else settings["sent_layer" if joint else "layer"],
        "transformation": settings["layer_transformation"],
        "layer_norm": settings["layer_norm"],
        "pool": "cls" if joint or last else settings["pool"],
        "hidden_sizes": settings["hidden_sizes"],
        "activation": str(settings["activations"]).lower(),
        "final_activation": None if final is None else str(final).lower(),
        "dropout": settings["dropout"],
        "word_layer": settings["word_layer"] if metric == "xcomet_metric" else None,
    }
    try:
        return EstimatorConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigurationError(
            f"The checkpoint in {folder} cannot be an estimator: its {first['loc'][0]} is {first['input']!r} "
            f"({first['msg'][:1].lower()}{first['msg'][1:]})."
        ) from None
