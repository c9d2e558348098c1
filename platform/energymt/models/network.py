"""What every trained network is, translator, estimator or proxy: a module that is kept in a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from energymt import __version__
from energymt.errors import StorageError
from energymt.folders import atomic_folder, write_manifest


class Network(nn.Module, ABC):
    """A network, kept in a folder of safetensors and JSON, with a vocabulary's own files where it has one."""

    architecture: ClassVar[str]
    FILE: ClassVar[str]
    """By which a folder of this kind of network is known."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write everything that loading needs into a folder, without a manifest."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def save_pretrained(self, folder: Path | str, provenance: Mapping[str, Any] | None = None) -> None:
        """Write a model folder that is whole or not there, with its manifest; a model that stands there is replaced.

        Args:
            folder: where.
            provenance: what the manifest says of the model's origin.

        Raises:
            StorageError: the folder holds something else than a model, or cannot be written.
        """
        folder = Path(folder)
        if folder.is_dir() and any(folder.iterdir()) and not (folder / self.FILE).is_file():
            raise StorageError(f"{folder} holds other files than a model; name a new folder.")
        with atomic_folder(folder) as part:
            self.save(part)
            write_manifest(part, {"energymt": __version__, **(provenance or {})})
