"""Error rates of transcripts: words (WER) and characters (CER), in percent of those of the references.

    rate = 100 · (substitutions + insertions + deletions) / words of the references

on alignments of jiwer, summed over the whole set. Both sides are normalised first (`normalised`). Characters count the
single spaces between words. A recording whose reference has no word has all that is heard in it as insertions; a set
without any word in its references has no rate, and is refused.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jiwer
import numpy as np
from numpy.typing import NDArray

from energymt.errors import DataError
from energymt.metrics.translation import Statistics

APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'"})
SUBSTITUTIONS, INSERTIONS, DELETIONS, LENGTH = range(4)  # columns of the rows
KINDS = {"substitute": SUBSTITUTIONS, "insert": INSERTIONS, "delete": DELETIONS}


def normalised(text: str) -> str:
    """A transcript as it is compared: NFKC, lower case, words parted by single spaces.

    Punctuation and symbols part words and go; an apostrophe within a word stays ("don't"). Numbers stay as they are
    written: "7" is not "seven".
    """
    text = unicodedata.normalize("NFKC", text).lower().translate(APOSTROPHES)
    kept = [character if _stays(text, place) else " " for place, character in enumerate(text)]
    return " ".join("".join(kept).split())


def _stays(text: str, place: int) -> bool:
    if text[place] == "'":
        return text[place - 1 : place].isalnum() and text[place + 1 : place + 2].isalnum()
    return unicodedata.category(text[place])[0] not in "PS"


def word_errors(hypotheses: Sequence[str], references: Sequence[str]) -> Statistics:
    """WER of a set in percent; each row holds substitutions, insertions, deletions and words of the reference.

    Raises:
        DataError: if the lists differ in length, or the references hold no word.
    """
    hypotheses, references = _normalised(hypotheses, references)
    words = [len(text.split()) for text in references]
    return _statistics(jiwer.process_words(references, hypotheses).alignments, words)


def character_errors(hypotheses: Sequence[str], references: Sequence[str]) -> Statistics:
    """CER of a set in percent; each row holds substitutions, insertions, deletions and characters of the reference.

    Raises:
        DataError: as `word_errors`.
    """
    hypotheses, references = _normalised(hypotheses, references)
    return _statistics(jiwer.process_characters(references, hypotheses).alignments, list(map(len, references)))


def rates(errors: Statistics) -> NDArray[np.float64]:
    """The rate of each recording by itself, in percent; of one without a word in its reference, 100 an insertion."""
    rows_B4 = errors.rows_BC
    return np.asarray(100.0 * rows_B4[:, :LENGTH].sum(1) / np.maximum(rows_B4[:, LENGTH], 1.0))


@dataclass(frozen=True)
class ErrorReport:
    """The rates of a set in percent; those of words by kind add up to `wer`."""

    recordings: int
    words: int
    wer: float
    cer: float
    substitutions: float
    insertions: float
    deletions: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def error_report(words: Statistics, characters: Statistics) -> ErrorReport:
    """The report of rows that `word_errors` and `character_errors` made."""
    sums_4 = words.rows_BC.sum(0)
    kinds = 100.0 * sums_4[:LENGTH] / sums_4[LENGTH]
    return ErrorReport(
        recordings=len(words),
        words=int(sums_4[LENGTH]),
        wer=words.total(),
        cer=characters.total(),
        substitutions=float(kinds[SUBSTITUTIONS]),
        insertions=float(kinds[INSERTIONS]),
        deletions=float(kinds[DELETIONS]),
    )


def _normalised(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[list[str], list[str]]:
    if len(hypotheses) != len(references):
        raise DataError(
            f"{len(hypotheses)} transcripts and {len(references)} references: every recording needs one of each."
        )
    normal = list(map(normalised, references))
    if not any(normal):
        raise DataError("There is nothing to score: the references hold no word.")
    return list(map(normalised, hypotheses)), normal


def _statistics(alignments: Sequence[Sequence[jiwer.AlignmentChunk]], lengths: Sequence[int]) -> Statistics:
    rows_B4 = np.zeros((len(lengths), 4))
    rows_B4[:, LENGTH] = lengths
    for row_4, chunks in zip(rows_B4, alignments, strict=True):
        for chunk in chunks:
            if chunk.type in KINDS:
                spans = (chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
                row_4[KINDS[chunk.type]] += max(spans)
    # A resampled set may hold nothing but recordings without words.
    return Statistics(rows_B4, lambda sums_4: float(100.0 * sums_4[:LENGTH].sum() / max(sums_4[LENGTH], 1.0)))
