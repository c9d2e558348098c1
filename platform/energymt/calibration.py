"""What a proxy's promises are worth: the gains of an α curve against what was promised, noted beside the proxy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from energymt.alpha_curve import Examination, Point
from energymt.errors import ConfigurationError
from energymt.labels import COLUMN
from energymt.models import load_translator
from energymt.models.gains import Gain, fit_gain, write_gains
from energymt.models.proxy import load_proxy
from energymt.perturbation import PerturbationOptions, open_perturbation
from energymt.storage import fetch


def require_calibratable(options: PerturbationOptions) -> None:
    """Refuse what cannot be calibrated before hours of decoding.

    Raises:
        ConfigurationError: no step, a proxy of a column, whose numbers nothing computes, or one that is no folder here.
    """
    if not any(options.alphas):
        raise ConfigurationError("Calibration compares steps with alpha 0: name another alpha.")
    folder = fetch(options.proxy)
    if folder.resolve() != Path(options.proxy).resolve():
        raise ConfigurationError(
            f"What is learnt of {options.proxy} is noted beside it: name a folder of this machine."
        )
    metric = load_proxy(folder).config.metric
    if metric.startswith(COLUMN):
        raise ConfigurationError(
            f"The proxy predicts {metric}, which nothing computes for other outputs: not calibrated."
        )


@torch.no_grad()
def calibrate(
    address: str, options: PerturbationOptions, on: Examination, points: Sequence[Point], device: torch.device
) -> list[Gain]:
    """Compare what the proxy promises of each step with what came, and note it beside the proxy.

    Args:
        address: of the model.
        options: those of the curve.
        on: what the curve was made on: no text that is to be translated with them.
        points: the curve of one beam.
        device: where to compute.

    Raises:
        ConfigurationError: see `require_calibratable`.
    """
    require_calibratable(options)
    model = load_translator(fetch(address)).to(device)
    change = open_perturbation(replace(options, alphas=tuple(point.alpha for point in points)), model, address)
    metric = change.proxy.config.metric
    promised_AN = torch.cat([change.promises(memory) for memory in on.memories(model)], 1).double().cpu().numpy()
    merits_AN = np.array([on.merits(model, metric, point.outputs) for point in points])
    zero = [point.alpha for point in points].index(0.0)
    gains = [
        fit_gain(options.norm, options.steps, point.alpha, promised_AN[number], merits_AN[number] - merits_AN[zero])
        for number, point in enumerate(points)
        if number != zero
    ]
    write_gains(Path(options.proxy), gains)
    return gains


def show_gains(gains: Sequence[Gain]) -> str:
    """A line for each step."""
    lines = [["alpha", "promised", "found", "kept", "error of a gain"]]
    lines += [
        [f"{g.alpha:g}", f"{g.promised:+.4g}", f"{g.found:+.4g}", f"{g.kept:.1%}", f"{g.error:.4g}"] for g in gains
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
