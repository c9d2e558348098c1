"""The QE-EBM table of docs/results.md, from the models that examples/qe_ebm/run.sh has trained.

    python -m benchmarks.qe_ebm [--rows 200] [--seeds 1 2 3]

Reads $ENERGYMT_RUNS/qe_ebm/METHOD-SEED and $ENERGYMT_DATA/multi30k/test_2016_flickr.tsv.gz; greedy translations, scored
by references, by the estimator that trained (quality) and by one that did not (judge). Intervals: 95 %, bootstrap over
sentences, ends averaged over the seeds; differences to `supervised` are paired, seed by seed. The spread of g_U is that
of the unlabelled gradient's norm between lines of the log, each a mean over some steps. What is not there is named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.timing import machine
from energymt.data.corpus import Corpus, DataConfig, read_corpus
from energymt.development import translate_dev
from energymt.metrics import translation
from energymt.metrics.indicators import indicators
from energymt.metrics.significance import compare, interval
from energymt.metrics.translation import Statistics, mean
from energymt.models import AutoregressiveModel, load_translator
from energymt.quality import open_judge
from energymt.storage import runs_root

ROOT = runs_root() / "qe_ebm"
METHODS = {
    "start": "supervised start",
    "supervised": "supervised, trained on",
    "reinforce": "REINFORCE",
    "ppo": "PPO",
    "static": "QE-STATIC",
    "dynamic": "QE-DYNAMIC",
}
SIGNS = ("length_ratio_50", "short", "repeated", "duplicates", "known_tokens")


@dataclass(frozen=True)
class Outcome:
    """One model on the test text."""

    scores: dict[str, Statistics]
    texts: list[str]


def outcome(folder: Path, test: Corpus, judges: dict[str, str]) -> Outcome:
    """Translate and score."""
    model = load_translator(folder)
    assert isinstance(model, AutoregressiveModel) and test.target is not None
    texts = [text for text, _ in translate_dev(model, test)]
    rows = translation.statistics(texts, test.target)
    scores = {"bleu": rows["bleu"], "chrf": rows["chrf"]}
    for name, address in judges.items():
        scores[name] = mean(list(open_judge(address, torch.device("cpu"))(test.source, texts, test.target)))
    return Outcome(scores, texts)


def log_of(folder: Path) -> list[dict[str, float]]:
    """The log of a run."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def training(folders: list[Path], target: float) -> str:
    """Steps to the target on dev, spread of the gradient's norm, seconds a step, waiting for the estimator."""
    steps, norms, seconds, waits = [], [], [], []
    for folder in folders:
        rows = log_of(folder)
        reached = [row["step"] for row in rows if row.get("dev/chrf", 0.0) >= target]
        steps.append(str(int(min(reached))) if reached else "–")
        unlabelled = [row["train/norm_unlabelled"] for row in rows if "train/norm_unlabelled" in row]
        if len(unlabelled) > 1:
            norms.append(statistics.stdev(unlabelled) / statistics.mean(unlabelled))
        timed = [row for row in rows if "time/run_s" in row]
        seconds.append(timed[-1]["time/run_s"] / timed[-1]["step"])
        waits.append(statistics.mean(row.get("train/wait_s", 0.0) for row in timed) / seconds[-1])
    spread = f"{statistics.mean(norms):.2f}" if norms else "–"
    return f"{' / '.join(steps)} | {spread} | {statistics.mean(seconds):.2f} | {100 * statistics.mean(waits):.1f}"


def table(methods: dict[str, str], seeds: list[int], test: Corpus, judges: dict[str, str]) -> dict[str, list[Outcome]]:
    """Print scores; returns the outcomes."""
    print("| method | BLEU | chrF | quality | judge | " + " | ".join(SIGNS) + " |")
    print("| --- " * (5 + len(SIGNS)) + "|")
    found: dict[str, list[Outcome]] = {}
    for method, label in methods.items():
        folders = [ROOT / f"{method}-{seed}" / "model" for seed in seeds]
        there = [folder for folder in folders if folder.is_dir()]
        if not there:
            print(f"| {label} | not trained: {folders[0]} is missing |")
            continue
        found[method] = [outcome(folder, test, judges) for folder in there]
        cells = []
        for name in ("bleu", "chrf", *judges):
            each = [interval(item.scores[name]) for item in found[method]]
            low, high = (statistics.mean(getattr(one, side) for one in each) for side in ("low", "high"))
            digits = 1 if name in ("bleu", "chrf") else 4
            values = [one.value for one in each]
            seeds_spread = f", seeds ±{statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]{seeds_spread}")
        assert test.target is not None
        signs = [indicators(test.source, item.texts, test.target) for item in found[method]]
        cells += [f"{statistics.mean(sign[name] for sign in signs):.3f}" for name in SIGNS]
        print(f"| {label} | " + " | ".join(cells) + " |", flush=True)
    return found


def differences(found: dict[str, list[Outcome]], against: str, judges: dict[str, str]) -> None:
    """Print paired differences, seed by seed."""
    if against not in found:
        return
    print(f"\n| − {METHODS[against]}, by seed | BLEU | chrF | " + " | ".join(judges) + " |")
    print("| --- " * (3 + len(judges)) + "|")
    for method, outcomes in found.items():
        if method == against:
            continue
        cells = []
        for name in ("bleu", "chrf", *judges):
            digits = 1 if name in ("bleu", "chrf") else 3
            pairs = zip(outcomes, found[against], strict=False)
            results = [compare(own.scores[name], other.scores[name]) for own, other in pairs]
            cells.append(
                "; ".join(f"{r.difference:+.{digits}f} [{r.low:+.{digits}f}, {r.high:+.{digits}f}]" for r in results)
            )
        print(f"| {METHODS[method]} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="score only so many test sentences")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    estimators = runs_root() / "estimators"
    judges = {"quality": str(estimators / "multi30k" / "model"), "judge": str(estimators / "multi30k-judge" / "model")}
    path = os.environ["ENERGYMT_DATA"] + "/multi30k/test_2016_flickr.tsv.gz"
    test = read_corpus(DataConfig(path=path, source="de", target="en", rows=arguments.rows))
    print(machine("cpu"), "\n")
    found = table(METHODS, arguments.seeds, test, judges)
    differences(found, "supervised", judges)
    logs = {method: [ROOT / f"{method}-{seed}" for seed in arguments.seeds] for method in METHODS if method != "start"}
    logs = {
        method: [folder for folder in folders if (folder / "log.jsonl").is_file()] for method, folders in logs.items()
    }
    best = [max(row.get("dev/chrf", 0.0) for row in log_of(folder)) for folder in logs.get("supervised", [])]
    target = statistics.mean(best) if best else 0.0
    print(f"\n| method | steps to chrF {target:.1f} on dev, by seed | spread of g_U | s a step | waiting % |")
    print("| --- | --- | --- | --- | --- |")
    for method, folders in logs.items():
        if folders:
            print(f"| {METHODS[method]} | {training(folders, target)} |")


if __name__ == "__main__":
    main()
