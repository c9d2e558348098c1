"""From sound to text: recordings are decoded in batches, and their transcripts given back in order."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from energymt.data.audio import Clip
from energymt.decoding import autoregressive, sampling
from energymt.decoding.rerank import Translation
from energymt.decoding.translate import DecodingOptions
from energymt.errors import ConfigurationError
from energymt.models.speech import SpeechTransformer
from energymt.records import Hypothesis, Input

logger = logging.getLogger(__name__)


class Transcriber:
    """A model of speech and the options of decoding: recordings in, transcripts out, in the same order.

    Args:
        model: a Whisper model; one whose encoder states are changed on their way (`decoding.perturbed`) is as good.
        options: see `DecodingOptions`; `tokens_per_batch` are encoder states of whole windows, times the beam.

    Raises:
        ConfigurationError: if `n_best` is more than there are candidates.
    """

    def __init__(self, model: SpeechTransformer, options: DecodingOptions | None = None) -> None:
        self.model = model
        self.options = options or DecodingOptions()
        name = "beam" if self.options.samples is None else "samples"
        self.candidates: int = getattr(self.options, name)
        self.given = self.options.n_best
        if self.options.n_best > self.candidates:
            raise ConfigurationError(
                f"n_best is {self.options.n_best} and {name} {self.candidates}: raise {name} or lower n_best."
            )

    def transcribe(self, clips: Iterable[Clip]) -> list[list[Translation]]:
        """Up to `n_best` transcripts of each recording, best first."""
        return list(self.stream(clips))

    def stream(self, clips: Iterable[Clip]) -> Iterator[list[Translation]]:
        """The same one by one, a batch at a time; a recording is read when its turn has come.

        What is longer than the model's window is cut off, and a warning says so.
        """
        clips = iter(clips)
        size = max(1, self.options.tokens_per_batch // (self.model.features.states * self.candidates))
        words = self.model.vocabulary
        while batch := list(islice(clips, size)):
            for clip in batch:
                self._tell_of_cut(clip)
            for hypotheses in self._decode(self._heard(batch)):
                yield [(words.decode(item.ids), item) for item in hypotheses[: self.given]]

    def _heard(self, clips: Sequence[Clip]) -> Input:
        return self.model.features(clips).to(self.model.device)

    def _tell_of_cut(self, clip: Clip) -> None:
        if not self.model.features.fits(clip):
            logger.warning(
                "%s is %.1f seconds long and the model hears %g: the rest is not transcribed; cut it into parts.",
                clip.place,
                clip.seconds,
                self.model.features.seconds,
            )

    def _decode(self, sound: Input) -> list[list[Hypothesis]]:
        options = self.options
        if options.samples is not None:
            return sampling.candidates(
                self.model,
                sound,
                options.samples,
                seed=options.seed,
                max_length=options.max_length,
                length_penalty=options.length_penalty,
            )
        return autoregressive.decode(
            self.model,
            sound,
            beam=options.beam,
            max_length=options.max_length,
            length_penalty=options.length_penalty,
            patience=options.patience,
            n_best=options.n_best,
        )
