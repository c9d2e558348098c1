"""What a proxy promises of a step, and what the step brings: of the curves that examples/nap/run.sh has left.

    python -m benchmarks.promises [--beam 4]

For each size of T5 and each α: the promised gain of the metric (the proxy at the moved states, minus the proxy at the
model's own), the gain that the estimator itself finds in the outputs of the curve, and their correlation over the
sentences; times 100. The held-out error of the proxy is what `--trust` counts in.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.nap import SIZES, table
from energymt.alpha_curve import OfText
from energymt.data.corpus import Corpus, DataConfig, read_corpus
from energymt.decoding.perturbed import Perturbation
from energymt.metrics.estimation import pearson
from energymt.models import load_translator
from energymt.models.loading import AnyTranslator
from energymt.perturbation import PerturbationOptions, open_perturbation
from energymt.quality import open_judge
from energymt.storage import runs_root

PREFIX = "translate German to English: "


@torch.no_grad()
def promises(model: AnyTranslator, change: Perturbation, corpus: Corpus) -> NDArray[np.float64]:
    """The promised gain of each sentence, in their order."""
    found = [change.promises(memory)[0] for memory in OfText(corpus, {}, 1).memories(model)]
    return torch.cat(found).double().numpy()


def rows(root: Path, size: str, beam: int, test: DataConfig) -> Iterator[list[str]]:
    """A line for each α of a size."""
    folder, curve = root / f"t5-{size}" / "model", root / f"curve-proxy-{size}.json"
    model, corpus = load_translator(folder), read_corpus(test)
    judge = open_judge(str(runs_root() / "estimators" / "multi30k" / "model"), torch.device("cpu"))
    points = {point["alpha"]: point for point in json.loads(curve.read_text("utf-8")) if point["beam"] == beam}
    own_N = np.array(judge(corpus.source, points[0.0]["outputs"], corpus.target or []))
    options = PerturbationOptions(str(root / f"proxy-{size}" / "model"), (0.0,))
    change = open_perturbation(options, model, str(folder))
    for alpha in sorted(alpha for alpha in points if alpha > 0):
        promised_N = promises(model, replace(change, alphas=(alpha,)), corpus)
        real_N = np.array(judge(corpus.source, points[alpha]["outputs"], corpus.target or [])) - own_N
        gains = [f"{100 * gain:+.1f}" for gain in (promised_N.mean(), real_N.mean())]
        least = f"{100 * promised_N.min():+.1f}"
        error = f"{100 * float(change.proxy.error):.1f}"
        yield [size, f"{alpha:g}", *gains, least, error, f"{pearson(promised_N, real_N):+.2f}"]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beam", type=int, default=4, choices=[1, 2, 4, 8])
    beam = parser.parse_args().beam
    path = f"{os.environ['ENERGYMT_DATA']}/multi30k/test_2016_flickr.tsv.gz"
    test, root = DataConfig(path=path, source="de", target="en", prefix=PREFIX), runs_root() / "nap"
    sizes = [size for size in SIZES if (root / f"curve-proxy-{size}.json").is_file()]
    heads = ["T5", "α", "promised", "found", "least promised", "error of the proxy", "correlation"]
    table(heads, [row for size in sizes for row in rows(root, size, beam, test)])


if __name__ == "__main__":
    main()
