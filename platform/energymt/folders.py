"""Folders that are whole or not there at all, and manifests that name what was cut or changed since."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from energymt.errors import StorageError

MANIFEST = "energymt.json"
RENAME_EXCHANGE = 2
AT_FDCWD = -100
WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG}


def write_manifest(folder: Path, provenance: dict[str, Any]) -> Path:
    """Write `energymt.json` into a finished folder: provenance, and size and sha256 of every file; written last."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_atomically(
        folder / MANIFEST, json.dumps({"format": 1, "provenance": provenance, "files": files}, indent=1, default=str)
    )
    return folder / MANIFEST


def verify_manifest(folder: Path) -> dict[str, Any]:
    """Check every file of a folder against its manifest and return the provenance.

    Raises StorageError that names the file which is missing, cut short or changed.
    """
    _recover(folder)
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise StorageError(f"{folder} has no {MANIFEST}: it is not a finished model or checkpoint; write it again.")
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        files, provenance = content["files"], content["provenance"]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{manifest} is damaged ({error}): use an older copy of this folder.") from error
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise StorageError(f"{path} is missing although {MANIFEST} lists it: use an older copy of this folder.")
        size = path.stat().st_size
        if size != expected["size"]:
            raise StorageError(
                f"{path} has {size:,} bytes instead of {expected['size']:,}: it was cut; "
                "use an older copy of this folder."
            )
        if _sha256(path) != expected["sha256"]:
            raise StorageError(
                f"{path} was changed after it was written (sha256 differs): use an older copy of this folder."
            )
    return dict(provenance)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_fingerprint(folder: Path) -> str:
    """sha256 over the weight files of a model folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------ atomic writing


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; when the block ends well it takes the place of `path` in one rename.

    When the block raises, `path` stays as it was. A full disk or a folder that cannot be written raises StorageError.
    """
    path = path.absolute()
    _recover(path)
    if path.exists() and not path.is_dir():
        raise StorageError(f"{path} could not be written: a file has this name; choose another name.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        part = Path(tempfile.mkdtemp(prefix=_part_prefix(path, os.getpid()), suffix=".part", dir=path.parent))
    except OSError as error:
        raise write_error(error, path) from error
    try:
        yield part
        for file in [*part.rglob("*"), part]:
            _flush(file)
        part.chmod(0o755)
        _take_place(part, path)
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_write_failure(error):
            raise
        raise write_error(error, path) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that is whole or not there; a full disk or an unwritable folder raises StorageError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        _flush(part)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise write_error(error, path) from error


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_place(part: Path, path: Path) -> None:
    if not path.exists():
        os.rename(part, path)
    elif not _exchange(part, path):
        previous = _previous(path)
        shutil.rmtree(previous, ignore_errors=True)
        os.rename(path, previous)
        os.rename(part, path)
        shutil.rmtree(previous, ignore_errors=True)


def _exchange(left: Path, right: Path) -> bool:
    """Swap two folders in one system call (Linux); False where kernel or file system cannot."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    return bool(rename(AT_FDCWD, os.fsencode(left), AT_FDCWD, os.fsencode(right), RENAME_EXCHANGE) == 0)


def _previous(path: Path) -> Path:
    return path.with_name(f".{path.name}.previous")


def _recover(path: Path) -> None:
    """Put the old folder back when a writer without `_exchange` was killed between its two renames."""
    if not path.exists() and _previous(path).is_dir():
        os.rename(_previous(path), path)


def _part_prefix(path: Path, pid: int | str) -> str:
    return f".{path.name}.{socket.gethostname()}-{pid}-"


def _remove_abandoned(path: Path) -> None:
    """Delete what killed writers of this machine left beside `path`."""
    pattern = re.compile(re.escape(_part_prefix(path, "PID")).replace("PID", r"(\d+)") + r".*\.part")
    for sibling in path.parent.iterdir():
        match = pattern.fullmatch(sibling.name)
        if match and not Path("/proc", match[1]).exists() and Path("/proc/self").exists():
            shutil.rmtree(sibling, ignore_errors=True)


def _is_write_failure(error: Exception) -> bool:
    """Torch and safetensors report a full disk as their own error types; all other errors pass through."""
    if isinstance(error, OSError):
        return error.errno in WRITE_ERRORS
    writing = ("No space left", "I/O error", "os error", "file write failed", "inline_container", "Permission denied")
    return any(sign in str(error) for sign in writing)


def write_error(error: Exception, path: Path) -> StorageError:
    """What to tell the user of a write that the system refused."""
    code = error.errno if isinstance(error, OSError) else None
    free = shutil.disk_usage(next(p for p in [path, *path.parents] if p.exists())).free
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error) or "os error 28" in str(error):
        reason = f"the disk is full ({free / 1e6:,.0f} MB free); free space and start again."
        return StorageError(f"{path} could not be written: {reason}")
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason = "the folder is not writable; choose another folder or change its rights."
        return StorageError(f"{path} could not be written: {reason}")
    if code == errno.EISDIR:
        return StorageError(f"{path} could not be written: it is a folder; name a file.")
    reason = getattr(error, "strerror", None) or str(error)
    return StorageError(
        f"{path} could not be written ({reason}; {free / 1e6:,.0f} MB free): check the disk and start again."
    )
