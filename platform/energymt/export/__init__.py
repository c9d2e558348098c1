"""Models for fast decoding: autoregressive ones in CTranslate2, non-autoregressive ones in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from energymt.errors import ConfigurationError
from energymt.export.folder import check_choice, default_folder, find_export
from energymt.folders import atomic_folder, weights_fingerprint, write_manifest

if TYPE_CHECKING:
    from energymt.export.ctranslate import CTranslateTranslator
    from energymt.export.onnx import OnnxTranslator

__all__ = ["export_model", "load_export"]


def export_model(folder: Path, kind: str, precision: str = "fp32", out: Path | None = None) -> Path:
    """Export the model in `folder`; returns the folder written, by default `<folder>/exports/<kind>-<precision>`.

    Args:
        folder: a model folder.
        kind: "ctranslate2" (autoregressive transformers) or "onnx" (non-autoregressive translators).
        precision: "fp32", with the output of PyTorch, or "int8", faster and nearly the same.
        out: the folder to write; one that is there is replaced.

    Raises:
        ConfigurationError: if the kind does not take this model.
    """
    from energymt.models import load_translator

    check_choice(kind, precision)
    model, int8 = load_translator(folder), precision == "int8"
    if getattr(model, "prompt", 0):
        raise ConfigurationError(f"{folder} has a learnt prompt before every source, and no export has: use torch.")
    out = out or default_folder(folder, kind, precision)
    with atomic_folder(out) as part:
        if kind == "ctranslate2":
            from energymt.export.specification import export_ctranslate

            export_ctranslate(model, part, int8=int8)
        else:
            from energymt.export.onnx import export_onnx

            export_onnx(model, part, int8=int8)
        write_manifest(part, {"exported": str(folder), "weights": weights_fingerprint(folder)})
    return out


def load_export(
    folder: Path, kind: str, precision: str = "fp32", threads: int = 1
) -> CTranslateTranslator | OnnxTranslator:
    """The export of a model, ready to take the model's place in `decoding.Translator`.

    Args:
        folder: the model folder, or the folder of the export itself.
        kind: as in `export_model`.
        precision: as in `export_model`.
        threads: of one call; small models are fastest with one.

    Raises:
        ConfigurationError: if there is no such export, or the model has changed since.
        StorageError: if one of its files is missing, cut or changed.
    """
    export = find_export(folder, kind, precision)
    if kind == "ctranslate2":
        from energymt.export.ctranslate import CTranslateTranslator

        return CTranslateTranslator(export, threads)
    from energymt.export.onnx import OnnxTranslator

    return OnnxTranslator(export, threads)
