"""What a pool is made of."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from energymt.configuration import Section
from energymt.errors import ConfigurationError, ResourceError, StorageError
from energymt.folders import weights_fingerprint
from energymt.models.estimator import QualityEstimator
from energymt.models.estimator_config import Order
from energymt.models.estimator_folder import ESTIMATOR_FILE, load_estimator
from energymt.models.learning import Learns
from energymt.pool.wire import PRECISIONS
from energymt.storage import fetch


class PoolConfig(Section):
    """A pool of replicas of one quality estimator."""

    estimator: str
    """Address of an estimator folder, or `package.module:function` that returns a QualityEstimator."""
    fingerprint: str = ""
    """Of the estimator's weights; a replica or caller that finds others is refused. Empty: as they are at the start."""
    order: Order = "comet"
    """Segments of a joint input: `comet`, or `published` as in the code of QE-EBM."""
    replicas: PositiveInt = 1
    """Replicas at the start, and the fewest."""
    most_replicas: PositiveInt | None = None
    """Most replicas when requests wait, as far as the cluster has room then; none: as many as at the start."""
    cpus: NonNegativeFloat = 1.0
    """CPUs of a replica."""
    gpus: NonNegativeFloat = 0.0
    """GPUs of a replica; a fraction shares one."""
    threads: PositiveInt = 1
    """Threads of a replica on CPUs."""
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    """Of the weights; those above the encoder stay in fp32 where it is bf16."""
    tokens_per_batch: PositiveInt = 8192
    """Padded positions of a dynamic batch."""
    wait_ms: NonNegativeFloat = 2.0
    """Most milliseconds that a request waits for those of other callers, to be computed with them."""
    room: PositiveInt = 4096
    """Sentences in the queue of a replica; above it refuses, and callers ask again."""
    ping_seconds: PositiveFloat = 2.0
    """Between two pings of a replica, and the time to answer one."""
    aim_wait_ms: PositiveFloat = 250.0
    """Time that requests may wait in a queue before another replica is started."""
    linger_seconds: PositiveFloat = 60.0
    """Without a request after which a replica above the fewest is given back."""
    lease_seconds: PositiveFloat = 15.0
    """Without a sign of life after which a caller is dead, and what it held returns."""
    learns: Learns | None = None
    """What `pool.learn` may change: `head` (with the layer mix), `lora` (both, and adapters in the encoder), `all` but
    the embeddings (one replica alone); none: the pool is static, and many runs share it."""
    lora_rank: PositiveInt = 8
    """Rank of the adapters."""
    lesson_seconds: PositiveFloat = 120.0
    """Until a learning step, or a state that is asked for or restored, is given up."""

    @model_validator(mode="after")
    def _check(self) -> PoolConfig:
        if self.learns == "all" and max(self.replicas, self.most_replicas or 1) > 1:
            raise ValueError(
                f"a pool that learns all weights has one replica, and {max(self.replicas, self.most_replicas or 1)} "
                f"are asked for: set learns to head or lora, or replicas to 1"
            )
        return self


@dataclass(frozen=True)
class ReplicaPlan:
    """What one replica is started with."""

    config: PoolConfig
    number: int
    version: int

    @property
    def name(self) -> str:
        """As it stands in replies."""
        return f"replica-{self.number}"


def find_estimator(config: PoolConfig) -> Path | Callable[[], QualityEstimator]:
    """The estimator's folder on this machine, or the function that makes it.

    Raises:
        StorageError: there is no such folder, or it holds no estimator.
        ConfigurationError: there is no such function.
    """
    place, separator, function = config.estimator.partition(":")
    if not separator or "/" in config.estimator:
        folder = fetch(config.estimator)
        if not (folder / ESTIMATOR_FILE).is_file():
            raise StorageError(
                f"{config.estimator} holds no estimator ({ESTIMATOR_FILE} is missing): name a folder that "
                f"`energymt models import` made of a COMET checkpoint, or that `energymt train estimator` wrote."
            )
        return folder
    try:
        found: Callable[[], QualityEstimator] = getattr(importlib.import_module(place), function)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(f"There is no function {config.estimator} ({error}); check module and name.") from None
    return found


def pinned(config: PoolConfig) -> PoolConfig:
    """The same settings for callers and replicas in any folder and at any time.

    A path becomes absolute, other addresses stay; and what the weights are now is noted, unless it is already.

    Raises:
        StorageError, ConfigurationError: see `find_estimator`.
    """
    found = find_estimator(config)
    if callable(found):
        return config
    path = Path(config.estimator).expanduser()
    address = os.path.abspath(path) if path.exists() else config.estimator
    return config.model_copy(update={"estimator": address, "fingerprint": config.fingerprint or _fingerprint(found)})


def require_pinned(config: PoolConfig, folder: Path) -> None:
    """Refuse other weights than those that the pool was started with; ask when they have been read.

    Raises:
        StorageError: with what to do.
    """
    if config.fingerprint and _fingerprint(folder) != config.fingerprint:
        raise StorageError(
            f"{folder} holds other weights than when the energy pool was started: bring those back, or end the pool "
            f"(`energymt pool down`) and start it anew."
        )


def _fingerprint(folder: Path) -> str:
    return weights_fingerprint(folder)[:16]


def open_estimator(config: PoolConfig) -> QualityEstimator:
    """The estimator of a pool, on the device and in the precision of its replicas.

    Raises:
        ConfigurationError: if it cannot serve as an energy.
        StorageError: if it is not the one that the pool was started with.
        ResourceError: GPUs were given and torch finds none.
    """
    if config.gpus > 0 and not torch.cuda.is_available():
        raise ResourceError(
            f"A replica has {config.gpus:g} GPUs (gpus) and torch finds no CUDA device there: install a torch with "
            f"CUDA, or set gpus to 0."
        )
    found = find_estimator(config)
    if isinstance(found, Path):
        estimator = load_estimator(found, config.order)
        require_pinned(config, found)
    else:
        estimator = found()
    if not estimator.differentiable:
        raise ConfigurationError(
            f"{config.estimator} needs references or counts error spans: it scores text but is no energy; "
            f"use a COMET-KIWI checkpoint."
        )
    device = "cuda" if config.gpus > 0 else "cpu"
    moved: QualityEstimator = estimator.to(device=device, dtype=PRECISIONS[config.precision])
    return moved
