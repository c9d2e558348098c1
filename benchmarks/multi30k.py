"""The Multi30k tables of docs/results.md, from the models that examples/multi30k/run.sh has trained.

    python -m benchmarks.multi30k [--rows 200]

Reads $ENERGYMT_RUNS/multi30k/*/model and $ENERGYMT_DATA/multi30k/test_2016_flickr.tsv.gz; models that are not there are
left out and named. Prints Markdown: scores with 95 % intervals, and paired differences.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path

from energymt.data.corpus import Corpus, DataConfig, read_corpus
from energymt.decoding.translate import DecodingOptions
from energymt.evaluation import System, evaluate_model, load_teacher
from energymt.metrics.significance import compare
from energymt.storage import runs_root

ROOT = runs_root() / "multi30k"


@dataclass(frozen=True)
class Setting:
    """One row: a model, and how it is decoded."""

    label: str
    run: str
    options: DecodingOptions
    oracle: bool = False


def mask_predict(label: str, run: str, iterations: int, length_beam: int) -> Setting:
    """Predicted lengths."""
    return Setting(label, run, DecodingOptions(iterations=iterations, length_beam=length_beam))


TRANSFORMER = [
    Setting("transformer teacher, greedy", "teacher", DecodingOptions(beam=1)),
    Setting("transformer teacher, beam 5", "teacher", DecodingOptions(beam=5)),
    *(mask_predict(f"CMLM, {n} iteration(s)", "masked", n, 5) for n in (1, 10)),
    *(mask_predict(f"CMLM distilled, {n} iteration(s)", "distilled", n, 5) for n in (1, 10)),
    *(mask_predict(f"ENGINE (warm), {n} iteration(s)", "engine", n, 3) for n in (1, 10)),
    *(mask_predict(f"ENGINE (cold), {n} iteration(s)", "engine-cold", n, 3) for n in (1, 10)),
    *(mask_predict(f"ENGINE (mixed), {n} iteration(s)", "engine-mixed", n, 3) for n in (1, 10)),
    mask_predict("ENGINE (SX, SX), 1 iteration(s)", "engine-sx-sx", 1, 3),
    mask_predict("ENGINE (rate 1e-3), 1 iteration(s)", "engine-rate-1e-3", 1, 3),
]
ORACLE = DecodingOptions(iterations=1, length_beam=1)
RECURRENT = [
    Setting("LSTM teacher, beam 5", "recurrent-teacher", DecodingOptions(beam=5)),
    Setting("BiLSTM, cross-entropy", "tagger", ORACLE, oracle=True),
    Setting("BiLSTM, distilled", "tagger-distilled", ORACLE, oracle=True),
    Setting("BiLSTM, ENGINE", "tagger-engine", ORACLE, oracle=True),
    Setting("BiLSTM, distilled longer", "tagger-distilled-long", ORACLE, oracle=True),
    Setting("BiLSTM, ENGINE from that", "tagger-engine-long", ORACLE, oracle=True),
    Setting("BiLSTM, ENGINE mixed from that", "tagger-engine-mixed", ORACLE, oracle=True),
]


def scores(title: str, settings: list[Setting], teacher: str, test: Corpus) -> dict[str, System]:
    """Print one table; returns the systems by label."""
    print(f"\n### {title}\n")
    print("| system | BLEU | chrF | energy (nats) | repeated % | length ratio | training |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    systems = {}
    energy = load_teacher(str(ROOT / teacher / "model"))
    for setting in settings:
        folder = ROOT / setting.run / "model"
        if not folder.is_dir():
            print(f"| {setting.label} | not trained: {folder} is missing | | | | | |")
            continue
        system = evaluate_model(str(folder), test, setting.options, energy, setting.oracle)
        systems[setting.label] = system
        found, own = system.intervals, system.report.overall
        print(
            f"| {setting.label} | {own.bleu:.1f} [{found['bleu'].low:.1f}, {found['bleu'].high:.1f}] | {own.chrf:.1f} "
            f"| {own.values['energy']:.1f} [{found['energy'].low:.1f}, {found['energy'].high:.1f}] "
            f"| {100 * own.repetition:.2f} | {own.length_ratio:.3f} | {training_time(folder)} |",
            flush=True,
        )
    return systems


def training_time(folder: Path) -> str:
    """Steps and minutes, from the model's manifest."""
    facts = json.loads((folder / "energymt.json").read_text(encoding="utf-8"))["provenance"]
    return f"{facts['steps']:,} steps, {facts['seconds'] / 60:.0f} min, seed {facts['config']['seed']}"


def differences(systems: dict[str, System], pairs: list[tuple[str, str]]) -> None:
    """Print paired differences, first minus second."""
    print("\n| first − second | BLEU | energy | repeated % |\n| --- | --- | --- | --- |")
    for first, second in pairs:
        if first not in systems or second not in systems:
            continue
        cells = []
        for key, factor in (("bleu", 1.0), ("energy", 1.0), ("repetition", 100.0)):
            found = compare(systems[first].statistics[key], systems[second].statistics[key])
            low, high = factor * found.low, factor * found.high
            cells.append(f"{factor * found.difference:+.2f} [{low:+.2f}, {high:+.2f}]")
        print(f"| {first} − {second} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="score only so many test sentences")
    arguments = parser.parse_args()
    path = os.environ["ENERGYMT_DATA"] + "/multi30k/test_2016_flickr.tsv.gz"
    test = read_corpus(DataConfig(path=path, source="de", target="en", rows=arguments.rows))
    systems = scores("Transformers, predicted lengths", TRANSFORMER, "teacher", test)
    pairs = [
        (f"ENGINE ({start}), 1 iteration(s)", f"CMLM{kind}, 1 iteration(s)")
        for start in ("warm", "mixed")
        for kind in ("", " distilled")
    ]
    refined = [
        (f"{name}, 10 iteration(s)", f"{name}, 1 iteration(s)")
        for name in ("CMLM", "CMLM distilled", "ENGINE (warm)", "ENGINE (mixed)")
    ]
    differences(systems, pairs + refined)
    if (ROOT / "recurrent-teacher" / "model").is_dir():
        systems = scores("LSTM teacher and BiLSTM tagger, oracle lengths", RECURRENT, "recurrent-teacher", test)
        better = [("BiLSTM, ENGINE", "BiLSTM, distilled"), ("BiLSTM, ENGINE", "BiLSTM, cross-entropy")]
        longer = [(f"BiLSTM, ENGINE{kind} from that", "BiLSTM, distilled longer") for kind in ("", " mixed")]
        differences(systems, [*better, *longer])


if __name__ == "__main__":
    main()
