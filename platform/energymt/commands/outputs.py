"""Where a command shall write: looked at before it works for hours."""

from __future__ import annotations

from pathlib import Path

from energymt.errors import ConfigurationError


def require_place(option: str, file: Path | None) -> None:
    """Refuse a file in a folder that is not there, and a folder in the place of a file.

    Raises:
        ConfigurationError: with the option and what to do.
    """
    if file is None:
        return
    if not file.absolute().parent.is_dir():
        raise ConfigurationError(f"The folder of {option} {file} does not exist; make it first.")
    if file.is_dir():
        raise ConfigurationError(f"{option} {file} is a folder; name a file.")
