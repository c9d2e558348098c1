"""Strings of spoken digits in white noise, made of single digits of the same speaker.

A string is 1 to 5 digits with silence before, between and behind them. Its noise has a set ratio to its speech:

    SNR = 10 · log10(mean square of the samples of its digits / mean square of the noise)   in dB

Which take of a digit goes where is decided once: `test` strings are made of takes of the test split, `dev` strings of a
few takes of the train split, `proxy` strings, where they are asked for, of a fifth of the others, and `train` strings
of what remains: a proxy is to learn what a recogniser does with recordings that it was not trained on. All of it is a
function of the seed.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from energymt.data.audio import Wave
from energymt.data.speech import SpeechCorpus
from energymt.errors import ConfigurationError, DataError

CLEAN = "clean"
MOST_DIGITS = 5
SECONDS = 4.0  # of the longest string
EDGE = (0.05, 0.2)  # seconds of silence before and behind a string, and between two digits
BETWEEN = (0.05, 0.25)
DEV_TAKES = 2
PROXY_SHARE = 0.2  # of the takes of the train split that are not dev's
COLUMNS = ("speaker", "digit", "take", "split")  # that the index of single digits must have
PARTS = ("train", "dev", "test", "proxy")

Pools = dict[tuple[str, str], list[int]]  # (speaker, word) -> clips


@dataclass(frozen=True)
class DigitString:
    """One string: its samples, the words in it, its noise and who speaks."""

    wave: Wave
    text: str
    snr: str
    speaker: str


def parts_of(corpus: SpeechCorpus, seed: int, parts: Sequence[str] = PARTS) -> dict[str, Pools]:
    """The single digits that strings of each part are made of: no recording stands in two parts.

    Raises:
        DataError: if the splits are not there, or a speaker lacks a digit in one of them.
    """
    assert corpus.text is not None
    held_out = _held_out(corpus, seed, "proxy" in parts)
    pools: dict[str, Pools] = {part: {} for part in parts}
    for row, (take, split) in enumerate(_pairs(corpus)):
        if split not in ("train", "test"):
            raise DataError(f"{corpus.clips[row].place} is of the split {split!r}; digits know train and test.")
        part = held_out.get(take, split) if split == "train" else split
        pools[part].setdefault((corpus.columns["speaker"][row], corpus.text[row]), []).append(row)
    for part, pool in pools.items():
        missing = {(speaker, word) for speaker in corpus.columns["speaker"] for word in corpus.text} - set(pool)
        if missing:
            speaker, word = min(missing)
            raise DataError(f"{corpus.origin} has no {word!r} of {speaker} for {part}; every speaker needs each digit.")
    return pools


def _held_out(corpus: SpeechCorpus, seed: int, proxy: bool) -> dict[str, str]:
    """Takes of the train split that are another part's."""
    takes = sorted({take for take, split in _pairs(corpus) if split == "train"}, key=lambda take: (len(take), take))
    least = DEV_TAKES + 1 + proxy
    if len(takes) < least:
        raise DataError(f"{corpus.origin} has {len(takes)} takes in its train split; {least} are the least.")
    mixed = [takes[i] for i in np.random.default_rng([seed, 0]).permutation(len(takes))]
    of_proxy = max(1, round(PROXY_SHARE * (len(takes) - DEV_TAKES))) if proxy else 0
    of_dev = dict.fromkeys(mixed[:DEV_TAKES], "dev")
    return of_dev | dict.fromkeys(mixed[DEV_TAKES : DEV_TAKES + of_proxy], "proxy")


def _pairs(corpus: SpeechCorpus) -> list[tuple[str, str]]:
    return list(zip(corpus.columns["take"], corpus.columns["split"], strict=True))


def strings(
    corpus: SpeechCorpus, pool: Pools, count: int, noises: Sequence[str], random: np.random.Generator
) -> list[DigitString]:
    """`count` strings of the digits in `pool`; each noise ("clean" or decibels) comes in its turn."""
    rate = corpus.clips[0].rate
    waves: dict[int, Wave] = {}
    speakers, words = (sorted(set(names)) for names in zip(*pool, strict=True))
    found = []
    for number in range(count):
        speaker = str(random.choice(speakers))
        said = [str(word) for word in random.choice(words, size=random.integers(1, MOST_DIGITS + 1))]
        chosen = [int(random.choice(pool[speaker, word])) for word in said]
        for row in chosen:
            waves.setdefault(row, corpus.clips[row].wave(rate))
        digits = [waves[row] for row in chosen]
        wave, used = _joined(digits, rate, random)
        noise = noises[number % len(noises)]
        spoken = np.concatenate(digits[:used])
        found.append(DigitString(_noisy(wave, spoken, noise, random), " ".join(said[:used]), noise, speaker))
    return found


def _joined(digits: Sequence[Wave], rate: int, random: np.random.Generator) -> tuple[Wave, int]:
    """Digits with silence around each, and how many there is room for."""

    def silence(span: tuple[float, float]) -> Wave:
        return np.zeros(round(random.uniform(*span) * rate), dtype=np.float32)

    gaps = [silence(EDGE if place in (0, len(digits)) else BETWEEN) for place in range(len(digits) + 1)]
    used, room = 0, int(SECONDS * rate) - len(gaps[-1])
    parts: list[Wave] = []
    for gap, digit in zip(gaps, digits, strict=False):
        room -= len(gap) + len(digit)
        if used and room < 0:
            break
        parts += [gap, digit]
        used += 1
    return np.concatenate([*parts, gaps[-1]]), used


def _noisy(wave: Wave, spoken: Wave, noise: str, random: np.random.Generator) -> Wave:
    """White noise over the whole string; all is made softer where it would be louder than full scale."""
    if noise != CLEAN:
        power = float(np.mean(spoken.astype(np.float64) ** 2)) / 10 ** (float(noise) / 10)
        wave = wave + np.asarray(random.normal(0.0, power**0.5, len(wave)), dtype=np.float32)
    return wave / max(1.0, float(np.abs(wave).max()) * 1.001)


def make_digits(
    corpus: SpeechCorpus, counts: Mapping[str, int], noises: Sequence[str], seed: int
) -> dict[str, list[DigitString]]:
    """Strings of each part.

    Args:
        corpus: single digits with their words, speakers, takes and splits; all of one rate.
        counts: strings of `train`, `dev`, `test`, and perhaps `proxy`.
        noises: "clean", or a signal-to-noise ratio in decibels.
        seed: of everything.
    """
    for noise in noises:
        _require_noise(noise)
    if len({clip.rate for clip in corpus.clips}) != 1:
        raise DataError(f"{corpus.origin} holds recordings of several rates; strings are made of one.")
    return {
        part: strings(corpus, pool, counts[part], noises, np.random.default_rng([seed, PARTS.index(part) + 1]))
        for part, pool in parts_of(corpus, seed, [part for part in PARTS if part in counts]).items()
    }


def _require_noise(noise: str) -> None:
    try:
        known = noise == CLEAN or np.isfinite(float(noise))
    except ValueError:
        known = False
    if not known:
        raise ConfigurationError(f"A noise is {CLEAN!r} or a signal-to-noise ratio in decibels, and not {noise!r}.")


def archive_of(found: Sequence[DigitString], rate: int) -> bytes:
    """An .npz of strings with `text`, `snr` and `speaker`, as `data.audio.read_archive` reads it."""
    samples = [np.asarray(np.rint(string.wave * 32767), dtype=np.int16) for string in found]
    arrays: dict[str, NDArray[np.generic]] = {
        "samples": np.concatenate(samples),
        "offsets": np.array([0, *accumulate(map(len, samples))], dtype=np.int64),
        "sample_rate": np.array(rate),
        **{name: np.array([getattr(string, name) for string in found]) for name in ("text", "snr", "speaker")},
    }
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def write_parts(parts: Mapping[str, Sequence[DigitString]], rate: int, folder: Path) -> None:
    """Write `train.npz`, `dev.npz`, `test.npz` and what else there is into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, found in parts.items():
        (folder / f"{part}.npz").write_bytes(archive_of(found, rate))
