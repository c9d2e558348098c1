"""Energies add up: a weighted sum of named energies is an energy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from energymt.records import Prediction, Source


@runtime_checkable
class Energy(Protocol):
    """E(source, prediction) -> energy_B, differentiable in the prediction; lower is better."""

    unit: str

    def __call__(self, source: Source, prediction: Prediction) -> Tensor:
        """The energy of each sentence, [B]."""
        ...


class WeightedEnergy:
    """Σ weight · E. Each part owns its operators; `parts` also gives them one by one, for the log.

    Args:
        energies: name -> (weight, energy), for example {"teacher": (1.0, e1), "quality": (0.3, e2)}.
    """

    def __init__(self, energies: Mapping[str, tuple[float, Energy]]) -> None:
        if not energies:
            raise ValueError("a weighted energy needs at least one part")
        self.energies = dict(energies)
        self.unit = " + ".join(f"{weight:g} × {energy.unit}" for weight, energy in self.energies.values())

    def parts(self, source: Source, prediction: Prediction) -> dict[str, Tensor]:
        """The unweighted energy of each part, each [B]."""
        return {name: energy(source, prediction) for name, (_, energy) in self.energies.items()}

    def __call__(self, source: Source, prediction: Prediction) -> Tensor:
        """The weighted sum, [B]."""
        parts = self.parts(source, prediction)
        total = None
        for name, (weight, _) in self.energies.items():
            part = weight * parts[name]
            total = part if total is None else total + part
        assert total is not None
        return total
