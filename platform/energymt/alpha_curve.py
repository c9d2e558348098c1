"""What α does: scores of a model's outputs for several values, decoded as rows of one batch.

A curve has one line for each α and beam: scores by references and by judges, and the paired difference to α = 0.
Sentences or recordings are encoded and differentiated once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from energymt.data.batching import encode_corpus
from energymt.data.corpus import Corpus
from energymt.data.speech import SpeechCorpus
from energymt.decoding.perturbed import Perturbation, side_by_side
from energymt.decoding.transcribe import Transcriber
from energymt.decoding.translate import DecodingOptions, Translator
from energymt.errors import ConfigurationError
from energymt.labels import open_metric
from energymt.metrics import translation
from energymt.metrics.significance import Comparison, Interval, compare, interval
from energymt.metrics.speech import character_errors, rates, word_errors
from energymt.metrics.translation import Statistics
from energymt.models import Memory, load_translator
from energymt.models.loading import AnyTranslator
from energymt.models.speech import SpeechTransformer
from energymt.perturbation import PerturbationOptions, open_perturbation
from energymt.quality import Judge
from energymt.records import Hypothesis, Input, Source
from energymt.speech_labels import RATES
from energymt.storage import fetch

AT_ONCE = 32  # items that are encoded together
DIGITS = {"bleu": 2, "chrf": 2, "WER": 2, "CER": 2}  # of what is in percent


class AlphaTranslator(Translator):
    """Gives each line one translation for each α, in the order of the alphas."""

    def __init__(self, model: AnyTranslator, perturbation: Perturbation, options: DecodingOptions) -> None:
        super().__init__(side_by_side(model, perturbation), options)
        self.several = self.given = len(perturbation.alphas)
        self.candidates *= self.several

    def _decode(self, source: Source, lengths: Sequence[int] | None) -> list[list[Hypothesis]]:
        wide = None if lengths is None else [length for length in lengths for _ in range(self.several)]
        return _best_of_each(super()._decode(source.select(_rows(source, self.several)), wide), self.several)


class AlphaTranscriber(Transcriber):
    """Gives each recording one transcript for each α, in the order of the alphas."""

    def __init__(self, model: SpeechTransformer, perturbation: Perturbation, options: DecodingOptions) -> None:
        super().__init__(side_by_side(model, perturbation), options)
        self.several = self.given = len(perturbation.alphas)
        self.candidates *= self.several

    def _decode(self, sound: Input) -> list[list[Hypothesis]]:
        return _best_of_each(super()._decode(sound.select(_rows(sound, self.several))), self.several)


def _rows(source: Input, several: int) -> torch.Tensor:
    return torch.arange(len(source), device=source.mask_BS.device).repeat_interleave(several)


def _best_of_each(found: Sequence[list[Hypothesis]], several: int) -> list[list[Hypothesis]]:
    """The first hypothesis of each row, the rows of a sentence together."""
    return [[hypotheses[0] for hypotheses in found[start : start + several]] for start in range(0, len(found), several)]


class Examination(Protocol):
    """What a model is tried on, and how its outputs are scored."""

    def outputs(self, model: AnyTranslator, change: Perturbation, beam: int) -> list[list[str]]:
        """Of each item, an output for each α."""
        ...

    def scores(self, model: AnyTranslator, outputs: Sequence[str]) -> dict[str, Statistics]:
        """By name."""
        ...

    def memories(self, model: AnyTranslator) -> Iterator[Memory]:
        """The encoder's states of all items, a few at a time, in their order."""
        ...

    def merits(self, model: AnyTranslator, metric: str, outputs: Sequence[str]) -> NDArray[np.float64]:
        """What a proxy's metric says of each output, more being better, but for columns of numbers."""
        ...


@dataclass(frozen=True)
class OfText:
    """Translations against references, BLEU and chrF, and by judges.

    Attributes:
        iterations: mask-predict passes of a non-autoregressive model.
    """

    corpus: Corpus
    judges: Mapping[str, Judge]
    iterations: int

    def outputs(self, model: AnyTranslator, change: Perturbation, beam: int) -> list[list[str]]:
        """A line without text has the same translation for every α.

        Raises:
            ConfigurationError: a model of speech.
        """
        if isinstance(model, SpeechTransformer):
            raise ConfigurationError("The model hears recordings and reads no text: name their transcripts in --text.")
        options = DecodingOptions(beam=beam, length_beam=beam, iterations=self.iterations)
        found = AlphaTranslator(model, change, options).translate(self.corpus.source, prefixes=self.corpus.prefixes)
        several = len(change.alphas)
        return [[text for text, _ in (each if len(each) == several else each * several)] for each in found]

    def scores(self, model: AnyTranslator, outputs: Sequence[str]) -> dict[str, Statistics]:
        """See the class."""
        plain = model.vocabulary.as_plain_text
        sources, references = [plain(text) for text in self.corpus.source], [plain(t) for t in self.corpus.target or []]
        rows = {
            "bleu": translation.bleu(outputs, references, "none" if self.corpus.segmented else "13a"),
            "chrf": translation.chrf(outputs, references),
        }
        return rows | {
            name: translation.mean(list(judge(sources, outputs, references))) for name, judge in self.judges.items()
        }

    def memories(self, model: AnyTranslator) -> Iterator[Memory]:
        """See `Examination`."""
        sources = encode_corpus(replace(self.corpus, target=None), model.vocabulary, sys.maxsize, sys.maxsize)
        for first in range(0, len(sources), AT_ONCE):
            batch = sources.batch(range(first, min(first + AT_ONCE, len(sources))))
            yield model.encode(batch.source.to(model.device))

    def merits(self, model: AnyTranslator, metric: str, outputs: Sequence[str]) -> NDArray[np.float64]:
        """See `Examination`; a metric of text is better the higher it is."""
        plain = model.vocabulary.as_plain_text
        sources, references = [plain(text) for text in self.corpus.source], [plain(t) for t in self.corpus.target or []]
        return np.array(open_metric(metric, model.device).score(sources, outputs, references), dtype=np.float64)


@dataclass(frozen=True)
class OfSpeech:
    """Transcripts against what was said: WER and CER."""

    corpus: SpeechCorpus

    def outputs(self, model: AnyTranslator, change: Perturbation, beam: int) -> list[list[str]]:
        """Recordings of any length; the rest of one that is longer than the model's window is not heard.

        Raises:
            ConfigurationError: a model of text.
        """
        if not isinstance(model, SpeechTransformer):
            raise ConfigurationError("The model reads text and hears nothing: name the text in --source and --target.")
        found = AlphaTranscriber(model, change, DecodingOptions(beam=beam)).transcribe(self.corpus.clips)
        return [[text for text, _ in each] for each in found]

    def scores(self, model: AnyTranslator, outputs: Sequence[str]) -> dict[str, Statistics]:
        """See the class."""
        said = self.corpus.text or []
        return {"WER": word_errors(outputs, said), "CER": character_errors(outputs, said)}

    def memories(self, model: AnyTranslator) -> Iterator[Memory]:
        """See `Examination`."""
        assert isinstance(model, SpeechTransformer)
        for first in range(0, len(self.corpus), AT_ONCE):
            yield model.encode(model.features(self.corpus.clips[first : first + AT_ONCE]).to(model.device))

    def merits(self, model: AnyTranslator, metric: str, outputs: Sequence[str]) -> NDArray[np.float64]:
        """See `Examination`; an error rate is better the lower it is."""
        return -rates(RATES[metric](outputs, self.corpus.text or []))


@dataclass(frozen=True)
class Point:
    """One α at one beam."""

    beam: int
    alpha: float
    scores: dict[str, Interval]
    against_zero: dict[str, Comparison]
    outputs: list[str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def alpha_curve(
    address: str, options: PerturbationOptions, on: Examination, beams: Sequence[int], device: torch.device
) -> list[Point]:
    """Scores for every beam and α; α = 0 comes first, asked for or not.

    Args:
        address: of the model.
        options: proxy, alphas, norm and steps.
        on: what it is tried on.
        beams: widths of the beam; of a non-autoregressive model, lengths that it tries.
        device: where to decode.

    Raises:
        ConfigurationError: see `open_perturbation`; a trust, which belongs to a single translation.
    """
    if options.trust:
        raise ConfigurationError("A curve shows what each alpha does to every sentence: drop the trust.")
    model = load_translator(fetch(address)).to(device)
    change = open_perturbation(options, model, address)
    change = replace(change, alphas=tuple(dict.fromkeys([0.0, *change.alphas])))
    points = []
    for beam in beams:
        found = on.outputs(model, change, beam)
        zero: dict[str, Statistics] = {}
        for number, alpha in enumerate(change.alphas):
            outputs = [each[number] for each in found]
            rows = on.scores(model, outputs)
            zero = zero or rows
            against = {name: compare(row, zero[name]) for name, row in rows.items()} if number else {}
            points.append(Point(beam, alpha, {name: interval(row) for name, row in rows.items()}, against, outputs))
    return points


def show_curve(points: Sequence[Point]) -> str:
    """A table: a line for each beam and α."""
    lines = [["beam", "alpha", *points[0].scores]]
    lines += [[f"{point.beam}", f"{point.alpha:g}", *(_cell(point, name) for name in point.scores)] for point in points]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numbers = [[cell.rjust(width) for cell, width in zip(line[:2], widths, strict=False)] for line in lines]
    scores = [[cell.ljust(width) for cell, width in zip(line[2:], widths[2:], strict=True)] for line in lines]
    return "\n".join("  ".join([*left, *right]).rstrip() for left, right in zip(numbers, scores, strict=True))


def _cell(point: Point, name: str) -> str:
    """A score, and its difference to that of α = 0, each with its interval."""
    digits, score = DIGITS.get(name, 4), point.scores[name]
    cell = f"{score.value:.{digits}f} [{score.low:.{digits}f}, {score.high:.{digits}f}]"
    if name not in point.against_zero:
        return cell
    found = point.against_zero[name]
    return f"{cell} {found.difference:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
