"""Energies: how bad a translation is, differentiable in the prediction. Lower is better."""

from energymt.energies.autoregressive import AutoregressiveEnergy
from energymt.energies.quality import QualityEnergy
from energymt.energies.weighted import Energy, WeightedEnergy

__all__ = ["AutoregressiveEnergy", "Energy", "QualityEnergy", "WeightedEnergy"]
