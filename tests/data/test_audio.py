"""Recordings in files and archives: what is heard, at which rate, and one sentence for whatever is wrong."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from energymt.data.audio import Clip, open_file, read_archive, resampled
from energymt.errors import DataError
from tests import sounds

TEXTS = ["low high", "mid"]


def tone(rate: int, seconds: float = 0.5, pitch: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


def pitch(wave: np.ndarray, rate: int) -> float:
    """The loudest frequency, in Hz."""
    return float(np.abs(np.fft.rfft(wave)).argmax() * rate / len(wave))


@pytest.mark.parametrize("suffix, kind", [(".wav", "PCM_16"), (".wav", "FLOAT"), (".flac", "PCM_24")])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100])
def test_a_file_of_any_rate_is_heard_at_the_model_s(suffix: str, kind: str, rate: int, tmp_path: Path) -> None:
    path = tmp_path / f"tone{suffix}"
    soundfile.write(path, tone(rate), rate, subtype=kind)
    clip = open_file(path)
    assert (clip.rate, clip.samples, clip.place) == (rate, rate // 2, str(path))
    assert clip.seconds == pytest.approx(0.5)
    wave = clip.wave(16000)
    assert wave.dtype == np.float32 and abs(len(wave) - 8000) <= 1
    assert pitch(wave, 16000) == pytest.approx(440, abs=2.1)
    assert np.abs(wave[800:-800]).max() == pytest.approx(0.5, abs=0.01)


def test_channels_are_mixed_into_one(tmp_path: Path) -> None:
    left, right = tone(16000), 0.25 * np.ones(8000)
    soundfile.write(tmp_path / "stereo.wav", np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    np.testing.assert_allclose(open_file(tmp_path / "stereo.wav").wave(16000), (left + right) / 2, atol=1e-6)


def test_the_same_rate_changes_nothing() -> None:
    wave = tone(8000).astype(np.float32)
    assert resampled(wave, 8000, 8000) is wave


def test_what_is_above_half_the_new_rate_is_gone() -> None:
    assert np.abs(resampled(tone(16000, pitch=6000.0).astype(np.float32), 16000, 8000)[200:-200]).max() < 0.01


def test_clips_of_an_archive_are_what_was_put_there(tmp_path: Path) -> None:
    archive = read_archive(sounds.write(tmp_path / "two.npz", TEXTS, speaker=np.array(["a", "b"]), extra=np.arange(3)))
    assert archive.columns == {"text": TEXTS, "speaker": ["a", "b"]}
    for number, (clip, text) in enumerate(zip(archive.clips, TEXTS, strict=True)):
        assert clip.place.endswith(f"two.npz clip {number}") and clip.rate == sounds.RATE
        np.testing.assert_allclose(clip.wave(sounds.RATE), sounds.wave(text, seed=number), atol=1e-4)


def test_floats_are_taken_as_they_are(tmp_path: Path) -> None:
    waves = sounds.arrays(["low"])["samples"].astype(np.float64) / 32768
    (clip,) = read_archive(sounds.write(tmp_path / "floats.npz", ["low"], samples=waves)).clips
    np.testing.assert_array_equal(clip.wave(sounds.RATE), waves.astype(np.float32))


@pytest.mark.parametrize(
    "changes, parts",
    [
        ({"samples": None}, ["lacks the array 'samples'", "offsets, sample_rate, text"]),
        ({"sample_rate": None}, ["lacks the array 'sample_rate'"]),
        ({"samples": np.zeros((2, 9))}, ["float64 of shape (2, 9)", "one row"]),
        ({"samples": np.zeros(9, dtype=np.int64)}, ["int64", "int16 or of floats"]),
        ({"offsets": np.array([0.0, 1200.0, 3600.0])}, ["offsets is float64", "whole numbers"]),
        ({"offsets": np.array([0])}, ["offsets", "one more than clips"]),
        ({"offsets": np.array([0, 2400, 3601])}, ["from 0 to 3601", "3600 samples"]),
        ({"offsets": np.array([5, 2400, 3600])}, ["from 5 to 3600"]),
        ({"offsets": np.array([0, 3000, 2400, 3600])}, ["never fall"]),
        ({"offsets": np.array([0, 2400, 2400, 3600])}, ["clip 1 is an empty recording"]),
        ({"sample_rate": np.array(0)}, ["sample_rate is 0"]),
        ({"sample_rate": np.array(-8000)}, ["sample_rate is -8000"]),
        ({"sample_rate": np.array(np.nan)}, ["sample_rate is nan"]),
        ({"sample_rate": np.array("8 kHz")}, ["sample_rate is '8 kHz'"]),
        ({"sample_rate": np.array([8000, 8000])}, ["sample_rate is [8000, 8000]"]),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes: dict, parts: list[str], tmp_path: Path) -> None:
    path = sounds.write(tmp_path / "bad.npz", TEXTS, **changes)
    with pytest.raises(DataError) as refused:
        read_archive(path)
    for part in (str(path), *parts):
        assert part in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"RIFF nothing", b"\x93NUMPY"])
def test_what_is_no_archive_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.npz is no \.npz file"):
        read_archive(tmp_path / "bad.npz")


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    path = sounds.write(tmp_path / "cut.npz", TEXTS)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged"):
        read_archive(path)


def test_pickled_objects_are_not_read(tmp_path: Path) -> None:
    path = sounds.write(tmp_path / "objects.npz", TEXTS, speaker=np.array([{"name": "a"}, None], dtype=object))
    with pytest.raises(DataError, match="plain arrays"):
        read_archive(path)


def test_a_missing_archive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz does not exist"):
        read_archive(tmp_path / "none.npz")


def test_files_that_hold_no_sound_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound at all")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    for name, part in (("none.wav", "does not exist"), ("text.wav", "as audio"), ("empty.wav", "empty recording")):
        with pytest.raises(DataError, match=rf"{name.split('.')[0]}\.wav .*{part}"):
            open_file(tmp_path / name)
    with pytest.raises(DataError, match="no file"):
        open_file(tmp_path)


def test_a_file_that_goes_away_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone.wav"
    soundfile.write(path, tone(8000), 8000)
    clip = open_file(path)
    path.unlink()
    with pytest.raises(DataError, match=r"gone\.wav is damaged or gone"):
        clip.wave(8000)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    wave = tone(8000)
    wave[7] = value
    soundfile.write(tmp_path / "nan.wav", wave, 8000, subtype="FLOAT")
    with pytest.raises(DataError, match=r"nan\.wav holds NaN or infinity"):
        open_file(tmp_path / "nan.wav").wave(16000)
    with pytest.raises(DataError, match="clip 3 holds NaN"):
        Clip("clip 3", 8000, len(wave), wave).wave(8000)
