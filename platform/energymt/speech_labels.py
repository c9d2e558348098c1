"""What a frozen recogniser's own transcripts are worth: the labels of a proxy that listens (NAP), computed once.

A metric is `wer` or `cer` of each recording, in percent (lower is better), or `column:NAME`, numbers beside them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energymt.data.audio import Clip
from energymt.data.judgements import numbers
from energymt.data.speech import SpeechCorpus, SpeechDataConfig, read_speech
from energymt.decoding.transcribe import Transcriber
from energymt.decoding.translate import DecodingOptions
from energymt.errors import ConfigurationError
from energymt.labels import COLUMN, require_spread, stored_under
from energymt.metrics.speech import character_errors, rates, word_errors
from energymt.models.speech import SpeechTransformer
from energymt.shards import in_shards, pretended

RATES = {"wer": word_errors, "cer": character_errors}


@dataclass(frozen=True)
class LabelledSpeech:
    """Recordings and their labels."""

    corpus: SpeechCorpus
    labels_N: NDArray[np.float64]


def label_recordings(model: SpeechTransformer, content: str, data: SpeechDataConfig, metric: str) -> LabelledSpeech:
    """The labels of recordings: an error rate of the model's own greedy transcripts, or a column.

    Args:
        model: the frozen recogniser.
        content: the fingerprint of its folder.
        data: recordings, with transcripts for a rate.
        metric: its name, see above.

    Raises:
        ConfigurationError: no such metric.
        DataError: labels that are no finite numbers or all equal.
    """
    if metric.startswith(COLUMN):
        name = metric.removeprefix(COLUMN)
        corpus = read_speech(data, need_text=False)
        if name not in corpus.columns:
            known = ", ".join(corpus.columns) or "none"
            raise ConfigurationError(f"{data.path} has no column {name!r} beside its recordings; there are: {known}.")
        places = [(clip.place, value) for clip, value in zip(corpus.clips, corpus.columns[name], strict=True)]
        return LabelledSpeech(corpus, require_spread(numbers(name, places), f"column {name!r} of {data.path}"))
    if metric not in RATES:
        raise ConfigurationError(f"A recogniser is measured by wer, cer or column:NAME, and not by {metric!r}.")
    corpus = read_speech(data)
    assert corpus.text is not None
    notes = pretended()
    if notes is not None:
        notes.append(f"{metric} of {len(corpus):,} greedy transcripts of {corpus.origin}, where not known yet")
        return LabelledSpeech(corpus, np.arange(len(corpus), dtype=np.float64))
    transcripts = own_transcripts(model, content, corpus)
    labels_N = rates(RATES[metric](transcripts, corpus.text))
    return LabelledSpeech(corpus, require_spread(labels_N, f"{metric} of the model's transcripts of {corpus.origin}"))


def own_transcripts(model: SpeechTransformer, content: str, corpus: SpeechCorpus) -> list[str]:
    """The model's greedy transcripts, computed once."""
    transcriber = Transcriber(model, DecodingOptions(beam=1))

    def transcribe(rows: range) -> list[str]:
        return [best[0] for best, *_ in transcriber.stream(corpus.clips[rows.start : rows.stop])]

    folder = stored_under("outputs", content, sound_fingerprint(corpus.clips, model.features.rate))
    return in_shards(folder, len(corpus), transcribe)


def sound_fingerprint(clips: Sequence[Clip], rate: int) -> str:
    """sha256 over all samples at this rate."""
    digest = hashlib.sha256()
    for clip in clips:
        wave = clip.wave(rate)
        digest.update(len(wave).to_bytes(8, "little") + wave.tobytes())
    return digest.hexdigest()
