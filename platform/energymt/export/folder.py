"""Where an export lies, and what is written beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from energymt.errors import ConfigurationError, StorageError
from energymt.folders import verify_manifest, weights_fingerprint

DESCRIPTION_FILE = "export.json"
KINDS = ("ctranslate2", "onnx")
PRECISIONS = ("fp32", "int8")


def check_choice(kind: str, precision: str) -> None:
    """Refuse an unknown kind or precision."""
    for what, value, known in (("kind of export", kind, KINDS), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ConfigurationError(f"Unknown {what} {value!r}; choose one of {', '.join(known)}.")


def default_folder(model: Path, kind: str, precision: str) -> Path:
    """The place inside the model's own folder."""
    return model / "exports" / f"{kind}-{precision}"


def find_export(folder: Path, kind: str, precision: str) -> Path:
    """The export of a model folder, or the folder itself where it is one; its files are verified.

    Raises:
        ConfigurationError: if there is none, or the model's weights are no longer those that were exported.
    """
    check_choice(kind, precision)
    itself = (folder / DESCRIPTION_FILE).is_file()
    export = folder if itself else default_folder(folder, kind, precision)
    command = f"energymt models export {folder} --kind {kind} --precision {precision}"
    if not export.is_dir():
        raise ConfigurationError(f"{folder} has no {kind} export in {precision}; make it with `{command}`.")
    provenance = verify_manifest(export)
    if not itself and provenance["weights"] != weights_fingerprint(folder):
        raise ConfigurationError(
            f"The weights in {folder} are newer than {export}; export them again with `{command}`."
        )
    found = read_description(export)
    if (found["kind"], found["precision"]) != (kind, precision):
        raise ConfigurationError(
            f"{folder} is a {found['kind']} export in {found['precision']}, not {kind} in {precision}: name what it is."
        )
    return export


def write_description(folder: Path, kind: str, *, int8: bool, **values: Any) -> None:
    """Write `export.json`: kind, precision, and what the kind needs to be read back."""
    description = {"kind": kind, "precision": "int8" if int8 else "fp32", **values}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read_description(folder: Path) -> dict[str, Any]:
    """Read `export.json`."""
    file = folder / DESCRIPTION_FILE
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise StorageError(f"{file} cannot be read ({error}); export the model again.") from None
