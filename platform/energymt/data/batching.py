"""From a corpus to optimizer steps: encode once, cut every epoch by tokens and length, collate what is asked for.

The order of an epoch is a function of the seed and of the epoch's number alone, and every epoch has the same number
of steps. So any global step is found by a division: a resumed run goes on in the middle of an epoch, and the number of
workers changes nothing about how a step is cut.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energymt.data.corpus import Corpus
from energymt.data.vocabulary import Vocabulary
from energymt.errors import ConfigurationError, DataError
from energymt.records import Batch, Source, StepBatch

MICRO_BATCHES_PER_POOL = 64


class Encoded(Protocol):
    """What a plan of steps needs to know of its pairs, text or sound, and how they become a batch."""

    @property
    def rows(self) -> NDArray[np.int64]:
        """The row of each pair in its corpus."""
        ...

    @property
    def dropped(self) -> int:
        """Pairs of the corpus that were left out."""
        ...

    @property
    def source_lengths(self) -> NDArray[np.int64]:
        """Positions that each source takes in an encoder."""
        ...

    @property
    def target_lengths(self) -> NDArray[np.int64]:
        """Tokens of each target, without the end token; all 0 where there are no targets."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """One padded batch of the pairs at these positions; its sentence ids are rows of the corpus."""
        ...


@dataclass(frozen=True)
class EncodedCorpus:
    """The pairs of a corpus as ids; pairs that are too long are left out, and the others keep their row numbers."""

    source_ids: list[NDArray[np.int32]]  # each ends as an encoder reads it: with the end token
    target_ids: list[NDArray[np.int32]]  # no special tokens; all empty for a corpus without targets
    rows: NDArray[np.int64]  # the row of each pair in the corpus
    pad_id: int
    origin: str
    fingerprint: str  # sha256 of the texts
    dropped: int  # pairs left out: too long, or empty once encoded

    def __len__(self) -> int:
        return len(self.source_ids)

    @property
    def source_lengths(self) -> NDArray[np.int64]:
        """Tokens of each source, as an encoder reads it."""
        return np.array([len(ids) for ids in self.source_ids], dtype=np.int64)

    @property
    def target_lengths(self) -> NDArray[np.int64]:
        """Tokens of each target."""
        return np.array([len(ids) for ids in self.target_ids], dtype=np.int64)

    def batch(self, indices: Sequence[int]) -> Batch:
        """See `collate`."""
        return collate(self, indices)


def encode_corpus(corpus: Corpus, vocabulary: Vocabulary, max_source: int, max_target: int) -> EncodedCorpus:
    """Encode every pair that has at most `max_source` and `max_target` tokens, prefix and end tokens counted.

    Raises:
        ConfigurationError: if the text is segmented and the vocabulary is not made for it.
        DataError: if no pair is left.
    """
    if corpus.segmented and not vocabulary.segmented:
        raise ConfigurationError(
            f"{corpus.origin} is marked as segmented, but the vocabulary splits plain text; "
            f"train a vocabulary on segmented text, or drop `segmented`."
        )
    sources, targets, rows = [], [], []
    for row, text in enumerate(corpus.inputs):
        source = vocabulary.encode_source(text)
        target = vocabulary.encode(corpus.target[row]) if corpus.target is not None else []
        empty = len(source) < 2 or (corpus.target is not None and not target)
        if empty or len(source) > max_source or len(target) + 1 > max_target:
            continue
        sources.append(np.array(source, dtype=np.int32))
        targets.append(np.array(target, dtype=np.int32))
        rows.append(row)
    if not rows:
        raise DataError(
            f"No pair of {corpus.origin} has at most {max_source} source and {max_target} target tokens; "
            f"raise max_source_tokens or max_target_tokens."
        )
    return EncodedCorpus(
        source_ids=sources,
        target_ids=targets,
        rows=np.array(rows, dtype=np.int64),
        pad_id=vocabulary.pad_id,
        origin=corpus.origin,
        fingerprint=corpus.fingerprint,
        dropped=len(corpus) - len(rows),
    )


def pad(rows: Sequence[Sequence[int] | NDArray[np.int32]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor, padded at the end: (ids int64 [B, T], mask bool [B, T], True on real tokens)."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    ids = np.full(mask.shape, pad_id, dtype=np.int64)
    if mask.any():
        ids[mask] = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])
    return torch.from_numpy(ids), torch.from_numpy(mask)


def collate(encoded: EncodedCorpus, indices: Sequence[int]) -> Batch:
    """One padded batch of the pairs at `indices` (positions in `encoded`); sentence ids are rows of the corpus."""
    chosen = list(indices)
    return Batch(
        torch.from_numpy(encoded.rows[chosen]),
        Source(*pad([encoded.source_ids[i] for i in chosen], encoded.pad_id)),
        *pad([encoded.target_ids[i] for i in chosen], encoded.pad_id),
    )


class Plan(Protocol):
    """What gives the batches of a run, from any step on."""

    steps_per_epoch: int

    @property
    def encoded(self) -> Encoded:
        """The labelled pairs."""
        ...

    def iterate(self, start_step: int = 0, rank: int = 0, world: int = 1) -> Iterator[StepBatch]:
        """Steps without end from the global step `start_step` on, for worker `rank` of `world`."""
        ...


class StepPlan:
    """How every epoch is cut: sentences of like length into micro-batches, micro-batches into optimizer steps.

    Sentences are shuffled, sorted by length within pools, and cut where a micro-batch is full; the micro-batches are
    shuffled and dealt out to the steps by their target tokens. Each sentence comes exactly once an epoch.

    Args:
        encoded: the pairs.
        tokens_per_step: target tokens (end tokens counted) of a step; a step holds this many on average, or slightly
            more, and at least one micro-batch.
        tokens_per_micro_batch: most positions of a micro-batch on its longer side, padding included. A sentence that
            is longer goes alone.
        seed: of the order.
        least_width: positions that a sentence takes at least, where something longer may be made of it.

    Attributes:
        steps_per_epoch: the same for every epoch.
    """

    def __init__(
        self,
        encoded: Encoded,
        tokens_per_step: int,
        tokens_per_micro_batch: int,
        seed: int,
        *,
        least_width: int = 1,
    ) -> None:
        self.encoded = encoded
        self.tokens_per_step = tokens_per_step
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.seed = seed
        sources, targets = encoded.source_lengths, encoded.target_lengths
        self._tokens = targets + 1 if targets.any() else sources
        self._widths = np.maximum(np.maximum(sources, self._tokens), least_width)
        # No micro-batch has more tokens than an average step, so that each step gets one at least.
        self._most_tokens = max(tokens_per_step, int(self._tokens.max()))
        self.steps_per_epoch = max(1, int(self._tokens.sum()) // self._most_tokens)
        per_micro_batch = max(1, tokens_per_micro_batch // int(self._widths.mean()))
        self._pool = MICRO_BATCHES_PER_POOL * per_micro_batch

    def epoch(self, number: int) -> list[list[list[int]]]:
        """The steps of an epoch, each a list of micro-batches, each a list of positions in `encoded`."""
        random = np.random.default_rng([self.seed, number])
        order = random.permutation(len(self.encoded))
        micro_batches: list[NDArray[np.int64]] = []
        for start in range(0, len(order), self._pool):
            pool = order[start : start + self._pool]
            by_length = np.lexsort((self._tokens[pool], self._widths[pool]))
            micro_batches.extend(self._cut(pool[by_length]))
        micro_batches = [micro_batches[i] for i in random.permutation(len(micro_batches))]
        return self._deal(micro_batches)

    def iterate(self, start_step: int = 0, rank: int = 0, world: int = 1) -> Iterator[StepBatch]:
        """Steps without end from the global step `start_step` on; worker `rank` of `world` gets its share of each.

        A worker may get no micro-batch of a step that has fewer than `world` of them.
        """
        number, skipped = divmod(start_step, self.steps_per_epoch)
        step = start_step
        while True:
            for micro_batches in self.epoch(number)[skipped:]:
                share = micro_batches[rank::world]
                batches = tuple(self.encoded.batch(chosen) for chosen in share)
                everyone = tuple(self.encoded.rows[[i for chosen in micro_batches for i in chosen]].tolist())
                yield StepBatch(step, number, batches, rank=rank, world=world, sentence_ids=everyone)
                step += 1
            number, skipped = number + 1, 0

    def _cut(self, sentences: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        """Consecutive sentences, sorted by width, as full micro-batches."""
        widths = self._widths[sentences].tolist()
        ends = np.cumsum(self._tokens[sentences]).tolist()
        start, before = 0, 0
        while start < len(widths):
            fits = bisect_right(
                range(start, len(widths)), self.tokens_per_micro_batch, key=lambda i: widths[i] * (i + 1 - start)
            )
            stop = max(start + 1, min(start + fits, bisect_right(ends, before + self._most_tokens)))
            yield sentences[start:stop]
            start, before = stop, ends[stop - 1]

    def _deal(self, micro_batches: list[NDArray[np.int64]]) -> list[list[list[int]]]:
        """Each micro-batch goes to the step in whose share of the epoch's tokens its middle falls."""
        tokens = np.array([self._tokens[chosen].sum() for chosen in micro_batches])
        middles_twice = 2 * np.cumsum(tokens) - tokens  # in whole numbers, so that no rounding leaves a step empty
        places = middles_twice * self.steps_per_epoch // (2 * tokens.sum())
        steps: list[list[list[int]]] = [[] for _ in range(self.steps_per_epoch)]
        for place, chosen in zip(places.tolist(), micro_batches, strict=True):
            steps[place].append(chosen.tolist())
        return steps
