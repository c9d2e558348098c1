"""The model registry: a model folder becomes a version, and the alias `champion` moves only to a better one."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

import energymt
from energymt.errors import StorageError
from energymt.storage import MANIFEST, verify_manifest
from energymt.tracking import tracking_uri
from energymt.tracking.store import OUTAGE, current_store, ensure_experiment, first_line, open_client

CHAMPION = "champion"
REQUIREMENTS = ("torch", "transformers", "sentencepiece", "safetensors", "numpy", "pydantic", "pyyaml", "mlflow")
METRIC_TAG, MODE_TAG, VALUE_TAG, CONTENT_TAG = "metric", "metric_mode", "metric_value", "content_sha256"
# The signature follows from it: lines of text and whole numbers, of which 0 means "the default of the model's kind".
TRANSLATOR_EXAMPLE = (["A sentence."], {"beam": 0, "length_beam": 0, "iterations": 0})
ESTIMATOR_EXAMPLE = pd.DataFrame({"source": ["Ein Satz."], "translation": ["A sentence."]})


@dataclass(frozen=True)
class RegisteredVersion:
    """A version in the registry, and whether it became the champion; `reason` says why or why not."""

    name: str
    version: str
    champion: bool
    reason: str

    @property
    def address(self) -> str:
        """What `fetch` and MLflow load it by."""
        return f"models:/{self.name}/{self.version}"


def register_model(
    folder: Path,
    name: str,
    *,
    metric: str,
    value: float,
    mode: Literal["max", "min"],
    run_id: str | None = None,
    uri: str | None = None,
    tags: dict[str, str] | None = None,
) -> RegisteredVersion:
    """Register the model in `folder` as the next version of `name`; it is champion if `value` is the best so far.

    `run_id` is the run it came from; None makes a run for it. What a run has registered before is found again. Raises
    StorageError if the folder is not whole or the registry does not take it.
    """
    provenance, content = verify_manifest(folder), _content(folder)
    uri = tracking_uri(uri)
    try:
        client = open_client(uri)
        known = None if run_id is None else _known(client, name, run_id, content)
        if known is not None:
            return known
        number = _log(client, uri, folder, name, run_id)
        for key, text in {METRIC_TAG: metric, MODE_TAG: mode, VALUE_TAG: repr(float(value)), **(tags or {})}.items():
            client.set_model_version_tag(name, number, key, text)
        for key in ("trainable", "energymt", "steps"):
            if key in provenance:
                client.set_model_version_tag(name, number, key, str(provenance[key]))
        better, reason = _is_better(client, name, metric, value, mode)
        if better:
            client.set_registered_model_alias(name, CHAMPION, number)
        client.set_model_version_tag(name, number, CONTENT_TAG, content)  # last: now it is complete
        return RegisteredVersion(name, number, better, reason)
    except OUTAGE as error:
        raise StorageError(
            f"{folder} is complete, but could not be registered as '{name}' in {uri} ({first_line(error)}); "
            f"start the same command again to register it."
        ) from error


def _content(folder: Path) -> str:
    """sha256 over the hashes of all files of a folder."""
    files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _known(client: MlflowClient, name: str, run_id: str, content: str) -> RegisteredVersion | None:
    """The version that this run has registered of the same files."""
    for found in client.search_model_versions(f"run_id = '{run_id}'"):
        if found.name == name and found.tags.get(CONTENT_TAG) == content:
            champion = client.get_registered_model(name).aliases.get(CHAMPION)
            return RegisteredVersion(name, str(found.version), str(champion) == str(found.version), "as before")
    return None


def _log(client: MlflowClient, uri: str, folder: Path, name: str, run_id: str | None) -> str:
    if run_id is None:
        run_id = client.create_run(ensure_experiment(client, uri, "registered"), run_name=name).info.run_id
    before = client.get_run(run_id).info
    kind, example, signature = _kind(folder)
    with current_store(uri), mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow would like type hints in place of the signature that it is given
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(Path(__file__).with_name(f"{kind}_model.py")),
            artifacts={"model": str(folder)},
            code_paths=[str(Path(energymt.__file__).parent)],
            input_example=example,
            signature=signature,
            pip_requirements=_requirements(),
            registered_model_name=name,
        )
    if before.status != "RUNNING":  # MLflow has opened and ended the run again
        client.set_terminated(run_id, before.status, before.end_time)
    return str(logged.registered_model_version)


def _kind(folder: Path) -> tuple[str, Any, ModelSignature | None]:
    """Which code loads a model folder, an example of what its model is given, and where that says too little, what."""
    from energymt.models.estimator_folder import ESTIMATOR_FILE
    from energymt.models.proxy import PROXY_FILE

    if (folder / ESTIMATOR_FILE).is_file():
        return "estimator", ESTIMATOR_EXAMPLE, None
    if (folder / PROXY_FILE).is_file():
        width = json.loads((folder / PROXY_FILE).read_text(encoding="utf-8"))["width"]
        states, scores = TensorSpec(np.dtype(np.float32), (-1, -1, width)), TensorSpec(np.dtype(np.float32), (-1,))
        signature = ModelSignature(Schema([states]), Schema([scores]))  # an example has a number of states of its own
        return "proxy", np.zeros((1, 2, width), dtype=np.float32), signature
    return "translator", TRANSLATOR_EXAMPLE, None


def _is_better(client: MlflowClient, name: str, metric: str, value: float, mode: str) -> tuple[bool, str]:
    if not math.isfinite(value):
        return False, f"{metric} is {value}"
    aliases = client.get_registered_model(name).aliases
    if CHAMPION not in aliases:
        return True, "the first with a finite metric"
    champion = client.get_model_version_by_alias(name, CHAMPION)
    if champion.tags.get(METRIC_TAG) != metric or champion.tags.get(MODE_TAG) != mode:
        return False, f"version {champion.version} was measured by {champion.tags.get(METRIC_TAG)}, not by {metric}"
    best = float(champion.tags[VALUE_TAG])
    better = value > best if mode == "max" else value < best
    return better, f"{metric} {value:.4g} against {best:.4g} of version {champion.version}"


def _requirements() -> list[str]:
    """What loading needs, at the versions of this environment; energymt itself travels with the model."""
    pinned = []
    for package in REQUIREMENTS:
        try:
            pinned.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return pinned
