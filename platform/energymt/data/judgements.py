"""Translations with a score each: human judgements (MLQE-PE), or automatic ones of a translator's own outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energymt.data.corpus import Corpus, DataConfig, read_columns
from energymt.errors import DataError


class JudgedDataConfig(DataConfig):
    """Where judged translations stand."""

    score: str
    """Column or key of the score of each translation, higher is better (MLQE-PE: z_mean)."""


@dataclass(frozen=True)
class JudgedCorpus:
    """Sources, translations (`corpus.target`) and their N scores."""

    corpus: Corpus
    scores_N: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.corpus)


def read_judged(config: JudgedDataConfig) -> JudgedCorpus:
    """Read judged translations.

    Raises:
        ConfigurationError: plain text files, which have no column of scores.
        DataError: a score that is no finite number, or scores that are all equal; see also `read_corpus`.
    """
    corpus, beside = read_columns(config, [config.score])
    scores = numbers(config.score, beside[config.score])
    if scores.min() == scores.max():
        raise DataError(f"All scores in column {config.score!r} of {config.path} are {scores[0]:g}: nothing to learn.")
    return JudgedCorpus(corpus, scores)


def numbers(name: str, values: Sequence[tuple[str, Any]]) -> NDArray[np.float64]:
    """A column of numbers, each with its place.

    Raises:
        DataError: a value that is no finite number; the sentence names file and line.
    """
    found = np.empty(len(values))
    for row, (place, value) in enumerate(values):
        try:
            found[row] = float(value)
        except (TypeError, ValueError, OverflowError):
            found[row] = math.nan
        if not math.isfinite(found[row]) or isinstance(value, bool):
            raise DataError(f"{place}: column {name!r} holds {value!r} instead of a number; correct it.")
    return found
