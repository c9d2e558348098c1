"""`energymt demo`: the whole story on a generated language, by the same commands that train on real text.

A source sentence of the toy language has four right translations, and every word must agree with every other. A
non-autoregressive translator trained by cross-entropy mixes them; the gradient of the teacher's energy does not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from energymt import console, runs
from energymt.configuration import validate
from energymt.data.corpus import Corpus, write_tsv
from energymt.data.toy import ToyLanguage
from energymt.decoding.translate import DecodingOptions
from energymt.evaluation import System, evaluate_model, load_teacher
from energymt.folders import write_atomically
from energymt.launch import Bookkeeping, Placement, launch
from energymt.storage import runs_root
from energymt.tracking import tracking_uri

SIZES = {"train": 8000, "dev": 200, "test": 500}
SHARED: dict[str, Any] = {
    "vocabulary": {"size": 100, "model_type": "word"},
    "tokens_per_step": 640,
    "tokens_per_micro_batch": 4096,
    "steps": 600,
    "evaluate_every": 200,
    "checkpoint_every": 200,
    "log_every": 200,
}
OPTIMIZER = {"learning_rate": 2e-3, "schedule": "linear", "warmup_steps": 100}


@dataclass(frozen=True)
class Measured:
    """What the table says of one system."""

    system: str
    valid: float  # percent of test sentences
    bleu: float
    energy: float  # nats per sentence, under the teacher
    repetition: float  # percent of tokens
    ms_per_sentence: float  # one sentence after the other
    training_seconds: float


def recipes(folder: Path, seed: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name in the table -> trainable and its configuration, in the order of training."""
    data = {
        part: {"path": str(folder / f"{part}.tsv"), "source": "source", "target": "target"} for part in ("train", "dev")
    }
    teacher = str(folder / "teacher" / runs.MODEL)
    words = {"path": teacher}
    student = {"model": {"variant": "masked-toy"}, "optimizer": OPTIMIZER}
    shared = {**SHARED, **data, "seed": seed}
    warm = {"variant": "masked-toy", "init": str(folder / "masked" / runs.MODEL)}
    rate = {**OPTIMIZER, "learning_rate": 1e-3, "clip_norm": 10.0}
    return {
        "teacher": ("supervised", {**shared, "model": {"variant": "transformer-toy"}, "optimizer": OPTIMIZER}),
        "masked": ("masked", {**shared, **student, "vocabulary": words}),
        "distilled": ("distilled", {**shared, **student, "teacher": teacher}),
        "engine": ("engine", {**shared, "steps": 400, "teacher": teacher, "model": warm, "optimizer": rate}),
    }


LABELS = {
    "teacher": "teacher (greedy)",
    "masked": "CMLM, cross-entropy",
    "distilled": "CMLM, distilled",
    "engine": "CMLM, ENGINE",
}


def run_demo(seed: int, json_file: Path | None, tracking: str | None) -> list[Measured]:
    """Train the four models, print the table and three translations, say what to open next."""
    start = time.perf_counter()
    folder = runs_root() / "demo" / f"seed-{seed}"
    language = ToyLanguage(seed)
    corpora = language.corpora(**SIZES, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part, corpus in corpora.items():
        write_tsv(corpus, folder / f"{part}.tsv")
    write_atomically(folder / "test.txt", "".join(f"{source}\n" for source in corpora["test"].source))
    console.plain(f"A toy language: {corpora['train'].source[0]!r} can be translated as")
    for translation in sorted(language.translations(corpora["train"].source[0])):
        console.plain(f"    {translation}")
    seconds = {name: _train(name, folder, seed, tracking) for name in recipes(folder, seed)}
    systems = {name: _measure(folder, name, corpora["test"]) for name in seconds}
    rows = [_row(name, systems[name], seconds[name], language, corpora["test"]) for name in systems]
    print(table(rows))
    print(side_by_side(systems, corpora["test"], language))
    print(_next_steps(folder, tracking, time.perf_counter() - start))
    if json_file is not None:
        write_atomically(json_file, json.dumps({"seed": seed, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    return rows


def _train(name: str, folder: Path, seed: int, tracking: str | None) -> float:
    trainable, values = recipes(folder, seed)[name]
    config = validate(runs.load_trainable(trainable).Config, values, f"the demo's {name}")
    books = Bookkeeping(tracking, "demo", f"{name}-seed-{seed}", f"toy-{name}")
    start = time.perf_counter()
    with runs.owned(folder / name):
        runs.discard(folder / name)
        ending = launch(trainable, config, folder / name, Placement(), books, _only_dev(name))
    if ending.exit_code:
        raise KeyboardInterrupt
    return time.perf_counter() - start


def _only_dev(name: str) -> Callable[[str], None]:
    def show(text: str) -> None:
        if "  train  " not in text:
            console.plain(f"{name:10}{text}")

    return show


def _measure(folder: Path, name: str, test: Corpus) -> System:
    """One pass for the non-autoregressive models (greedy for the teacher), one sentence at a time."""
    teacher = load_teacher(str(folder / "teacher" / runs.MODEL))
    options = DecodingOptions(beam=1, length_beam=1, iterations=1, tokens_per_batch=1)
    return evaluate_model(str(folder / name / runs.MODEL), test, options, teacher)


def _row(name: str, system: System, seconds: float, language: ToyLanguage, test: Corpus) -> Measured:
    valid = [language.is_valid(source, output) for source, output in zip(test.source, system.outputs, strict=True)]
    scores = system.report.overall
    return Measured(
        system=LABELS[name],
        valid=100.0 * sum(valid) / len(valid),
        bleu=scores.bleu,
        energy=scores.values["energy"],
        repetition=100.0 * scores.repetition,
        ms_per_sentence=1000.0 * system.seconds / len(valid),
        training_seconds=seconds,
    )


def table(rows: list[Measured]) -> str:
    """The table, as text."""
    columns = {"valid %": 9, "BLEU": 8, "energy": 9, "repeated %": 12, "ms/sent.": 10, "training": 10}
    head = f"\n{'one iteration':22}" + "".join(f"{name:>{width}}" for name, width in columns.items())
    lines = [head, "-" * len(head.strip())]
    for row in rows:
        lines.append(
            f"{row.system:22}{row.valid:9.1f}{row.bleu:8.1f}{row.energy:9.2f}{row.repetition:12.1f}"
            f"{row.ms_per_sentence:10.1f}{row.training_seconds:9.0f}s"
        )
    lines.append(
        "valid: judged by the grammar, exactly. BLEU is low even for the teacher: it sees one of four references."
    )
    lines.append("energy: the teacher's -log p of the output, nats per sentence.")
    return "\n".join(lines)


def side_by_side(systems: dict[str, System], test: Corpus, language: ToyLanguage) -> str:
    """Three test sentences, translated by every system; a right translation is marked."""
    lines = ["", "three test sentences (+ right, - wrong):"]
    for row in range(3):
        lines.append(f"  {'source':20}   {test.source[row]}")
        for name, system in systems.items():
            mark = "+" if language.is_valid(test.source[row], system.outputs[row]) else "-"
            lines.append(f"  {LABELS[name]:20} {mark} {system.outputs[row]}")
        lines.append("")
    return "\n".join(lines)


def _next_steps(folder: Path, tracking: str | None, seconds: float) -> str:
    lines = [f"Done in {seconds:.0f} s. What to open next:"]
    if tracking != "none":
        lines.append("  energymt ui                     every curve of these runs, and the registered models")
        lines.append(f"                                  (they are in {tracking_uri(tracking)})")
    lines.append(f"  energymt translate {folder / 'engine' / runs.MODEL} --iterations 1 < {folder / 'test.txt'}")
    lines.append("  README.md, 'Your own data'      the same four steps on your text")
    return "\n".join(lines)
