"""The QE-EBM table of docs/results.md, from the models that examples/qe_ebm/run.sh has trained.

    python -m benchmarks.qe_ebm [methods] [--rows 200] [--seeds 1 2 3] [--last] [--against reinforce]
    python -m benchmarks.qe_ebm variants --seeds 1          (models of examples/qe_ebm/variants.sh)
    python -m benchmarks.qe_ebm regression                  (models of examples/qe_ebm/regression.sh)
    python -m benchmarks.qe_ebm pooled --seeds 1            (models of examples/qe_ebm/pooled.sh)
    python -m benchmarks.qe_ebm en-mn --seeds 1             (models of examples/qe_ebm/en-mn/run.sh)

Reads $ENERGYMT_RUNS/qe_ebm/METHOD-SEED and $ENERGYMT_DATA/multi30k/test_2016_flickr.tsv.gz; greedy translations, scored
by references, by the estimator that trained (quality) and by one that did not (judge). The variant that was trained by
the other estimator is scored by the same two: there, `judge` is the one that trained. Intervals: 95 %, bootstrap over
sentences, ends averaged over the seeds; differences to `supervised` (among the variants to QE-STATIC, of a pair to its
start, of all to what `--against` names) are paired, seed by seed, or all to the one seed that there is. With `--last`
the models are those of the last step, and not those that dev chose, which may be the start. PPO takes several updates a
step, and all is counted in updates. The spread of g_U is the standard deviation of the unlabelled gradient's norm over
the steps between two lines of the log, divided by the mean there; lines averaged. What is not there is named.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import yaml

from benchmarks.timing import machine
from energymt.checkpoints import WEIGHTS
from energymt.data.corpus import Corpus, DataConfig, read_corpus
from energymt.development import translate_dev
from energymt.metrics import translation
from energymt.metrics.indicators import indicators
from energymt.metrics.significance import compare, interval
from energymt.metrics.translation import Statistics, mean
from energymt.models import AutoregressiveModel, load_translator
from energymt.quality import open_judge
from energymt.storage import runs_root

METHODS = {
    "start": "supervised start",
    "supervised": "supervised, trained on",
    "reinforce": "REINFORCE",
    "ppo": "PPO",
    "static": "QE-STATIC",
    "dynamic": "QE-DYNAMIC",
}
VARIANTS = {
    "start": "supervised start",
    "variant-static": "QE-STATIC, 300 steps",
    "variant-filter": "better half of the pairs",
    "variant-neighbours": "nearest neighbours",
    "variant-labelled-sources": "labelled sources alone",
    "variant-share-0.05": "5 % labelled",
    "variant-share-1.0": "100 % labelled",
    "variant-regression": "trained by the judge",
    "variant-ranking": "QE-DYNAMIC, ranking",
    "variant-weight-0.1": "balance.weight 0.1",
}
REGRESSION = {
    "start": "supervised start",
    "supervised": "supervised, trained on (600 steps)",
    "regression-reinforce": "REINFORCE",
    "regression-static": "QE-STATIC",
    "regression-dynamic": "QE-DYNAMIC, ranking",
}
POOLED = {
    "start": "supervised start",
    "pooled-reinforce": "REINFORCE",
    "pooled-ppo": "PPO",
    "pooled-local": "QE-STATIC, estimator in process",
    "pooled-static": "QE-STATIC",
    "pooled-ahead": "QE-STATIC, samples ahead",
    "pooled-dynamic": "QE-DYNAMIC, ranking",
}
SIGNS = ("length_ratio_50", "short", "repeated", "duplicates", "known_tokens")


@dataclass(frozen=True)
class Table:
    """What is compared, and on what."""

    root: Path  # of the runs METHOD-SEED
    methods: dict[str, str]  # name -> label
    against: str  # the method of the differences
    rival: str  # the method whose best value by the judge the others have to reach
    judges: dict[str, str]  # `quality`, which trained, and `judge`: names below runs/estimators
    test: DataConfig


def tables(data: str, rows: int | None) -> dict[str, Table]:
    """All that can be printed."""
    path, root = f"{data}/multi30k/test_2016_flickr.tsv.gz", runs_root() / "qe_ebm"
    captions = DataConfig(path=path, source="de", target="en", rows=rows)
    news = DataConfig(path=f"{data}/flores200/devtest.tsv.gz", source="en", target="mn", rows=rows)
    pair = {name: METHODS[name] for name in ("start", "static")}
    unified = {"quality": "multi30k", "judge": "multi30k-judge"}
    referenceless = {"quality": "multi30k-judge", "judge": "multi30k"}
    of_pair = {"quality": "en-mn", "judge": "en-mn-judge"}
    return {
        "methods": Table(root, METHODS, "supervised", "reinforce", unified, captions),
        "variants": Table(root, VARIANTS, "variant-static", "variant-static", unified, captions),
        "regression": Table(root, REGRESSION, "supervised", "regression-reinforce", referenceless, captions),
        "pooled": Table(root, POOLED, "pooled-static", "pooled-reinforce", unified, captions),
        "en-mn": Table(runs_root() / "en-mn", pair, "start", "static", of_pair, news),
    }


@dataclass(frozen=True)
class Outcome:
    """One model on the test text."""

    scores: dict[str, Statistics]
    texts: list[str]


def outcome(run: Path, last: bool, test: Corpus, judges: dict[str, str]) -> Outcome:
    """Translate and score by the model of a run, or that of its last step."""
    model = load_translator(run / "model")
    if last:
        newest = max((run / "checkpoints").glob("last-*"))
        model.load_state_dict(safetensors.torch.load_file(newest / WEIGHTS), strict=False)
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


def updates(folder: Path) -> int:
    """Of the translator in one step of a run."""
    found: int = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")).get("inner_steps", 1)
    return found


def best_on_dev(runs: list[Path], name: str) -> float:
    """The highest value on dev, mean over the runs that are there; NaN without any."""
    logs = [log_of(run) for run in runs if (run / "log.jsonl").is_file()]
    best = [max((row[name] for row in rows if name in row), default=math.nan) for rows in logs]
    return statistics.mean(best) if best else math.nan


def training(folders: list[Path], targets: dict[str, float]) -> str:
    """Best by the judge on dev, updates to the targets, spread of the gradient's norm, seconds an update, waiting."""
    norms, seconds, waits, best = [], [], [], []
    steps: dict[str, list[str]] = {name: [] for name in targets}
    for folder in folders:
        rows, per_step = log_of(folder), updates(folder)
        judged = max(rows, key=lambda row: row.get("dev/judge", -math.inf))
        if "dev/judge" in judged:
            at = judged["step"] * per_step
            best.append(f"{judged['dev/judge']:.3f} ({at:.0f}, chrF {judged['dev/chrf']:.1f})")
        for name, target in targets.items():
            reached = [row["step"] for row in rows if row.get(name, -math.inf) >= target]
            steps[name].append(str(int(min(reached)) * per_step) if reached else "–")
        spreads = [row["train/norm_unlabelled_spread"] for row in rows if "train/norm_unlabelled_spread" in row]
        if spreads:
            norms.append(statistics.mean(spreads))
        timed = [row for row in rows if "time/run_s" in row]
        seconds.append(timed[-1]["time/run_s"] / (timed[-1]["step"] * per_step))
        waits.append(statistics.mean(row.get("train/wait_s", 0.0) for row in timed) / (seconds[-1] * per_step))
    spread = f"{statistics.mean(norms):.2f}" if norms else "–"
    by_seed = " | ".join(" / ".join(found) for found in steps.values())
    judged_best = " / ".join(best) or "–"
    return f"{judged_best} | {by_seed} | {spread} | {statistics.mean(seconds):.2f} | {100 * statistics.mean(waits):.1f}"


def print_scores(
    what: Table, seeds: list[int], last: bool, test: Corpus, judges: dict[str, str]
) -> dict[str, list[Outcome]]:
    """Print scores; returns the outcomes."""
    print("| method | BLEU | chrF | quality | judge | " + " | ".join(SIGNS) + " |")
    print("| --- " * (5 + len(SIGNS)) + "|")
    found: dict[str, list[Outcome]] = {}
    for method, label in what.methods.items():
        folders = [what.root / f"{method}-{seed}" for seed in seeds]
        there = [folder for folder in folders if (folder / "model").is_dir()]
        if not there:
            print(f"| {label} | not trained: {folders[0]} holds no model |")
            continue
        found[method] = [outcome(folder, last and method != "start", test, judges) for folder in there]
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


def differences(what: Table, found: dict[str, list[Outcome]], judges: dict[str, str], against: str) -> None:
    """Print paired differences, seed by seed; where there is but one of what is compared with, all are to that."""
    if against not in found:
        return
    print(f"\n| − {what.methods[against]}, by seed | BLEU | chrF | " + " | ".join(judges) + " |")
    print("| --- " * (3 + len(judges)) + "|")
    for method, outcomes in found.items():
        if method == against:
            continue
        cells = []
        for name in ("bleu", "chrf", *judges):
            digits = 1 if name in ("bleu", "chrf") else 3
            others = found[against] if len(found[against]) > 1 else found[against] * len(outcomes)
            pairs = zip(outcomes, others, strict=False)
            results = [compare(own.scores[name], other.scores[name]) for own, other in pairs]
            cells.append(
                "; ".join(f"{r.difference:+.{digits}f} [{r.low:+.{digits}f}, {r.high:+.{digits}f}]" for r in results)
            )
        print(f"| {what.methods[method]} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="score only so many test sentences")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--last", action="store_true", help="the models of the last step, not those that dev chose")
    parser.add_argument("--against", help="the method that the others are compared with, as its runs are named")
    choices = ["methods", "variants", "regression", "pooled", "en-mn"]
    parser.add_argument("table", nargs="?", default="methods", choices=choices)
    arguments = parser.parse_args()
    what = tables(os.environ["ENERGYMT_DATA"], arguments.rows)[arguments.table]
    against = arguments.against or what.against
    if against not in what.methods:
        parser.error(f"--against {against} is none of {', '.join(what.methods)}")
    judges = {role: str(runs_root() / "estimators" / name / "model") for role, name in what.judges.items()}
    test = read_corpus(what.test)
    print(machine("cpu"), "\n")
    found = print_scores(what, arguments.seeds, arguments.last, test, judges)
    differences(what, found, judges, against)
    trained = [method for method in what.methods if method != "start"]
    logs = {method: [what.root / f"{method}-{seed}" for seed in arguments.seeds] for method in trained}
    logs = {
        method: [folder for folder in folders if (folder / "log.jsonl").is_file()] for method, folders in logs.items()
    }
    sides = {"dev/chrf": what.against, "dev/judge": what.rival}
    targets = {
        name: best_on_dev([what.root / f"{method}-{seed}" for seed in arguments.seeds], name)
        for name, method in sides.items()
    }
    heads = [f"updates to {name} {targets[name]:.4g}, the best of {what.methods[m]}" for name, m in sides.items()]
    print(f"\n| method | best by the judge on dev | {' | '.join(heads)} | spread of g_U | s an update | waiting % |")
    print("| --- " * 7 + "|")
    for method, folders in logs.items():
        if folders:
            print(f"| {what.methods[method]} | {training(folders, targets)} |")


if __name__ == "__main__":
    main()
