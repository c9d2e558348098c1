"""Pairs that are good enough: every pair is scored by a quality estimator, once for ever, and the best are kept.

QE-EBM trains on the pairs that COMET-KIWI gives 0.7 or more (published code of Bu et al., arXiv 2410.10228).

Axis of this room: N pairs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from energymt.data.corpus import Corpus
from energymt.decoding.rerank import TextScore
from energymt.errors import ConfigurationError, DataError
from energymt.folders import MANIFEST, write_error

CHUNK = 2048  # pairs that are scored and written down at once: what a killed run loses at most


@dataclass(frozen=True)
class Criterion:
    """What a pair must score to be kept: `threshold` at least, or as much as the best `quantile` of all pairs.

    Raises:
        ConfigurationError: neither or both of them, a threshold that is no number, a quantile outside of (0, 1].
    """

    threshold: float | None = None
    quantile: float | None = None

    def __post_init__(self) -> None:
        if (self.threshold is None) == (self.quantile is None):
            raise ConfigurationError("A filter keeps by a threshold or by a quantile: give exactly one of the two.")
        if self.threshold is not None and not math.isfinite(self.threshold):
            raise ConfigurationError(f"A threshold of {self.threshold} divides no scores: give a number.")
        if self.quantile is not None and not 0 < self.quantile <= 1:
            raise ConfigurationError(
                f"The quantile is the share of the pairs to keep, above 0 and at most 1, and not {self.quantile}."
            )

    def least(self, scores_N: NDArray[np.float64]) -> float:
        """The lowest score that is kept. Of a quantile: that of the last pair in the share, which is one at least."""
        if self.quantile is None:
            assert self.threshold is not None
            return self.threshold
        share = max(1, round(self.quantile * len(scores_N)))
        return float(np.sort(scores_N)[-share])


@dataclass(frozen=True)
class Filtered:
    """What a filter kept of a corpus, in the order of the corpus."""

    corpus: Corpus
    scores: list[float]
    """Of the pairs that were kept."""
    least: float
    """The lowest score that is kept."""
    scores_N: NDArray[np.float64]
    """Of all pairs."""


def filter_pairs(corpus: Corpus, criterion: Criterion, score: TextScore, store: ScoreStore) -> Filtered:
    """The pairs that meet the criterion; pairs of equal score are all kept or all dropped.

    Args:
        corpus: with targets.
        criterion: what is kept.
        score: higher is better; `energymt.models.scoring.score_lines` with an estimator, or a pool.
        store: the scores of earlier runs of the same estimator.

    Raises:
        DataError: no pair is good enough, or a score is no number.
    """
    assert corpus.target is not None
    scores_N = store.scores(corpus, score)
    least = criterion.least(scores_N)
    rows = np.flatnonzero(scores_N >= least).tolist()
    if not rows:
        raise DataError(
            f"None of the {len(corpus):,} pairs of {corpus.origin} scores {least:g} or more, the highest score is "
            f"{scores_N.max():.4f}: lower the threshold, or keep a quantile."
        )
    source, target = [corpus.source[row] for row in rows], [corpus.target[row] for row in rows]
    prefixes = None if corpus.prefixes is None else [corpus.prefixes[row] for row in rows]
    kept = Corpus(source, target, f"{corpus.origin}, filtered", corpus.segmented, prefixes)
    return Filtered(kept, scores_N[rows].tolist(), least, scores_N)


class ScoreStore:
    """The scores of one estimator in an append-only file: a JSON line a pair, found again by its content.

    A line that was cut when a run was killed counts for nothing: its pair is scored again. Several processes may
    write at once.

    Args:
        folder: of the files of all estimators.
        estimator: what tells this estimator from every other, such as `folder_fingerprint` of its folder.
    """

    def __init__(self, folder: Path, estimator: str) -> None:
        self.estimator = estimator
        self.file = folder / f"{hashlib.sha256(estimator.encode()).hexdigest()[:16]}.jsonl"

    def scores(self, corpus: Corpus, score: TextScore) -> NDArray[np.float64]:
        """The score of every pair, [N]; pairs without one go through `score`, `CHUNK` of them at a time.

        Raises:
            DataError: a score that is no finite number; the others of its chunk are kept.
            StorageError: the file cannot be written.
        """
        assert corpus.target is not None
        known = self._read()
        keys = [self._key(*pair) for pair in zip(corpus.source, corpus.target, strict=True)]
        missing = sorted({keys[row]: row for row in reversed(range(len(keys))) if keys[row] not in known}.values())
        for start in range(0, len(missing), CHUNK):
            rows = missing[start : start + CHUNK]
            found = score([corpus.source[row] for row in rows], [corpus.target[row] for row in rows])
            values = {keys[row]: float(value) for row, value in zip(rows, found, strict=True)}
            finite = {key: value for key, value in values.items() if math.isfinite(value)}
            if finite:
                self._append(finite)
            if len(finite) < len(rows):
                first = next(row for row in rows if keys[row] not in finite)
                raise DataError(
                    f"{len(rows) - len(finite):,} of {len(rows):,} scores are no finite number, the first of them is "
                    f"{values[keys[first]]} for pair {first + 1:,} of {corpus.origin}: the estimator cannot read this "
                    f"pair, its weights are damaged, or its pool could not score it (see the log); all other scores "
                    f"are kept: try again, remove the pair, or use another estimator."
                )
            known |= finite
        return np.array([known[key] for key in keys])

    def _key(self, source: str, translation: str) -> str:
        return hashlib.sha256(json.dumps([self.estimator, source, translation]).encode()).hexdigest()

    def _read(self) -> dict[str, float]:
        known: dict[str, float] = {}
        if self.file.is_file():
            for line in self.file.read_bytes().splitlines():
                try:
                    record = json.loads(line)
                    known[record["key"]] = float(record["score"])
                except (ValueError, KeyError, TypeError):  # cut when its writer was killed
                    continue
        return known

    def _append(self, scores: Mapping[str, float]) -> None:
        lines = "".join(json.dumps({"key": key, "score": score}) + "\n" for key, score in scores.items())
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - 1))
                cut = file.read() not in (b"", b"\n")  # the next line must not grow onto it
                file.write(b"\n" * cut + lines.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(error, self.file) from error


def folder_fingerprint(folder: Path) -> str:
    """sha256 over the names and contents of all files of a model folder, its manifest left out."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{path.relative_to(folder).as_posix()}\n{content}\n".encode())
    return digest.hexdigest()
