"""A pool by its name, as a training or a command uses it."""

from __future__ import annotations

import ray

from energymt.errors import ConfigurationError
from energymt.models.estimator import QualityEstimator
from energymt.models.estimator_folder import load_table, read_longest_text
from energymt.models.learning import Learns
from energymt.pool import ground, lifecycle
from energymt.pool.connection import Connection
from energymt.pool.estimator import PooledEstimator
from energymt.pool.learner import PooledLearner
from energymt.pool.settings import PoolConfig, find_estimator, require_pinned


def open_pool(name: str, run: str = "", *, alone: bool = False) -> tuple[PooledEstimator, PooledLearner | None]:
    """The estimator of a pool that is up, and with the name of a run what teaches it.

    Args:
        name: of the pool.
        run: that this process trains, where the pool learns from it.
        alone: one request is one batch on a fixed replica, so that runs can be compared bit by bit.

    Raises:
        EnergyUnavailable: no such pool.
        StorageError: the estimator's folder cannot be read from here, or holds other weights than the pool serves.
    """
    config = _settings(name)
    found = find_estimator(config)
    if callable(found):
        estimator: QualityEstimator = found()
        table_VD, vocabulary, longest = estimator.table_VD, estimator.vocabulary, estimator.longest_text
    else:
        (table_VD, vocabulary), longest = load_table(found), read_longest_text(found)
        require_pinned(config, found)
    connection = Connection(name, run=run, alone=alone)
    pooled = PooledEstimator(connection.client, table_VD, vocabulary, connection=connection, longest_text=longest)
    return pooled, PooledLearner(connection) if run else None


def require_learning(name: str, wanted: bool) -> None:
    """Refuse a pool that learns where the estimator must stay as it is, and a static one where it is taught.

    Raises:
        ConfigurationError: with what to do.
    """
    config = _settings(name)
    if config.learns and not wanted:
        raise ConfigurationError(
            f"The pool {name} learns (learns={config.learns}), so that what it serves changes: ask "
            f"{config.estimator} itself, or a pool that was started without `learns`."
        )
    if wanted and not config.learns:
        raise ConfigurationError(
            f"The pool {name} is static and nobody can teach it: start one by `energymt pool up {config.estimator} "
            f"--name NAME --set learns=head`, or leave `dynamic` out."
        )


def learnt_part(name: str) -> Learns | None:
    """Which weights of its estimator a pool learns; None: it is static."""
    return _settings(name).learns


def served_address(name: str) -> str:
    """What the settings of a pool name as its estimator.

    Raises:
        EnergyUnavailable: no such pool.
    """
    return _settings(name).estimator


def frozen_address(name: str) -> str:
    """The address of the estimator that a pool began with.

    Raises:
        ConfigurationError: it is no folder.
        StorageError: the folder holds other weights by now.
    """
    config = _settings(name)
    found = find_estimator(config)
    if callable(found):
        raise ConfigurationError(f"The pool {name} serves {config.estimator}, which is no folder.")
    require_pinned(config, found)
    return config.estimator


def _settings(name: str) -> PoolConfig:
    if not ray.is_initialized():
        ground.join()
    return PoolConfig.model_validate(lifecycle.status(name)["settings"])
