"""Scores of a translated test set: BLEU, chrF, repeated tokens, length ratio, empty lines; also by source length.

Every score here is a function of sums over sentences. So each sentence gives one row of numbers (`Statistics`), and
the score of a whole test set, of one length bucket or of a resampled set comes from the sum of the rows concerned.

| score | definition |
| --- | --- |
| bleu, chrf | corpus scores of sacrebleu, 0 to 100; their signatures stand in the report |
| repetition | share of all target tokens that equal the token right before them in the same sentence |
| length_ratio | hypothesis tokens / reference tokens, over the whole set |
| empty | share of sentences whose translation has no visible character |
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from energymt.errors import DataError

BUCKETS = (10, 15, 20, 30, 50)
"""Longest source sentence of each length bucket but the last, which is open."""

Tokens = Sequence[Sequence[Hashable]]


@dataclass(frozen=True)
class Statistics:
    """What one score needs of each sentence: C numbers; the score of any set of sentences follows from their sum."""

    rows_BC: NDArray[np.float64]
    score: Callable[[NDArray[np.float64]], float]  # sums_C -> score
    signature: str = ""

    def total(self) -> float:
        """The score of all sentences together."""
        return self.score(self.rows_BC.sum(0))

    def among(self, chosen_B: NDArray[np.bool_]) -> float:
        """The score of the chosen sentences."""
        return self.score(self.rows_BC[chosen_B].sum(0))

    def __len__(self) -> int:
        return len(self.rows_BC)


def bleu(hypotheses: Sequence[str], references: Sequence[str], tokenize: str = "13a") -> Statistics:
    """Cased corpus BLEU of sacrebleu, 0 to 100. `tokenize` is a tokenizer of sacrebleu ("none" for segmented text)."""
    # Text that is segmented on purpose needs no warning that it looks tokenized.
    return _sacrebleu(BLEU(tokenize=tokenize, force=tokenize == "none"), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> Statistics:
    """Corpus chrF2 of sacrebleu, 0 to 100."""
    return _sacrebleu(CHRF(), hypotheses, references)


def _sacrebleu(metric: BLEU | CHRF, hypotheses: Sequence[str], references: Sequence[str]) -> Statistics:
    # The n-gram counts of each sentence: what sacrebleu's own significance tests resample, too.
    rows = metric._extract_corpus_statistics(list(hypotheses), [list(references)])

    def score(sums_C: NDArray[np.float64]) -> float:
        return float(metric._compute_score_from_stats(np.rint(sums_C).astype(np.int64).tolist()).score)

    return Statistics(np.asarray(rows, dtype=np.float64), score, str(metric.get_signature()))


def ratio(numerator_B: Sequence[float], denominator_B: Sequence[float]) -> Statistics:
    """Σ numerator / Σ denominator; 0 where the denominators add up to 0."""
    rows_B2 = np.stack([np.asarray(numerator_B, np.float64), np.asarray(denominator_B, np.float64)], axis=1)
    return Statistics(rows_B2, lambda sums: float(sums[0] / sums[1]) if sums[1] else 0.0)


def mean(values_B: Sequence[float]) -> Statistics:
    """The mean of one value a sentence (an energy in nats, say)."""
    return ratio(values_B, np.ones(len(values_B)).tolist())


def repetition(tokens: Tokens) -> Statistics:
    """Repeated-token rate: the share of all tokens that equal the token right before them in the same sentence.

    The denominator counts every token, first tokens too: "a a b" has a rate of 1/3. Case and script are compared as
    they stand.
    """
    repeats = [sum(left == right for left, right in pairwise(words)) for words in tokens]
    return ratio(repeats, [len(words) for words in tokens])


@dataclass(frozen=True)
class Scores:
    """The scores of one set of sentences; see the table at the top of this file."""

    sentences: int
    bleu: float
    chrf: float
    repetition: float
    length_ratio: float
    empty: float
    values: dict[str, float]  # means of further per-sentence values (energy, ...)

    def flat(self) -> dict[str, float]:
        """All scores by name."""
        named = asdict(self)
        return {**{key: float(value) for key, value in named.items() if key != "values"}, **self.values}


@dataclass(frozen=True)
class Bucket:
    """The scores of the sentences with `low` to `high` source tokens, both included (`high` None: no upper end)."""

    low: int
    high: int | None
    scores: Scores

    @property
    def name(self) -> str:
        return f"{self.low}+" if self.high is None else f"{self.low}-{self.high}"


@dataclass(frozen=True)
class Report:
    """Scores of a whole set, the same by source length (buckets that hold a sentence), and sacrebleu's signatures."""

    overall: Scores
    by_source_length: tuple[Bucket, ...]
    signatures: dict[str, str]

    def to_dict(self) -> dict[str, object]:
        """Everything as plain values that JSON can hold."""
        buckets = {bucket.name: bucket.scores.flat() for bucket in self.by_source_length}
        return {**self.overall.flat(), "by_source_length": buckets, "signatures": dict(self.signatures)}

    def metrics(self) -> dict[str, float]:
        """Flat names for a tracker: `bleu`, and `bleu/source-11-15` for a bucket."""
        flat = self.overall.flat()
        for bucket in self.by_source_length:
            label = bucket.name.replace("+", "-up")
            flat |= {f"{key}/source-{label}": value for key, value in bucket.scores.flat().items()}
        return flat


def statistics(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    hypothesis_tokens: Tokens | None = None,
    reference_tokens: Tokens | None = None,
    values: Mapping[str, Sequence[float]] | None = None,
    tokenize: str = "13a",
) -> dict[str, Statistics]:
    """The rows of every score, by name: what `evaluate` adds up and `energymt.metrics.significance` resamples.

    Args:
        hypotheses: one translation a sentence.
        references: one reference a sentence.
        hypothesis_tokens: the tokens as the model made them, for repetition and length ratio; words between spaces
            where none are given.
        reference_tokens: the references in the same tokens.
        values: further values, one a sentence, averaged (for example {"energy": nats}).
        tokenize: sacrebleu's tokenizer for BLEU.

    Raises:
        DataError: if there is no sentence, or the lists differ in length.
    """
    if (hypothesis_tokens is None) != (reference_tokens is None):
        raise ValueError("give tokens of both hypotheses and references, or of neither: their ratio needs one unit")
    hypothesis_tokens = [text.split() for text in hypotheses] if hypothesis_tokens is None else hypothesis_tokens
    reference_tokens = [text.split() for text in references] if reference_tokens is None else reference_tokens
    values = values or {}
    lists = {"references": references, "hypothesis token lists": hypothesis_tokens}
    _require_equal_lengths("hypotheses", hypotheses, {**lists, "reference token lists": reference_tokens, **values})
    return {
        "bleu": bleu(hypotheses, references, tokenize),
        "chrf": chrf(hypotheses, references),
        "repetition": repetition(hypothesis_tokens),
        "length_ratio": ratio([len(words) for words in hypothesis_tokens], [len(words) for words in reference_tokens]),
        "empty": mean([float(not text.strip()) for text in hypotheses]),
        **{name: mean(numbers) for name, numbers in values.items()},
    }


def evaluate(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    source_lengths: Sequence[int] | None = None,
    hypothesis_tokens: Tokens | None = None,
    reference_tokens: Tokens | None = None,
    values: Mapping[str, Sequence[float]] | None = None,
    tokenize: str = "13a",
    buckets: Sequence[int] = BUCKETS,
) -> Report:
    """All scores of a translated set, overall and by source length.

    Args:
        sources: the source sentences.
        hypotheses: see `statistics`.
        references: see `statistics`.
        source_lengths: source lengths in tokens; words between spaces where none are given.
        hypothesis_tokens: see `statistics`.
        reference_tokens: see `statistics`.
        values: see `statistics`.
        tokenize: see `statistics`.
        buckets: longest source of each bucket but the last, increasing.

    Raises:
        DataError: if there is no sentence, or the lists differ in length.
    """
    source_lengths = [len(text.split()) for text in sources] if source_lengths is None else source_lengths
    _require_equal_lengths("hypotheses", hypotheses, {"sources": sources, "source lengths": source_lengths})
    rows = statistics(
        hypotheses,
        references,
        hypothesis_tokens=hypothesis_tokens,
        reference_tokens=reference_tokens,
        values=values,
        tokenize=tokenize,
    )
    return report(rows, source_lengths, buckets)


def report(rows: Mapping[str, Statistics], source_lengths: Sequence[int], buckets: Sequence[int] = BUCKETS) -> Report:
    """The report of rows that `statistics` made, where they are needed for a test of significance as well."""
    lengths_B = np.asarray(source_lengths)
    edges = [0, *buckets, None]
    by_length = []
    for below, high in pairwise(edges):
        assert below is not None
        low = below + 1 if below else 0
        chosen_B = (lengths_B >= low) & (lengths_B <= (np.inf if high is None else high))
        if chosen_B.any():
            by_length.append(Bucket(low, high, _scores(rows, chosen_B)))
    signatures = {name: row.signature for name, row in rows.items() if row.signature}
    return Report(_scores(rows, np.ones(len(lengths_B), np.bool_)), tuple(by_length), signatures)


def _scores(rows: Mapping[str, Statistics], chosen_B: NDArray[np.bool_]) -> Scores:
    found = {name: row.among(chosen_B) for name, row in rows.items()}
    own = {name: found.pop(name) for name in ("bleu", "chrf", "repetition", "length_ratio", "empty")}
    return Scores(sentences=int(chosen_B.sum()), **own, values=found)


def _require_equal_lengths(what: str, wanted: Sequence[object], lists: Mapping[str, Sequence[object]]) -> None:
    if not len(wanted):
        raise DataError("There is nothing to score: the test set holds no sentence.")
    for name, found in lists.items():
        if len(found) != len(wanted):
            raise DataError(
                f"{len(wanted)} {what} and {len(found)} {name}: every sentence needs one of each; "
                "check that both files have the same lines."
            )
