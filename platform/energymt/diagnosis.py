"""`energymt doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile

from energymt import __version__
from energymt.storage import runs_root

PACKAGES = {
    "torch": True,
    "lightning": True,
    "transformers": True,
    "sentencepiece": True,
    "sacrebleu": True,
    "ray": False,
    "mlflow": False,
    "ctranslate2": False,
    "onnxruntime": False,
    "unbabel-comet": False,
}


def diagnose() -> tuple[list[str], bool]:
    """Lines for a person, and whether training can start here."""
    lines = [f"energymt {__version__}, Python {platform.python_version()}, {platform.platform()}"]
    healthy = (3, 11) <= sys.version_info[:2] < (3, 13)
    if not healthy:
        lines.append("MISSING  Python 3.11 or 3.12")
    for package, needed in PACKAGES.items():
        try:
            lines.append(f"ok       {package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"{'MISSING ' if needed else 'absent  '} {package}")
            healthy = healthy and not needed
    lines.append(_devices())
    folder = runs_root()
    existing = next(path for path in [folder, *folder.parents] if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    writable = _is_writable(str(existing))
    verdict = ("ok      ", "") if writable else ("MISSING ", ", not writable")
    lines.append(f"{verdict[0]} runs in {folder}, {free:.0f} GB free{verdict[1]}")
    return lines, healthy and writable


def _devices() -> str:
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return (
        f"ok       {os.cpu_count()} cores, {torch.get_num_threads()} torch threads, CUDA: {', '.join(names) or 'none'}"
    )


def _is_writable(folder: str) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
