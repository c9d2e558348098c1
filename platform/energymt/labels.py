"""What a frozen model's own outputs are worth: the labels that a proxy learns (NAP), computed once and kept.

A metric is named by `chrf` or `bleu` (of sentences, against references, 0 to 100), by the address of an estimator or
another metric of the COMET family, by `pool:NAME`, or by `column:NAME`: numbers that stand beside the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from energymt.data.corpus import Corpus, DataConfig, read_columns
from energymt.data.judgements import numbers
from energymt.data.selection import folder_fingerprint
from energymt.decoding.translate import DecodingOptions, Translator
from energymt.errors import DataError
from energymt.models.loading import AnyTranslator
from energymt.quality import POOL, Judge, open_judge
from energymt.shards import in_shards, pretended
from energymt.storage import fetch, runs_root

COLUMN = "column:"
SENTENCE_METRICS = ("chrf", "bleu")


@dataclass(frozen=True)
class Metric:
    """What outputs are judged by.

    Attributes:
        name: as a user wrote it.
        identity: what tells it from every other one: the content of an estimator's folder, not its address.
        score: (sources, outputs, references) -> a number a line.
        needs_references: whether it cannot do without them.
    """

    name: str
    identity: str
    score: Judge
    needs_references: bool


@dataclass(frozen=True)
class Labelled:
    """The labels of a text, and the outputs that they judge (none where a column held the labels)."""

    corpus: Corpus
    labels_N: NDArray[np.float64]
    outputs: list[str] | None


def open_metric(name: str, device: torch.device) -> Metric:
    """The metric of this name; an estimator is loaded when the first line is scored.

    Raises:
        StorageError: an address that holds no estimator.
    """
    if name in SENTENCE_METRICS:
        return Metric(name, name, _sentence_metric(name), needs_references=True)
    if name.startswith(POOL):
        from energymt.pool.opening import frozen_address

        folder = fetch(frozen_address(name.removeprefix(POOL)))
    else:
        folder = fetch(name)
    opened: list[Judge] = []

    def score(sources: Sequence[str], outputs: Sequence[str], references: Sequence[str]) -> Sequence[float]:
        if not opened:
            opened.append(open_judge(name, device))
        return opened[0](sources, outputs, references)

    return Metric(name, folder_fingerprint(folder), score, needs_references=_compares(folder))


def _compares(folder: Path) -> bool:
    from energymt.models.estimator_folder import read_estimator_config

    return "ref" in read_estimator_config(folder).parts


def _sentence_metric(name: str) -> Judge:
    metric = CHRF() if name == "chrf" else BLEU(effective_order=True)

    def score(sources: Sequence[str], outputs: Sequence[str], references: Sequence[str]) -> list[float]:
        pairs = zip(outputs, references, strict=True)
        return [float(metric.sentence_score(output, [reference]).score) for output, reference in pairs]

    return score


def label_text(model: AnyTranslator, content: str, data: DataConfig, metric: str, device: torch.device) -> Labelled:
    """The labels of a text: a metric of the model's own greedy outputs, or a column.

    Args:
        model: the frozen translator, on `device`.
        content: the fingerprint of its folder: other start tokens (a language) give other outputs of the same weights.
        data: the text.
        metric: its name, see above.
        device: of an estimator in this process.

    Raises:
        DataError: labels that are no finite numbers or all equal; a metric that needs references where there are none.
    """
    if metric.startswith(COLUMN):
        name = metric.removeprefix(COLUMN)
        corpus, beside = read_columns(data, [name], need_target=False)
        return Labelled(corpus, require_spread(numbers(name, beside[name]), f"column {name!r} of {data.path}"), None)
    opened = open_metric(metric, device)
    corpus, _ = read_columns(data, need_target=opened.needs_references)
    notes = pretended()
    if notes is not None:
        notes.append(f"{metric} of {len(corpus):,} greedy outputs for {corpus.origin}, where not known yet")
        return Labelled(corpus, np.arange(len(corpus), dtype=np.float64), None)
    outputs = own_outputs(model, content, corpus)
    labels_N = _scores(opened, model, corpus, outputs)
    return Labelled(corpus, require_spread(labels_N, f"{metric} of the model's outputs for {corpus.origin}"), outputs)


def own_outputs(model: AnyTranslator, content: str, corpus: Corpus) -> list[str]:
    """The model's greedy translations (one pass at the best length of a non-autoregressive one), computed once."""
    translator = Translator(model, DecodingOptions(beam=1, length_beam=1, iterations=1))

    def translate(rows: range) -> list[str]:
        chosen = slice(rows.start, rows.stop)
        found = translator.translate(corpus.source[chosen], prefixes=corpus.prefixes and corpus.prefixes[chosen])
        return [best[0] for best, *_ in found]

    return in_shards(stored_under("outputs", content, list(corpus.inputs)), len(corpus), translate)


def _scores(metric: Metric, model: AnyTranslator, corpus: Corpus, outputs: Sequence[str]) -> NDArray[np.float64]:
    plain = model.vocabulary.as_plain_text
    sources = [plain(text) for text in corpus.source]
    references = [""] * len(sources) if corpus.target is None else [plain(text) for text in corpus.target]

    def score(rows: range) -> list[float]:
        chosen = slice(rows.start, rows.stop)
        return [float(value) for value in metric.score(sources[chosen], outputs[chosen], references[chosen])]

    told = [sources, list(outputs), references if metric.needs_references else []]
    return np.array(in_shards(stored_under("labels", metric.identity, told), len(sources), score))


def require_spread(labels_N: NDArray[np.float64], what: str) -> NDArray[np.float64]:
    """Refuse labels that nothing can correlate with.

    Raises:
        DataError: they are not finite, or all equal.
    """
    wrong = np.flatnonzero(~np.isfinite(labels_N))
    if len(wrong):
        raise DataError(
            f"{len(wrong):,} of {len(labels_N):,} labels ({what}) are no finite number, the first one that of "
            f"sentence {wrong[0] + 1:,}: remove these sentences, or use another metric."
        )
    if len(labels_N) < 2 or labels_N.min() == labels_N.max():
        raise DataError(
            f"All {len(labels_N):,} labels ({what}) are {labels_N[0]:g}: a correlation with them is undefined, and a "
            f"proxy can learn nothing; use more or other text, or another metric."
        )
    return labels_N


def stored_under(kind: str, key: str, content: object) -> Path:
    """The folder of what follows from a model or metric (its key) and a content."""
    digest = hashlib.sha256(json.dumps([kind, key, content]).encode()).hexdigest()[:16]
    return runs_root() / kind / digest
