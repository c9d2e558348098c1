"""The NAP tables of docs/results.md, from what examples/nap/run.sh and speech.sh have left below $ENERGYMT_RUNS/nap.

    python -m benchmarks.nap

Reads manifests of translators and proxies (NAME/model) and curves (curve-*.json of `energymt alpha-curve`). Of a curve
there is one table a score: the value at α = 0 with its 95 % interval, then the paired difference to it for each α. The
judges' scores are times 100. Of what adapters and a prompt brought (evaluation-*.json of `energymt evaluate --against`)
there is one line each. What is not there is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from energymt.folders import MANIFEST
from energymt.models import load_translator
from energymt.storage import runs_root

SIZES = ("mini", "laptop", "wide")
PROXIES = ("proxy", "transfer")
HUNDREDFOLD = "judge"  # how the names of scores by judges begin

Point = dict[str, Any]


def manifest(run: Path) -> dict[str, Any]:
    """What a finished run says of itself; empty if there is none."""
    file = run / "model" / MANIFEST
    return dict(json.loads(file.read_text("utf-8"))["provenance"]) if file.is_file() else {}


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print one in Markdown, unless it is empty."""
    heads, rows = list(heads), list(rows)
    if not rows:
        return
    print(f"\n| {' | '.join(heads)} |\n{'| --- ' * len(heads)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


def translators(root: Path) -> None:
    """Print the sizes: parameters and dev scores."""
    rows = []
    for size in SIZES:
        told = manifest(root / f"t5-{size}")
        if told:
            count = sum(weight.numel() for weight in load_translator(root / f"t5-{size}" / "model").parameters())
            dev = told["dev"]
            rows.append(
                [size, f"{count:,}", f"{dev['dev/bleu']:.1f}", f"{dev['dev/chrf']:.1f}", f"{told['best_step']}"]
            )
    table(["T5", "parameters", "BLEU on dev", "chrF on dev", "best step"], rows)


def proxies(root: Path) -> None:
    """Print their correlations on dev, and on other text."""
    found = {
        run.name: manifest(run).get("dev", {})
        for run in sorted(root.iterdir())
        if "proxy" in run.name or "transfer" in run.name
    }
    found = {name: dev for name, dev in found.items() if "dev/pearson" in dev}
    columns = list(dict.fromkeys(key for dev in found.values() for key in dev if "pearson" in key or "spearman" in key))
    rows = [[name, *(f"{dev[key]:.3f}" if key in dev else "" for key in columns)] for name, dev in found.items()]
    table(["proxy", *columns], rows)


def adapted(root: Path) -> None:
    """Print what was adapted, compared with the model that it was adapted from."""
    files = sorted(root.glob("evaluation-*.json"))
    rows, scores = [], list[str]()
    for file in files:
        found = json.loads(file.read_text("utf-8"))["comparisons"]
        found = found[0] if isinstance(found, list) else found
        scores = [name for name in found if name in ("bleu", "chrf") or name.startswith("judged by ")]
        rows.append([file.stem.removeprefix("evaluation-"), *(_difference(found[name], name) for name in scores)])
    table(["adapted", *scores], rows)


def curves(root: Path) -> None:
    """Print the curves, all of one proxy and one score together."""
    files = {re.sub("^curve-", "", file.stem): file for file in sorted(root.glob("curve-*.json"))}
    sets = {proxy: [f"{proxy}-{size}" for size in SIZES if f"{proxy}-{size}" in files] for proxy in PROXIES}
    others = [name for name in files if not any(name in names for names in sets.values())]
    for title, names in {**sets, **{name: [name] for name in others}}.items():
        points = {name: json.loads(files[name].read_text("utf-8")) for name in names}
        scores = list(dict.fromkeys(score for found in points.values() for score in found[0]["scores"]))
        for score in scores:
            print(f"\n{title}: {score}")
            curve(points, score)


def curve(found: dict[str, list[Point]], score: str) -> None:
    """Print one score of several curves."""
    alphas = sorted({point["alpha"] for points in found.values() for point in points if point["alpha"]})
    rows = []
    for name, points in found.items():
        for beam in dict.fromkeys(point["beam"] for point in points):
            by_alpha = {point["alpha"]: point for point in points if point["beam"] == beam}
            cells = [_value(by_alpha[0.0], score)]
            cells += [
                _difference(by_alpha[alpha]["against_zero"][score], score) if alpha in by_alpha else ""
                for alpha in alphas
            ]
            rows.append([name, f"{beam}", *cells])
    table(["", "beam", "α = 0", *(f"{alpha:g}" for alpha in alphas)], rows)


def _value(point: Point, score: str) -> str:
    times, found = (100 if score.startswith(HUNDREDFOLD) else 1), point["scores"][score]
    return f"{times * found['value']:.1f} [{times * found['low']:.1f}, {times * found['high']:.1f}]"


def _difference(found: dict[str, float], score: str) -> str:
    times = 100 if score.startswith(HUNDREDFOLD) else 1
    return f"{times * found['difference']:+.1f} [{times * found['low']:+.1f}, {times * found['high']:+.1f}]"


def main() -> None:
    """Entry point."""
    root = runs_root() / "nap"
    if not root.is_dir():
        raise SystemExit(f"{root} does not exist: run examples/nap/run.sh first, with the same ENERGYMT_RUNS.")
    translators(root)
    proxies(root)
    adapted(root)
    curves(root)


if __name__ == "__main__":
    main()
