"""A search space: a module that says which trainable, which ranges and why, which metric, and how much it may cost.

TRAINABLE = "engine"
SPACE = {"feed": tune.grid_search(["SX", "ST"]), ...}     dotted keys of the trainable's Config, Tune domains
METRIC, MODE = "dev/energy", "min"                         "dev/choice": what the configuration of qe_ebm chooses by
BUDGET = Budget(steps=2000, scheduler="asha", grace_steps=500)
CONFIG = {...}                                            optional: settings that all trials share
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from energymt.cluster.runtime import prepare_environment
from energymt.configuration import TrainingConfig, apply_setting, read_values, validate
from energymt.errors import ConfigurationError
from energymt.runs import load_trainable, names_in

NAMES = ("TRAINABLE", "SPACE", "METRIC", "MODE", "BUDGET")
LONGEST_NAME = 60


@dataclass(frozen=True)
class Budget:
    """What a sweep may cost, and which trials end early."""

    steps: int | None = None  # optimizer steps of a trial; None: as the configuration says
    scheduler: Literal["fifo", "asha"] = "fifo"  # asha ends the worse trials early
    grace_steps: int = 1  # asha: no trial ends before
    reduction: int = 3  # asha: one in so many goes on at each rung
    samples: int = 1  # draws from the random domains of the space, each with the whole grid
    seed: int = 1  # of those draws
    workers: int = 1  # training processes of a trial
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    at_once: int | None = None  # most trials at the same time; None: as many as fit


@dataclass(frozen=True)
class Cell:
    """One point of the space: what it sets, the full configuration, and a name that is the same at every start."""

    name: str
    values: dict[str, Any]
    config: TrainingConfig


def load_space(name: str) -> types.ModuleType:
    """The module of a search space, by its name in `search_spaces/` or by dotted path."""
    dotted = name if "." in name else f"search_spaces.{name}"
    prepare_environment()  # before a space imports Ray
    try:
        module = importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name is None or not dotted.startswith(error.name):
            raise
        raise ConfigurationError(
            f"There is no search space {name!r}; known are {', '.join(space_names())}, or give a dotted path."
        ) from None
    missing = [needed for needed in NAMES if not hasattr(module, needed)]
    if missing:
        raise ConfigurationError(f"{module.__file__} is no search space: it lacks {', '.join(missing)}.")
    if module.MODE not in ("min", "max"):
        raise ConfigurationError(f"{module.__file__}: MODE is {module.MODE!r}; use 'min' or 'max'.")
    return module


def space_names() -> list[str]:
    """The search spaces that come with the project."""
    return names_in("search_spaces")


def cells(space: types.ModuleType, file: Path | None, settings: Sequence[str]) -> list[Cell]:
    """Every point of the space with its checked configuration; the same list at every start.

    A setting overrules the file, which overrules the space's CONFIG; the space's own values come last.
    Raises ConfigurationError for a key or a value that the trainable does not know, before anything is started.
    """
    schema = load_trainable(space.TRAINABLE).Config
    origin = f"the search space {space.__name__}"
    found: dict[str, Cell] = {}
    for point in _points(space.SPACE, space.BUDGET):
        values = _merged(getattr(space, "CONFIG", {}), read_values(file) if file else {})
        if space.BUDGET.steps is not None:
            values["steps"] = space.BUDGET.steps
        for setting in settings:
            apply_setting(values, setting)
        for key, value in point.items():
            _set(values, key, value, origin)
        name = _name(point)
        found[name] = Cell(name, point, validate(schema, values, origin))
    return list(found.values())


def _points(domains: dict[str, Any], budget: Budget) -> list[dict[str, Any]]:
    """The grid, with random domains drawn by a seeded generator."""
    import numpy as np
    from ray.tune.search.variant_generator import generate_variants

    random = np.random.RandomState(budget.seed)
    draws = (variant for _ in range(budget.samples) for variant in generate_variants(domains, random_state=random))
    return [{key: _plain(value) for key, value in spec.items()} for _, spec in draws]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = {key: _merged(value, {}) if isinstance(value, Mapping) else value for key, value in base.items()}
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _set(values: dict[str, Any], key: str, value: Any, origin: str) -> None:
    *path, last = key.split(".")
    for part in path:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise ConfigurationError(f"{origin}: {key!r} goes below {part!r}, which is a single value.")
    values[last] = value


def _name(point: Mapping[str, Any]) -> str:
    """Readable, and unique by a digest of the values."""
    digest = hashlib.sha256(json.dumps(point, sort_keys=True, default=str).encode()).hexdigest()[:8]
    words = ",".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in point.items())
    return f"{re.sub(r'[^A-Za-z0-9=,.+-]+', '_', words)[:LONGEST_NAME]}-{digest}"
