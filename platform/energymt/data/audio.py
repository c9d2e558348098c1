"""Recordings: audio files, and the clips of an .npz one behind the other; mono, at whatever rate is asked for."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

from energymt.errors import DataError

Wave = NDArray[np.float32]
INT16 = 32768.0
ARRAYS = ("samples", "offsets", "sample_rate")


@dataclass(frozen=True)
class Clip:
    """One recording; a file is read when its wave is asked for."""

    place: str
    """Where it stands, for people."""
    rate: int
    """Samples a second."""
    samples: int
    """How many."""
    held: Path | NDArray[Any]
    """An audio file, or the samples themselves."""

    @property
    def seconds(self) -> float:
        return self.samples / self.rate

    def wave(self, rate: int) -> Wave:
        """The recording in mono at `rate` samples a second, full scale is ±1.

        Raises:
            DataError: a file that is damaged or gone, or samples that are no numbers.
        """
        if isinstance(self.held, Path):
            wave = _read_file(self.held)
        else:
            wave = self.held.astype(np.float32) / (INT16 if self.held.dtype == np.int16 else 1.0)
        if not np.isfinite(wave).all():
            raise DataError(f"{self.place} holds NaN or infinity among its samples: write it again, or leave it out.")
        return resampled(wave, self.rate, rate)


def resampled(wave: Wave, rate: int, wanted: int) -> Wave:
    """The same sound at another number of samples a second, by a polyphase filter."""
    if rate == wanted:
        return wave
    shared = gcd(rate, wanted)
    return np.asarray(resample_poly(wave, wanted // shared, rate // shared), dtype=np.float32)


def open_file(path: Path) -> Clip:
    """A WAV, FLAC or other file that libsndfile reads.

    Raises:
        DataError: no such file, not audio, or empty.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file; check the path of the recording.")
    try:
        header = soundfile.info(path)
    except soundfile.SoundFileError as error:
        raise DataError(f"{path} cannot be read as audio ({_reason(error)}); convert it to WAV or FLAC.") from None
    if header.frames == 0:
        raise DataError(f"{path} is an empty recording: record it again, or leave it out.")
    return Clip(str(path), header.samplerate, header.frames, path)


def _read_file(path: Path) -> Wave:
    try:
        channels, _ = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        raise DataError(f"{path} is damaged or gone ({_reason(error)}); copy it again.") from None
    return np.asarray(channels.mean(axis=1), dtype=np.float32)


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


@dataclass(frozen=True)
class Archive:
    """The clips of an .npz, and its other arrays of as many values, as text."""

    clips: list[Clip]
    columns: dict[str, list[str]]


def read_archive(path: Path) -> Archive:
    """An .npz with `samples` (int16, or floats of full scale ±1), `offsets` (N + 1 whole numbers) and `sample_rate`.

    Raises:
        DataError: no such file, no .npz, a missing array, or arrays that do not fit together.
    """
    arrays = _read_arrays(path)
    samples, offsets = arrays.pop("samples"), arrays.pop("offsets")
    rate = _rate(arrays.pop("sample_rate"), path)
    if samples.ndim != 1 or not (samples.dtype == np.int16 or np.issubdtype(samples.dtype, np.floating)):
        raise DataError(f"{path}: samples is {_shown(samples)} instead of one row of int16 or of floats; convert it.")
    if offsets.ndim != 1 or len(offsets) < 2 or not np.issubdtype(offsets.dtype, np.integer):
        raise DataError(f"{path}: offsets is {_shown(offsets)} instead of a row of whole numbers, one more than clips.")
    if offsets[0] != 0 or offsets[-1] != len(samples) or (np.diff(offsets) < 0).any():
        raise DataError(
            f"{path}: offsets run from {offsets[0]} to {offsets[-1]} and there are {len(samples)} samples: they must "
            f"begin at 0, never fall, and end there; write the file again."
        )
    clips = list(_clips(samples, offsets.tolist(), rate, path))
    columns = {name: list(map(str, values)) for name, values in arrays.items() if values.shape == (len(clips),)}
    return Archive(clips, columns)


def _clips(samples: NDArray[Any], offsets: list[int], rate: int, path: Path) -> Iterator[Clip]:
    for number, (start, stop) in enumerate(pairwise(offsets)):
        place = f"{path} clip {number}"
        if start == stop:
            raise DataError(f"{place} is an empty recording: leave it out of samples, offsets and transcripts.")
        yield Clip(place, rate, stop - start, samples[start:stop])


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file; check the path.")
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            arrays = {name: np.asarray(file[name]) for name in file.files}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
        raise DataError(f"{path} is no .npz file of plain arrays, or is damaged ({reason}); write it again.") from None
    missing = [name for name in ARRAYS if name not in arrays]
    if missing:
        raise DataError(
            f"{path} lacks the array {missing[0]!r} (it holds {', '.join(arrays) or 'nothing'}); recordings need "
            f"{', '.join(ARRAYS)}."
        )
    return arrays


def _rate(value: NDArray[Any], path: Path) -> int:
    plain = value.item() if value.size == 1 and np.issubdtype(value.dtype, np.number) else None
    if isinstance(plain, int | float) and plain > 0 and float(plain).is_integer():
        return int(plain)
    raise DataError(f"{path}: sample_rate is {value.tolist()!r} instead of a whole number of samples a second above 0.")


def _shown(values: NDArray[Any]) -> str:
    return f"{values.dtype} of shape {values.shape}"
