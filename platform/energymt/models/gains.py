"""What a proxy's promises have been worth: of each length of a step, the gain that a metric found in held-out outputs.

    found_i ≈ kept · promised_i        kept = Σ promised_i found_i / Σ promised_i², not below 0

A promise is the proxy's merit at the moved states minus that at the model's own. A proxy has never seen moved states,
and promises more than comes: `kept` brings a promise to what may be expected, and `error` says how far a single
sentence is from that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from energymt.errors import StorageError
from energymt.folders import write_atomically

GAINS_FILE = "gains.json"


@dataclass(frozen=True)
class Gain:
    """What one kind of step came to on a text; gains are in the metric's unit, more is better."""

    norm: str
    steps: int
    alpha: float
    promised: float
    """Mean over the sentences."""
    found: float
    """The same."""
    kept: float
    """Found for each promised; 0 where steps that promised more did not bring more."""
    error: float
    """Root mean square of a sentence's found gain minus the expected one."""
    sentences: int

    @property
    def key(self) -> tuple[str, int, float]:
        """What a step is told by."""
        return self.norm, self.steps, self.alpha


def fit_gain(
    norm: str, steps: int, alpha: float, promised_N: NDArray[np.float64], found_N: NDArray[np.float64]
) -> Gain:
    """The gain of N sentences.

    Args:
        norm: of the step, as are steps and alpha; see `energymt.decoding.perturbed`.
        promised_N: by the proxy.
        found_N: the metric of the outputs, minus that of the model's own outputs.
    """
    power = float(promised_N @ promised_N)
    kept = max(0.0, float(promised_N @ found_N) / power) if power > 0 else 0.0
    error = float(np.sqrt(np.mean((found_N - kept * promised_N) ** 2)))
    return Gain(norm, steps, alpha, float(promised_N.mean()), float(found_N.mean()), kept, error, len(found_N))


def read_gains(folder: Path) -> dict[tuple[str, int, float], Gain]:
    """The gains beside a proxy, none if it was never tried.

    Raises:
        StorageError: the file is damaged.
    """
    file = folder / GAINS_FILE
    if not file.is_file():
        return {}
    try:
        gains = [Gain(**values) for values in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise StorageError(
            f"{file} cannot be read ({error}): remove it, and write it anew by `energymt alpha-curve --calibrate`."
        ) from None
    return {gain.key: gain for gain in gains}


def write_gains(folder: Path, gains: Sequence[Gain]) -> None:
    """Note gains beside a proxy; what was known of other steps stays."""
    known = read_gains(folder) | {gain.key: gain for gain in gains}
    write_atomically(folder / GAINS_FILE, json.dumps([asdict(known[key]) for key in sorted(known)], indent=1) + "\n")
