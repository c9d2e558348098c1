"""An estimator that can be slowed down from outside, process by process."""

import time
from pathlib import Path
from typing import Any

from energymt.models.estimator import QualityEstimator
from energymt.storage import runs_root
from tests import estimators


def brake(process: int) -> Path:
    """While this file is there, each batch of that process takes the seconds that stand in it."""
    return runs_root() / f"brake-{process}"


def braked() -> QualityEstimator:
    """The tiny COMET-KIWI, with a brake."""
    import os

    estimator = estimators.estimator("kiwi")
    forward = estimator.forward

    def slowly(*arguments: Any) -> Any:
        file = brake(os.getpid())
        if file.is_file():
            time.sleep(float(file.read_text()))
        return forward(*arguments)

    estimator.forward = slowly  # type: ignore[method-assign]
    return estimator
