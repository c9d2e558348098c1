"""Estimators that can be slowed down from outside, or made to die at one point, process by process."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from energymt.models.estimator import QualityEstimator
from energymt.storage import runs_root
from tests import estimators


def brake(process: int) -> Path:
    """While this file is there, each batch of that process takes the seconds that stand in it."""
    return runs_root() / f"brake-{process}"


def trap(process: int) -> Path:
    """While this file is there, that process is killed when it is to put prepared weights in place."""
    return runs_root() / f"brake-trap-{process}"


def braked() -> QualityEstimator:
    """The tiny COMET-KIWI, with a brake."""
    estimator = estimators.estimator("kiwi")
    forward = estimator.forward

    def slowly(*arguments: Any) -> Any:
        file = brake(os.getpid())
        if file.is_file():
            time.sleep(float(file.read_text()))
        return forward(*arguments)

    estimator.forward = slowly  # type: ignore[method-assign]
    return estimator


def trapped() -> QualityEstimator:
    """The same, in a process that can be trapped."""
    from energymt.pool.copy import LearningCopy

    activate = LearningCopy.activate

    def deadly(self: LearningCopy, version: int, said: str) -> bool:
        if trap(os.getpid()).is_file():
            os.kill(os.getpid(), signal.SIGKILL)
        return activate(self, version, said)

    LearningCopy.activate = deadly  # type: ignore[method-assign]
    return braked()
