"""Models on a test set: scores with intervals, and paired tests between two of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from energymt.data.batching import pad
from energymt.data.corpus import Corpus
from energymt.data.vocabulary import Vocabulary, require_same
from energymt.decoding.console import open_translator
from energymt.decoding.translate import DecodingOptions
from energymt.devices import choose_device
from energymt.energies import AutoregressiveEnergy
from energymt.errors import ConfigurationError
from energymt.metrics.significance import Comparison, Interval, compare, interval
from energymt.metrics.translation import Report, Statistics, report, statistics
from energymt.models import AutoregressiveModel, load_translator
from energymt.quality import Judge, open_judge
from energymt.records import Hypothesis, Source
from energymt.storage import fetch

SENTENCES_AT_ONCE = 64
# What the table shows: label, and the factor on the value (a share becomes percent).
JUDGED = "judged by"
SHOWN = {
    "bleu": ("BLEU", 1.0),
    "chrf": ("chrF", 1.0),
    "energy": ("energy", 1.0),
    "repetition": ("repeated %", 100.0),
    "length_ratio": ("length ratio", 1.0),
}


@dataclass(frozen=True)
class System:
    """One model's translations of a test set and their scores."""

    name: str
    outputs: list[str]
    report: Report
    statistics: dict[str, Statistics]
    intervals: dict[str, Interval]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `repetition` and `empty` are shares from 0 to 1, `energy` is in nats per sentence."""
        return {
            "model": self.name,
            **self.report.to_dict(),
            "intervals": {key: value.to_dict() for key, value in self.intervals.items()},
            "seconds": self.seconds,
            "outputs": self.outputs,
        }


@dataclass(frozen=True)
class Evaluation:
    """One system, or two and their paired comparison."""

    systems: list[System]
    comparisons: dict[str, Comparison]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "systems": [system.to_dict() for system in self.systems],
            "comparisons": {key: value.to_dict() for key, value in self.comparisons.items()},
        }


def load_teacher(address: str) -> AutoregressiveModel:
    """An autoregressive model, whose −log p is an energy."""
    model = load_translator(fetch(address))
    if not isinstance(model, AutoregressiveModel):
        raise ConfigurationError(f"{address} is not autoregressive: its −log p is no energy here.")
    return model


def evaluate_models(
    addresses: Sequence[str],
    corpus: Corpus,
    options: DecodingOptions,
    *,
    energy: str | None = None,
    oracle_lengths: bool = False,
    judges: Sequence[str] = (),
    rerank: str | None = None,
) -> Evaluation:
    """Translate and score `corpus` by one or two models; `judges` are addresses of estimators that score them, too.

    Samples and `rerank`, the address of what picks among the candidates, are for the first model alone: the second one
    searches and gives what it finds best, so that a model can be compared with itself.
    """
    teacher = load_teacher(energy) if energy is not None else None
    opened = {f"{JUDGED} {address}": open_judge(address, choose_device("auto")) for address in judges}
    plain = options.model_copy(update={"samples": None, "temperature": 1.0, "top_p": 1.0})
    systems = [
        evaluate_model(address, corpus, own, teacher, oracle_lengths, opened, chooser)
        for address, (own, chooser) in zip(addresses, [(options, rerank), (plain, None)], strict=False)
    ]
    comparisons = {}
    if len(systems) == 2:
        first, second = systems
        comparisons = {key: compare(first.statistics[key], second.statistics[key]) for key in first.statistics}
    return Evaluation(systems, comparisons)


def evaluate_model(
    address: str,
    corpus: Corpus,
    options: DecodingOptions,
    teacher: AutoregressiveModel | None = None,
    oracle_lengths: bool = False,
    judges: Mapping[str, Judge] | None = None,
    rerank: str | None = None,
) -> System:
    """Translate a test set by one model and score it, also by a teacher's energy and by judges, if there are any.

    `rerank` is the address of a teacher, estimator or pool that picks among the candidates, as in `energymt translate`.
    """
    assert corpus.target is not None
    with ExitStack() as held:
        translator = open_translator(fetch(address), options, held, rerank=rerank, engine="torch", precision="fp32")
        words = translator.model.vocabulary
        reference_ids = [words.encode(text) for text in corpus.target]
        lengths = [max(1, len(ids)) for ids in reference_ids] if oracle_lengths else None
        start = time.perf_counter()
        candidates = translator.translate(corpus.source, lengths, corpus.prefixes)
        seconds = time.perf_counter() - start
    found = [best for best, *_ in candidates]
    hypotheses = [hypothesis for _, hypothesis in found]
    values: dict[str, list[float]] = {}
    if teacher is not None:
        require_same(teacher.vocabulary, words, "the teacher", address)
        values["energy"] = energies(teacher, corpus.inputs, [list(item.ids) for item in hypotheses])
    outputs, references = [text for text, _ in found], [words.as_plain_text(text) for text in corpus.target]
    sources = [words.as_plain_text(text) for text in corpus.source]
    values |= {name: list(judge(sources, outputs, references)) for name, judge in (judges or {}).items()}
    scores, rows = _scores(words, corpus, outputs, references, hypotheses, reference_ids, values)
    name = _name(address, options, rerank)
    return System(name, outputs, scores, rows, {key: interval(value) for key, value in rows.items()}, seconds)


def _name(address: str, options: DecodingOptions, rerank: str | None) -> str:
    """Of a system: a model may stand beside itself, decoded in another way."""
    drawn = [] if options.samples is None else [f"{options.samples:,} samples (seed {options.seed})"]
    shaped = {"temperature": options.temperature, "top_p": options.top_p}
    drawn += [f"{key} {value:g}" for key, value in shaped.items() if value != 1.0]
    chosen = [] if rerank is None else [f"re-ranked by {rerank}"]
    return ", ".join([address, *drawn, *chosen])


def _scores(
    words: Vocabulary,
    corpus: Corpus,
    outputs: list[str],
    references: list[str],
    hypotheses: list[Hypothesis],
    reference_ids: list[list[int]],
    values: dict[str, list[float]],
) -> tuple[Report, dict[str, Statistics]]:
    rows = statistics(
        outputs,
        references,
        hypothesis_tokens=[hypothesis.ids for hypothesis in hypotheses],
        reference_tokens=reference_ids,
        values=values,
        tokenize="none" if corpus.segmented else "13a",
    )
    return report(rows, [len(words.encode_source(text)) for text in corpus.source]), rows


def energies(teacher: AutoregressiveModel, sources: Sequence[str], targets: Sequence[Sequence[int]]) -> list[float]:
    """The discrete energy of each pair, in nats per sentence, end of sentence counted; sources with their prefixes."""
    energy = AutoregressiveEnergy(teacher)
    words = teacher.vocabulary
    found = [0.0] * len(sources)
    order = sorted(range(len(sources)), key=lambda row: len(targets[row]))
    for start in range(0, len(order), SENTENCES_AT_ONCE):
        rows = order[start : start + SENTENCES_AT_ONCE]
        source = Source(*pad([words.encode_source(sources[row]) for row in rows], words.pad_id)).to(teacher.device)
        ids_BT, mask_BT = (part.to(teacher.device) for part in pad([targets[row] for row in rows], words.pad_id))
        with torch.inference_mode():
            values = energy.discrete(source, ids_BT, mask_BT).tolist()
        for row, value in zip(rows, values, strict=True):
            found[row] = value
    return found


def energies_of(teacher: AutoregressiveModel, sources: Sequence[str], targets: Sequence[str]) -> list[float]:
    """The same for translations given as text."""
    return energies(teacher, sources, [teacher.vocabulary.encode(text) for text in targets])


def show(result: Evaluation) -> str:
    """Scores with 95 % intervals as a table, source-length buckets below, then the paired tests."""
    lines = []
    judged = [key for system in result.systems for key in system.intervals if key.startswith(JUDGED)]
    shown = SHOWN | {key: (f"{key}  ", 1.0) for key in judged}
    for system in result.systems:
        lines.append(f"{system.name}  ({system.report.overall.sentences} sentences, {system.seconds:.1f} s)")
        for key, (label, factor) in shown.items():
            if key in system.intervals:
                value, low, high = (factor * number for number in system.intervals[key].to_dict().values())
                lines.append(f"  {label:13}{value:9.3f}   95 % [{low:.3f}, {high:.3f}]")
        for bucket in system.report.by_source_length:
            own = bucket.scores.flat()
            parts = "  ".join(
                f"{label} {factor * own[key]:.2f}" for key, (label, factor) in shown.items() if key in own
            )
            lines.append(f"  source {bucket.name:>6} tokens ({bucket.scores.sentences:4}): {parts}")
        lines.append(f"  {system.report.signatures.get('bleu', '')}")
    if result.comparisons:
        lines.append("first minus second, paired bootstrap and approximate randomisation:")
    for key, comparison in result.comparisons.items():
        if key in shown:
            label, factor = shown[key]
            facts = "  ".join(
                f"{name} {value if name.startswith('p_') else factor * value:.4g}"
                for name, value in comparison.to_dict().items()
            )
            lines.append(f"  {label:13}{facts}")
    return "\n".join(lines)
