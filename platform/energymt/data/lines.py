"""Lines of a text file, plain or gzip, with errors that name file and line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from energymt.errors import DataError


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line) of a UTF-8 file; a name in `.gz` is read as gzip, CRLF and a byte-order mark go.

    Lines end at a line feed and nowhere else.

    Raises:
        DataError: missing or unreadable file, a cut or damaged gzip, bytes that are not UTF-8.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                yield number, _decode(raw, path, number)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        if number == 0 and isinstance(error, gzip.BadGzipFile):
            raise DataError(f"{path} is named .gz but is not gzip; rename it or compress it.") from None
        raise DataError(
            f"{path} is cut or damaged: its last good line is line {number}; copy or download it again."
        ) from None
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: {_neighbour(path)}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); check the path and its rights.") from None


def _decode(raw: bytes, path: Path, number: int) -> str:
    try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number} is not UTF-8 (byte 0x{raw[error.start]:02x} in column {error.start + 1}); "
            f"convert the file to UTF-8."
        ) from None
    return line.removesuffix("\n").removesuffix("\r")


def _neighbour(path: Path) -> str:
    if not path.parent.is_dir():
        return f"nor does the folder {path.parent}; check the path."
    near = get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
    return f"did you mean {near[0]}?" if near else "check the path."
