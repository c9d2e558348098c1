"""How good an estimator is: its agreement with judgements beside simple baselines, and what it makes of probes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np

from energymt.data.corpus import Corpus, DataConfig, read_columns
from energymt.data.judgements import numbers
from energymt.devices import choose_device
from energymt.errors import ConfigurationError, DataError
from energymt.evaluation import energies_of, load_teacher
from energymt.metrics.estimation import Agreement, agreements
from energymt.metrics.gaming import ProbeResult, run_probes
from energymt.models import AutoregressiveModel
from energymt.models.estimator import QualityEstimator
from energymt.models.estimator_folder import load_estimator
from energymt.models.scoring import needs_references, score_lines
from energymt.storage import fetch

ESTIMATOR = "estimator"
LENGTH_RATIO = "length ratio"
LOG_PROBABILITY = "log-probability"
FEWEST = 10  # judgements: of fewer, intervals say nothing


def meta_evaluate(
    address: str,
    data: DataConfig,
    judgement: str,
    *,
    baselines: Sequence[str] = (),
    teacher: str | None = None,
    only: tuple[str, str] | None = None,
) -> list[Agreement]:
    """Agreement of an estimator with the judgements in a column, and its lead over each baseline.

    Args:
        address: of the estimator.
        data: judged translations.
        judgement: the column of the judgements.
        baselines: columns of other scores (MLQE-PE: model_score), higher is better.
        teacher: address of a translator, whose mean log-probability of a translation is a baseline.
        only: a column and a value; other lines are left out.

    Raises:
        DataError: a column of scores that holds something else or judgements that are all equal, in the chosen lines;
            fewer than ten of them.
        ConfigurationError: an estimator that needs references.
    """
    corpus, beside = read_columns(data, [judgement, *baselines, *([only[0]] if only else [])])
    assert corpus.target is not None
    chosen = range(len(corpus)) if only is None else _rows(beside[only[0]], *only, data.path)
    sources, targets = [corpus.source[row] for row in chosen], [corpus.target[row] for row in chosen]
    columns = {name: numbers(name, [beside[name][row] for row in chosen]) for name in (judgement, *baselines)}
    judgements = columns[judgement]
    if len(chosen) > 1 and judgements.min() == judgements.max():
        raise DataError(f"All judgements in column {judgement!r} are {judgements[0]:g}: nothing can agree with them.")
    if len(chosen) < FEWEST:
        raise DataError(f"{len(chosen)} judged translations are too few to correlate: give {FEWEST} at least.")
    reader = None if teacher is None else load_teacher(teacher)  # a wrong one is found before all is scored
    scorers: dict[str, Sequence[float]] = {ESTIMATOR: score_lines(_open(address), sources, targets)}
    scorers[LENGTH_RATIO] = length_ratios(sources, targets)
    if reader is not None:
        scorers[LOG_PROBABILITY] = log_probabilities(reader, [corpus.inputs[row] for row in chosen], targets)
    for name in baselines:
        scorers[f"column {name}" if name in scorers else name] = columns[name].tolist()
    return agreements(scorers, judgements)


def _rows(values: Sequence[tuple[str, Any]], column: str, wanted: str, path: str) -> list[int]:
    """Where a column holds what is wanted."""
    texts = [str(value) for _, value in values]
    rows = [row for row, text in enumerate(texts) if text == wanted]
    if not rows:
        usual, _ = Counter(texts).most_common(1)[0]
        near = [*get_close_matches(wanted, sorted(set(texts)), n=1), usual][0]
        raise DataError(f"No line of {path} has {wanted!r} in column {column!r}; others have {near!r}.")
    return rows


def _open(address: str) -> QualityEstimator:
    estimator = load_estimator(fetch(address)).to(choose_device("auto"))
    if needs_references(estimator):
        raise ConfigurationError(
            f"The metric in {address} compares with references, and none are read here: use an estimator that reads "
            f"the source alone, like COMET-KIWI."
        )
    return estimator


def length_ratios(sources: Sequence[str], targets: Sequence[str]) -> list[float]:
    """−|log ratio of characters − its median|: 0 for a translation of the usual length, less for others."""
    ratios = np.log(
        [max(1, len(target)) / max(1, len(source)) for source, target in zip(sources, targets, strict=True)]
    )
    found: list[float] = (-np.abs(ratios - np.median(ratios))).tolist()
    return found


def log_probabilities(teacher: AutoregressiveModel, sources: Sequence[str], targets: Sequence[str]) -> list[float]:
    """The mean log-probability of a translation's tokens, end token counted, in nats."""
    energies = energies_of(teacher, sources, targets)
    lengths = [len(teacher.vocabulary.encode(text)) + 1 for text in targets]
    return [-energy / length for energy, length in zip(energies, lengths, strict=True)]


def probe(address: str, corpus: Corpus, wrong_language: Sequence[str] | None = None) -> list[ProbeResult]:
    """What an estimator makes of wrong translations of parallel text."""
    assert corpus.target is not None
    estimator = _open(address)

    def score(sources: Sequence[str], translations: Sequence[str]) -> list[float]:
        return score_lines(estimator, sources, translations)

    return run_probes(score, corpus.source, corpus.target, wrong_language)


def show_agreements(found: Sequence[Agreement], origin: str) -> str:
    """A table: one line a scorer, differences below."""
    names = list(found[0].correlations)
    width = max(len(item.name) for item in found) + 2
    shown = [
        f"{found[0].sentences:,} judged translations of {origin}",
        " " * width + "".join(f"{name:26}" for name in names),
    ]
    for item in found:
        cells = [f"{v.value:6.3f} [{v.low:6.3f}, {v.high:6.3f}]" for v in item.correlations.values()]
        shown.append(f"{item.name:{width}}" + "".join(f"{cell:26}" for cell in cells))
    return "\n".join(line.rstrip() for line in shown)


def show_probes(found: Sequence[ProbeResult]) -> str:
    """A table: one line a probe."""
    width = max(len(item.name) for item in found) + 2
    shown = [f"{'wrong translation':{width}}{'sentences':>10}  right one wins, 95 % interval   margin, σ"]
    for item in found:
        wins = " ".join(f"{100 * value:5.1f}" for value in (item.wins.value, item.wins.low, item.wins.high)).split()
        cell = f"{wins[0]} % [{wins[1]}, {wins[2]}]"
        margin = "-" if item.margin is None else f"{item.margin:.2f}"
        shown.append(f"{item.name:{width}}{item.sentences:>10}  {cell:<30}{margin:>10}")
    return "\n".join(shown)
