"""What each Ray Train worker does: `runs.train`, with dev values for Ray and a stop that all workers share."""

from __future__ import annotations

import json
import socket
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray.train
import torch

from energymt import runs
from energymt.errors import EnergymtError, StorageError
from energymt.folders import write_atomically
from energymt.outcome import Outcome
from energymt.tracking import NullTracker
from energymt.training import Stop

STOP, FAILURE, ATTEMPT = "stop", "failure.json", "attempt"
# Mistakes in code: a new start would only repeat them. (What a lost peer or device raises is a RuntimeError.)
MISTAKES = (TypeError, ValueError, LookupError, AttributeError, NameError, ImportError, AssertionError, ArithmeticError)


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Train; returns the fields of an `Outcome`.

    An error that a new start would repeat is written down and raised: the group is started once more, finds the note
    and ends.
    """
    folder = Path(job["folder"])
    _check_shared(folder, job["attempt"])
    if (folder / FAILURE).exists():
        return {"step": 0, "best": None, "best_step": -1}
    try:
        module = runs.load_trainable(job["trainable"])
        config = module.Config.model_validate(job["config"])
        tracker = Reporting(ray.train.report)
        result = runs.train(job["trainable"], config, folder, tracker, lambda text: None, SharedStop(folder / STOP))
    except EnergymtError as error:
        write_atomically(folder / FAILURE, json.dumps({"type": type(error).__name__, "sentence": str(error)}))
        raise
    except MISTAKES as error:
        sentence = f"{job['trainable']} raised {type(error).__name__}: {error}; the traceback is in {folder / FAILURE}."
        note = {"type": "EnergymtError", "sentence": sentence, "traceback": traceback.format_exc().splitlines()}
        write_atomically(folder / FAILURE, json.dumps(note, indent=1))
        raise
    return asdict(Outcome.of(result))


def _check_shared(folder: Path, attempt: str) -> None:
    note = folder / ATTEMPT
    if not note.is_file() or note.read_text(encoding="utf-8") != attempt:
        raise StorageError(
            f"The node {socket.gethostname()} does not see {folder} as the driver does: "
            "set ENERGYMT_RUNS to a folder that all nodes share."
        )


class SharedStop(Stop):
    """A stop that the driver asks for by a file; the workers agree on it, so that all end behind the same step."""

    def __init__(self, path: Path):
        self._path, self._agreed = path, False

    @property
    def requested(self) -> bool:
        """Whether to stop. All workers must ask equally often."""
        if not self._agreed:
            self._agreed = bool(_largest(float(self._path.exists())))
        return self._agreed

    @requested.setter
    def requested(self, value: bool) -> None:
        self._agreed = value


def _largest(value: float) -> float:
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(value, device=device)
    torch.distributed.all_reduce(tensor, op=torch.distributed.ReduceOp.MAX)
    return tensor.item()


class Reporting(NullTracker):
    """A tracker that only tells Ray the dev values; every worker must, and the first one's values count."""

    def __init__(self, report: Callable[[dict[str, Any]], None]):
        self._report = report

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Report dev values."""
        if any(name.startswith("dev/") for name in values):
            self._report({**values, "step": step})
