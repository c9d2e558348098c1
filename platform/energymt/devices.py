"""Which device a run computes on, and in which precision."""

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


def choose_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """`auto` is bf16 on CUDA devices that have it, fp32 elsewhere.

    Raises:
        ResourceError: `bf16` is wanted of a processor without it, where it takes many times as long as fp32, or fails.
    """
    if wanted == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if wanted == "bf16" and device.type == "cpu" and not bf16_on_cpu():
        raise ResourceError(
            "precision is bf16 and this processor has no instructions for it (avx512_bf16 or amx): use precision: fp32 "
            "or auto."
        )
    return wanted


def bf16_on_cpu() -> bool:
    """Whether this processor multiplies bf16 itself; of others than x86-64 that is taken for granted."""
    found = torch.cpu.get_capabilities()
    return found.get("architecture") != "x86_64" or bool(found.get("avx512_bf16") or found.get("amx_bf16"))
