"""Where a result comes from: configuration, code revision, package versions, seed. Written into the run and MLflow."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from energymt import __version__
from energymt.folders import write_atomically
from energymt.tracking import Tracker

PACKAGES = (
    *("torch", "lightning", "transformers", "numpy", "sentencepiece", "sacrebleu", "ray", "mlflow", "pydantic"),
    *("ctranslate2", "onnxruntime", "unbabel-comet"),
)
FILE = "provenance.json"


def describe_run(tracker: Tracker, trainable: str, config: dict[str, Any], folder: Path) -> dict[str, str]:
    """Log the configuration as flat parameters and the provenance as tags and as a file; returns the provenance."""
    facts = provenance()
    write_atomically(folder / FILE, json.dumps({"trainable": trainable, **facts, "config": config}, indent=1))
    tracker.params({"trainable": trainable, **flat(config)})
    tracker.tags({"trainable": trainable, "seed": str(config.get("seed", "")), **facts})
    tracker.artifact(folder / FILE)
    return facts


def provenance() -> dict[str, str]:
    """Revision of the checkout (with a flag for changes that are in no revision), versions, machine, command."""
    facts = {"energymt": __version__, "python": platform.python_version(), "machine": platform.platform()}
    facts |= git_state(Path(__file__).resolve().parent)
    for package in PACKAGES:
        try:
            facts[f"package.{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return facts | {"command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])}


def git_state(folder: Path) -> dict[str, str]:
    """`git_revision` and `git_dirty` of the checkout that holds `folder`; empty outside a checkout or without git."""
    try:
        revision = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git_revision": revision, "git_dirty": str(bool(changed)).lower()}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings with dotted keys; those without a value are left out."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            result[f"{prefix}{name}"] = value
    return result
