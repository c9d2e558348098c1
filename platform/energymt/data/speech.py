"""Recordings with their transcripts: where they stand, how a Whisper encoder hears them, how they become batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, PositiveInt
from transformers import WhisperFeatureExtractor

from energymt.data.audio import Archive, Clip, open_file, read_archive
from energymt.data.batching import pad
from energymt.data.corpus import local_path
from energymt.data.formats import missing_column, pick, read_tsv
from energymt.data.vocabulary import Vocabulary
from energymt.errors import ConfigurationError, DataError
from energymt.records import Batch, Sound

ENCODER_STRIDE = 2  # frames that become one encoder state
Value = str | int | float


class SpeechDataConfig(BaseModel):
    """Where recordings and their transcripts stand."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str
    """Address of an .npz that holds clips one behind the other (`energymt.data.audio.read_archive`), or of a TSV with
    a line for each audio file, plain or .gz."""
    audio: str | None = None
    """Column of the TSV that names the audio files (WAV, FLAC), relative to the folder of the TSV."""
    text: str | None = None
    """Column of the transcripts: of the TSV, or beside an .npz of its index or its own array of that name."""
    index: str | None = None
    """Address of a TSV beside an .npz, with a line for each of its clips in order."""
    only: dict[str, Value | list[Value]] = {}
    """Read only rows whose columns hold one of these values, for example {split: train} or {snr: [0, 5]}."""
    rows: PositiveInt | None = None
    """Read this many recordings from the start, counted behind `only`; None reads all."""


@dataclass(frozen=True)
class SpeechCorpus:
    """Recordings in the order of their file, their transcripts, and whatever else stands beside them."""

    clips: list[Clip]
    text: list[str] | None
    origin: str
    """Where they come from, for people."""
    columns: Mapping[str, list[str]]

    @property
    def seconds(self) -> float:
        return sum(clip.seconds for clip in self.clips)

    def __len__(self) -> int:
        return len(self.clips)


def read_speech(config: SpeechDataConfig, *, need_text: bool = True) -> SpeechCorpus:
    """Read what `config` names; audio files are opened, and read when they are heard.

    Raises:
        ConfigurationError: keys that do not go together.
        DataError: recordings without transcripts, transcripts without recordings, or either damaged, missing or empty.
    """
    path = local_path(config.path)
    if need_text and config.text is None:
        raise ConfigurationError(f"{config.path} holds recordings: name the column of their transcripts in text.")
    archived = path.suffix == ".npz"
    if archived and config.audio is not None:
        raise ConfigurationError(f"{config.path} holds the recordings itself: drop audio.")
    if not archived and config.audio is None:
        raise ConfigurationError(f"{config.path} is no .npz: name its column of audio files in audio.")
    if not archived and config.index is not None:
        raise ConfigurationError(f"{config.path} is no .npz and holds its columns itself: drop index.")
    wanted = [name for name in (config.audio, config.text, *config.only) if name is not None]
    rows = _archived(path, config, wanted) if archived else list(read_tsv(path, wanted))
    chosen = list(islice((row for row in rows if _is_meant(row, config.only)), config.rows))
    if not chosen:
        which = " with " + ", ".join(f"{name} {value}" for name, value in config.only.items()) if config.only else ""
        raise DataError(f"{config.path} holds no recording{which}; check the file and `only`.")
    texts = None if config.text is None else [pick(record, config.text, place) for place, record in chosen]
    clips = [
        record[CLIP] if archived else open_file(path.parent / pick(record, config.audio or "", place))
        for place, record in chosen
    ]
    names = [name for name in chosen[0][1] if name != CLIP]
    columns = {name: [record[name] for _, record in chosen] for name in names}
    return SpeechCorpus(clips, texts, config.path, columns)


CLIP = "\0clip"  # the name of the recording itself in a record, which no column can have


def _archived(path: Path, config: SpeechDataConfig, wanted: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """A place and a record for each clip of an .npz; columns of an index come before arrays of the same name."""
    archive = read_archive(path)
    lines = [(clip.place, dict[str, str]()) for clip in archive.clips]
    if config.index is not None:
        lines = list(read_tsv(local_path(config.index), [name for name in wanted if name not in archive.columns]))
        _require_one_each(archive, lines, path, config.index)
    known = [*archive.columns, *(lines[0][1] if lines else ())]
    for name in wanted:
        if name not in known:
            where = str(path) if config.index is None else f"{path} with its index {config.index}"
            raise DataError(missing_column(where, name, name, known))
    return [
        (place, {CLIP: clip, **{name: values[row] for name, values in archive.columns.items()}, **beside})
        for row, (clip, (place, beside)) in enumerate(zip(archive.clips, lines, strict=True))
    ]


def _require_one_each(archive: Archive, lines: Sequence[tuple[str, Any]], path: Path, index: str) -> None:
    if len(lines) > len(archive.clips):
        raise DataError(
            f"{lines[len(archive.clips)][0]} describes no recording: {path} holds {len(archive.clips):,} clips and its "
            f"index {len(lines):,}; each needs one line, in order."
        )
    if len(lines) < len(archive.clips):
        raise DataError(
            f"{archive.clips[len(lines)].place} has no transcript: the file holds {len(archive.clips):,} clips and its "
            f"index {index} {len(lines):,} lines; each needs one line, in order."
        )


def _is_meant(row: tuple[str, dict[str, Any]], only: Mapping[str, Value | list[Value]]) -> bool:
    record = row[1]
    return all(
        record[name] in {str(value) for value in (values if isinstance(values, list) else [values])}
        for name, values in only.items()
    )


class LogMel:
    """Sound as a Whisper encoder hears it: log-mel features of one window, by the model's own feature extractor.

    A recording is padded to the window with silence, and Whisper attends to that as well.

    Args:
        extractor: of the model.

    Attributes:
        rate: samples a second.
        seconds: length of the window.
        states: encoder states of the window.
    """

    def __init__(self, extractor: WhisperFeatureExtractor) -> None:
        self.extractor = extractor
        self.rate = int(extractor.sampling_rate)
        self.samples = int(extractor.n_samples)
        self.seconds = self.samples / self.rate
        self.states = int(extractor.nb_max_frames) // ENCODER_STRIDE

    @staticmethod
    def of(mel_bins: int, seconds: int) -> LogMel:
        """As Whisper's own, with a window of another length: 16 kHz, 25 ms every 10 ms."""
        return LogMel(WhisperFeatureExtractor(feature_size=mel_bins, chunk_length=seconds))

    def fits(self, clip: Clip) -> bool:
        """Whether a recording is no longer than the window."""
        return clip.samples * self.rate <= self.samples * clip.rate

    def __call__(self, clips: Sequence[Clip]) -> Sound:
        """Features of recordings, each by itself; what is longer than the window is cut off."""
        waves = [clip.wave(self.rate)[: self.samples] for clip in clips]
        found = [self.extractor(wave, sampling_rate=self.rate, return_tensors="np").input_features for wave in waves]
        heard_B = torch.tensor([self._states_of(len(wave)) for wave in waves])
        mask_BS = torch.arange(self.states) < heard_B[:, None]
        return Sound(torch.from_numpy(np.concatenate(found)).float(), mask_BS)

    def _states_of(self, samples: int) -> int:
        frames = -(-samples // int(self.extractor.hop_length))
        return -(-frames // ENCODER_STRIDE)


@dataclass(frozen=True)
class EncodedSpeech:
    """Recordings and the ids of their transcripts; features are made when a batch is asked for."""

    clips: list[Clip]
    target_ids: list[NDArray[np.int32]]
    rows: NDArray[np.int64]  # the row of each recording in the corpus
    features: LogMel
    pad_id: int
    origin: str
    dropped: int  # left out: longer than the window or than the model's longest transcript, or empty once encoded

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def source_lengths(self) -> NDArray[np.int64]:
        """Encoder states, those of padding too: every recording takes a whole window."""
        return np.full(len(self), self.features.states, dtype=np.int64)

    @property
    def target_lengths(self) -> NDArray[np.int64]:
        """Tokens of each transcript."""
        return np.array([len(ids) for ids in self.target_ids], dtype=np.int64)

    def batch(self, indices: Sequence[int]) -> Batch:
        """One batch of the recordings at these positions."""
        chosen = list(indices)
        return Batch(
            torch.from_numpy(self.rows[chosen]),
            self.features([self.clips[i] for i in chosen]),
            *pad([self.target_ids[i] for i in chosen], self.pad_id),
        )


def encode_speech(
    corpus: SpeechCorpus, vocabulary: Vocabulary, features: LogMel, longest: int | None = None
) -> EncodedSpeech:
    """Transcripts as ids; recordings that the model cannot take are left out and counted.

    Args:
        corpus: without transcripts, targets are empty.
        vocabulary: of the model.
        features: of the model.
        longest: most tokens of a transcript, without the end token.

    Raises:
        DataError: if none is left.
    """
    told = corpus.text is not None
    ids = [vocabulary.encode(text) for text in corpus.text or [""] * len(corpus)]
    rows = [
        row
        for row, clip in enumerate(corpus.clips)
        if features.fits(clip) and (ids[row] or not told) and (longest is None or len(ids[row]) <= longest)
    ]
    if not rows:
        raise DataError(
            f"No recording of {corpus.origin} fits the model, which takes {features.seconds:g} seconds and "
            f"{'any number of' if longest is None else longest} tokens; cut them, or make a model of longer ones."
        )
    return EncodedSpeech(
        clips=[corpus.clips[row] for row in rows],
        target_ids=[np.array(ids[row], dtype=np.int32) for row in rows],
        rows=np.array(rows, dtype=np.int64),
        features=features,
        pad_id=vocabulary.pad_id,
        origin=corpus.origin,
        dropped=len(corpus) - len(rows),
    )
