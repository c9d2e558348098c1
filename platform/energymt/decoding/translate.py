"""From text to text: lines are encoded, sorted into batches of like length, decoded, and given back in their order."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import BaseModel, ConfigDict, Field

from energymt.data.vocabulary import Vocabulary
from energymt.decoding import autoregressive, mask_predict, sampling
from energymt.decoding.rerank import (
    TextScore,
    Translation,
    Utility,
    by_energy,
    rerank,
    rerank_by_consensus,
    rerank_texts,
)
from energymt.energies import Energy
from energymt.errors import ConfigurationError, DataError
from energymt.models.translator import AutoregressiveModel, NonautoregressiveModel
from energymt.records import Hypothesis, Source

FIRST_WINDOW = 16  # lines of a stream that are read before the first of them is translated

logger = logging.getLogger(__name__)


@runtime_checkable
class Engine(Protocol):
    """A translator in another runtime, with a search of its own (see `energymt.export`)."""

    autoregressive: bool
    vocabulary: Vocabulary

    @property
    def device(self) -> torch.device:
        """Where it wants its sources."""
        ...

    @property
    def longest(self) -> int | None:
        """Most tokens of a sentence."""
        ...

    def search(self, source: Source, **settings: Any) -> list[list[Hypothesis]]:
        """What `autoregressive.decode` or `mask_predict.decode` would find, with their settings."""
        ...


class DecodingOptions(BaseModel):
    """How to translate; each model takes what concerns its kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    beam: int = Field(default=5, ge=1)
    """Running hypotheses of an autoregressive translator; 1 is greedy search."""
    length_penalty: float = Field(default=1.0, ge=0)
    """Exponent of the length that divides a hypothesis's log-probability (autoregressive)."""
    patience: float = Field(default=1.0, ge=1)
    """Ended hypotheses, in beams, after which a sentence is done (autoregressive); infinity searches to the end."""
    max_length: int | None = Field(default=None, ge=1)
    """Most tokens of a translation (autoregressive); none: twice the source's tokens and ten."""
    length_beam: int = Field(default=5, ge=1)
    """Target lengths tried by a non-autoregressive translator (Mask-Predict: 5; ENGINE, Table 3: 3)."""
    iterations: int = Field(default=10, ge=1)
    """Passes of mask-predict over a translation; 1 is a single parallel prediction."""
    samples: int | None = Field(default=None, ge=1)
    """Draw so many candidates instead of searching (autoregressive); none: search."""
    seed: int = Field(default=1, ge=0)
    """Of the draws."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the draws; below 1 they are nearer to the likeliest."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw from the fewest tokens that have this probability together; 1 is the translator's own distribution."""
    n_best: int = Field(default=1, ge=1)
    """Translations to give for each line, at most `beam`, `length_beam` or `samples`."""
    tokens_per_batch: int = Field(default=8192, ge=1)
    """Tokens of a batch: sentences × longest of them × beam (or length beam)."""
    window: int = Field(default=1024, ge=1)
    """Most lines of a stream that are read ahead and sorted by length."""
    prefix: str = ""
    """Task prefix of every source, spaces included; what ranks the candidates' text does not read it."""
    max_source_tokens: int | None = Field(default=None, ge=1)
    """Longest source, prefix and end token included; the rest of a longer line is cut off. None: what a model takes."""


class Translator:
    """A model, its vocabulary and the options of decoding: lines in, translations out, in the same order.

    Args:
        model: autoregressive (beam search) or not (mask-predict); or an exported one.
        options: see `DecodingOptions`.
        energy: picks among the candidates of a line instead of the model's own score, lowest first; its value stands
            in `extra["energy"]`.
        quality: scores the text of all candidates of a line, highest first; its value stands in `extra["quality"]`.
        utility: scores the text of each candidate against each other one (minimum Bayes risk); in `quality`, too.

    Raises:
        ConfigurationError: if `n_best` is more than there are candidates.
    """

    def __init__(
        self,
        model: AutoregressiveModel | NonautoregressiveModel | Engine,
        options: DecodingOptions | None = None,
        energy: Energy | None = None,
        quality: TextScore | None = None,
        utility: Utility | None = None,
    ) -> None:
        self.model = model
        self.options = options or DecodingOptions()
        self.energy, self.quality, self.utility = energy, quality, utility
        self.autoregressive = (
            model.autoregressive if isinstance(model, Engine) else isinstance(model, AutoregressiveModel)
        )
        name = "beam" if self.autoregressive else "length_beam"
        if self.options.samples is not None:
            if not isinstance(model, AutoregressiveModel):
                raise ConfigurationError("Samples are drawn from an autoregressive translator in PyTorch alone.")
            name = "samples"
        elif (self.options.temperature, self.options.top_p) != (1.0, 1.0):
            raise ConfigurationError("temperature and top_p are of draws, and a search draws nothing: set samples too.")
        self.candidates: int = getattr(self.options, name)
        if self.options.n_best > self.candidates:
            raise ConfigurationError(
                f"n_best is {self.options.n_best} and {name} {self.candidates}: raise {name} or lower n_best."
            )
        self.given = self.options.n_best
        ranked = quality is not None or utility is not None
        self.kept = self.candidates if ranked else self.options.n_best  # until the text is ranked

    def translate(
        self, texts: Sequence[str], lengths: Sequence[int] | None = None, prefixes: Sequence[str] | None = None
    ) -> list[list[Translation]]:
        """Up to `n_best` translations of each text, best first. An empty text has one empty translation.

        Args:
            texts: one sentence each.
            lengths: lengths of the translations in tokens (oracle), for non-autoregressive models.
            prefixes: task prefix of each text; None: that of the options.
        """
        self._check_lengths(lengths, len(texts))
        return self._translate(texts, lengths, prefixes, first_line=1)

    def stream(self, lines: Iterable[str]) -> Iterator[list[Translation]]:
        """Translations of each line, in order, while lines are still coming in.

        A few lines are read before the first is translated, then more and more, up to `window` at a time. A DataError
        of `lines` (a line that is not UTF-8) is raised when all lines before it are translated.
        """
        lines, first_line, size = iter(lines), 1, min(FIRST_WINDOW, self.options.window)
        trouble: DataError | None = None
        while trouble is None:
            texts: list[str] = []
            try:
                texts.extend(line.rstrip("\r\n") for line in islice(lines, size))
            except DataError as error:
                trouble = error
            yield from self._translate(texts, None, None, first_line)
            if len(texts) < size:
                break
            first_line += len(texts)
            size = min(2 * size, self.options.window)
        if trouble is not None:
            raise trouble

    def translate_ids(
        self, sources: Sequence[Sequence[int]], lengths: Sequence[int] | None = None
    ) -> list[list[Hypothesis]]:
        """The same from encoded sources (end token included) to hypotheses; without `quality`, which reads text."""
        self._check_lengths(lengths, len(sources))
        return [hypotheses[: self.given] for hypotheses in self._found(sources, lengths)]

    def _found(self, sources: Sequence[Sequence[int]], lengths: Sequence[int] | None) -> list[list[Hypothesis]]:
        """The `kept` best hypotheses of each encoded source."""
        found: list[list[Hypothesis]] = [[] for _ in sources]
        widths = [max(len(ids), lengths[row] if lengths is not None else 0) for row, ids in enumerate(sources)]
        for rows in self._batches(widths):
            source = self._source([sources[row] for row in rows])
            chosen = None if lengths is None else [lengths[row] for row in rows]
            for row, hypotheses in zip(rows, self._decode(source, chosen), strict=True):
                found[row] = hypotheses
        return found

    def _check_lengths(self, lengths: Sequence[int] | None, sentences: int) -> None:
        if lengths is not None and self.autoregressive:
            raise ConfigurationError("An autoregressive translator ends its translations itself: give it no lengths.")
        if lengths is not None and len(lengths) != sentences:
            raise ConfigurationError(f"{len(lengths)} lengths were given for {sentences} sentences.")

    def _translate(
        self,
        texts: Sequence[str],
        lengths: Sequence[int] | None,
        prefixes: Sequence[str] | None,
        first_line: int,
    ) -> list[list[Translation]]:
        prefixes = [self.options.prefix] * len(texts) if prefixes is None else prefixes
        pairs = zip(prefixes, texts, strict=True)
        sources = [self._encode(prefix, text, line) for line, (prefix, text) in enumerate(pairs, first_line)]
        full = [row for row, ids in enumerate(sources) if ids]
        chosen = None if lengths is None else [lengths[row] for row in full]
        words = self.model.vocabulary
        found = [
            [(words.decode(item.ids), item) for item in hypotheses]
            for hypotheses in self._found([sources[row] for row in full], chosen)
        ]
        if self.quality is not None:
            found = rerank_texts(found, [words.as_plain_text(texts[row]) for row in full], self.quality)
        if self.utility is not None:
            found = rerank_by_consensus(found, [words.as_plain_text(texts[row]) for row in full], self.utility)
        translations: list[list[Translation]] = [[("", Hypothesis((), 0.0, 0.0))] for _ in texts]
        for row, ranked in zip(full, found, strict=True):
            translations[row] = ranked[: self.given]
        return translations

    def _encode(self, prefix: str, text: str, line: int) -> list[int]:
        """The source's ids behind those of its prefix, cut to what the model can take; none for a line without text."""
        vocabulary = self.model.vocabulary
        ids = vocabulary.encode_source(prefix + text) if text.strip() else []
        limits = [limit for limit in (self.options.max_source_tokens, self.model.longest) if limit is not None]
        if not limits or len(ids) <= min(limits):
            return ids
        logger.warning("Line %d has %d tokens and the limit is %d: its end is cut off.", line, len(ids), min(limits))
        # The end token stays, and with it what a hub tokenizer puts behind it (a language code).
        tail = ids[ids.index(vocabulary.eos_id) :] if vocabulary.eos_id in ids else []
        return [*ids[: max(0, min(limits) - len(tail))], *tail]

    def _batches(self, widths: Sequence[int]) -> Iterator[list[int]]:
        """Rows of like length, longest first: if memory does not suffice, the first batch shows it."""
        batch: list[int] = []
        width = 0
        for row in sorted(range(len(widths)), key=lambda row: -widths[row]):
            width = width if batch else widths[row]
            batch.append(row)
            if (len(batch) + 1) * width * self.candidates > self.options.tokens_per_batch:
                yield batch
                batch = []
        if batch:
            yield batch

    def _source(self, sources: Sequence[Sequence[int]]) -> Source:
        longest = max(len(ids) for ids in sources)
        pad_id = self.model.vocabulary.pad_id
        ids_BS = torch.tensor([[*ids, *[pad_id] * (longest - len(ids))] for ids in sources])
        mask_BS = torch.arange(longest) < torch.tensor([len(ids) for ids in sources])[:, None]
        return Source(ids_BS, mask_BS).to(self.model.device)

    def _decode(self, source: Source, lengths: Sequence[int] | None) -> list[list[Hypothesis]]:
        options, size = self.options, self.model.vocabulary.size
        if options.samples is not None:
            assert isinstance(self.model, AutoregressiveModel)
            found = sampling.candidates(
                self.model,
                source,
                options.samples,
                seed=options.seed,
                temperature=options.temperature,
                top_p=options.top_p,
                max_length=options.max_length,
                length_penalty=options.length_penalty,
            )
            found = found if self.energy is None else rerank(found, source, self.energy, size)
            return [hypotheses[: self.kept] for hypotheses in found]
        if self.autoregressive:
            found = self._search(
                source,
                beam=options.beam,
                max_length=options.max_length,
                length_penalty=options.length_penalty,
                patience=options.patience,
                n_best=self.kept if self.energy is None else options.beam,
            )
            if self.energy is not None:
                found = rerank(found, source, self.energy, size)
            return [hypotheses[: self.kept] for hypotheses in found]
        found = self._search(
            source,
            length_beam=options.length_beam,
            iterations=options.iterations,
            lengths_B=lengths,
            n_best=self.kept,
            rank=None if self.energy is None else by_energy(self.energy, size),
        )
        if self.energy is None:
            return found
        return [[item.with_extra(energy=-item.extra["rank"]) for item in hypotheses] for hypotheses in found]

    def _search(self, source: Source, **settings: Any) -> list[list[Hypothesis]]:
        if isinstance(self.model, Engine):
            return self.model.search(source, **settings)
        if isinstance(self.model, AutoregressiveModel):
            return autoregressive.decode(self.model, source, **settings)
        return mask_predict.decode(self.model, source, **settings)
