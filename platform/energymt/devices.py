"""Which device a run computes on."""

from __future__ import annotations

from typing import Literal

import torch

from energymt.errors import ResourceError


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """CUDA where there is any and `wanted` allows it; the process's current device, if there are several.

    Raises:
        ResourceError: `cuda` is wanted on a machine that has none.
    """
    cuda = torch.cuda.is_available()
    if wanted == "cuda" and not cuda:
        raise ResourceError("device is cuda and this machine has no CUDA device; use device: auto or cpu.")
    return torch.device("cuda" if cuda and wanted != "cpu" else "cpu")
