"""Scoring of text, as `energymt score` does it, against unbabel-comet's own `predict`, in turns.

    ENERGYMT_DATA=FOLDER python -m benchmarks.bench_score [--lines 2000] [--device cuda] [--threads N] [--quick]

Both read one COMET-KIWI checkpoint of the shape of XLM-R base (12 layers, 768 wide) with random weights, and score the
same lines of MLQE-PE ro-en (dev, then test; made-up ones where ENERGYMT_DATA is not set). The tokenizer is trained on
those lines, for there is no XLM-R's here: its vocabulary is small, which touches neither side's encoder. Loading is
excluded, tokenising included. Every turn scores all lines; their scores must be equal within 1e-4.

Each side runs with its default (comet: batches of 16 sentences, sorted by source length; energymt: of so many padded
tokens, sorted by input length), and, where another does better on an eighth of the lines, with that too.
Bar: at defaults, energymt at least 1.3 times as fast.

One turn of all 2,000 lines takes four to five minutes of one thread on a CPU, and three rounds most of an hour.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.estimators import KIWI, Shape, encoder_config, trained_on, write_tokenizer
from benchmarks.timing import interleaved, machine, parse, ratio
from energymt.data.corpus import DataConfig, read_corpus
from energymt.models.comet_checkpoint import convert_comet
from energymt.models.estimator_folder import load_estimator
from energymt.models.scoring import CPU_TOKENS, score_lines

BAR, CLOSE = 1.3, 1e-4
BASE, QUICK = Shape(8000, 768, 12), Shape(300, 64, 2)
COMET, OURS = "unbabel-comet", "energymt"
DEFAULTS = {COMET: 16, OURS: CPU_TOKENS}
TRIED = {COMET: (1, 2, 4, 8, 32), OURS: (256, 512, 1024, 2048)}
UNITS = {COMET: "sentences", OURS: "tokens"}

Lines = list[tuple[str, str]]
"""Sources and translations."""
Score = Callable[[Lines, int], list[float]]
"""Of lines, in batches of a size."""


def mlqe_pe(count: int) -> Lines:
    """Romanian sentences of Wikipedia, and what a translator made of them."""
    data = os.environ.get("ENERGYMT_DATA")
    if not data:
        print("ENERGYMT_DATA is not set: made-up lines instead of MLQE-PE, with lengths alike.")
        return made_up(count)
    lines: Lines = []
    for split in ("dev", "test"):
        path = Path(data) / "mlqe-pe" / "ro-en" / f"{split}.tsv.gz"
        corpus = read_corpus(DataConfig(path=str(path), source="source", target="translation"))
        lines += zip(corpus.source, corpus.target or (), strict=True)
    if count > len(lines):
        raise SystemExit(f"MLQE-PE ro-en has {len(lines):,} lines in dev and test: ask for fewer than {count:,}.")
    return lines[:count]


def made_up(count: int) -> Lines:
    """Sides of one line are of like length: 15 words in the mean."""
    draw = random.Random(1)

    def side(words: int) -> str:
        return " ".join(f"w{draw.randrange(300)}" for _ in range(words))

    lengths = (max(3, round(draw.gauss(15, 5))) for _ in range(count))
    return [(side(length), side(max(3, length + draw.randint(-3, 3)))) for length in lengths]


def write_checkpoint(folder: Path, shape: Shape, lines: Lines) -> Path:
    """A COMET folder, made by COMET's own class; returns the folder of its encoder."""
    from comet.models import str2model

    encoder = folder / "encoder"
    encoder.mkdir(parents=True)
    tokenizer = trained_on((text for line in lines for text in line), shape.vocabulary)
    write_tokenizer(encoder, tokenizer)
    encoder_config(shape._replace(vocabulary=tokenizer.get_vocab_size())).save_pretrained(encoder)
    settings = {
        "pretrained_model": str(encoder),
        "load_pretrained_weights": False,
        "local_files_only": True,
        "layer_transformation": KIWI.transformation,
        "layer_norm": KIWI.layer_norm,
        "hidden_sizes": list(KIWI.hidden_sizes),
        "input_segments": list(KIWI.parts),
    }
    torch.manual_seed(1)
    model = str2model[KIWI.metric](**settings)
    with torch.no_grad():
        model.estimator.ff[-1].weight.mul_(10.0)  # random scores lie close together
    hparams = {**model.hparams, "class_identifier": KIWI.metric}
    content = {"state_dict": model.state_dict(), "hyper_parameters": hparams, "pytorch-lightning_version": "2.0.0"}
    (folder / "checkpoints").mkdir()
    torch.save(content, folder / "checkpoints" / "model.ckpt")
    (folder / "hparams.yaml").write_text(yaml.safe_dump(hparams), encoding="utf-8")
    return encoder


def sides_of(shape: Shape, lines: Lines, device: str, folder: Path) -> dict[str, Score]:
    """Both, loaded."""
    import comet

    warnings.filterwarnings("ignore")  # Lightning's, and tips, in every call
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    encoder = write_checkpoint(folder / "comet", shape, lines)
    convert_comet(folder / "comet", folder / "estimator", encoder)
    estimator = load_estimator(folder / "estimator").to(device)
    model: Any = comet.load_from_checkpoint(
        str(folder / "comet" / "checkpoints" / "model.ckpt"), strict=True, local_files_only=True
    )

    def theirs(lines: Lines, size: int) -> list[float]:
        samples = [{"src": source, "mt": translation} for source, translation in lines]
        found = model.predict(samples, batch_size=size, gpus=int(device == "cuda"), progress_bar=False)
        return list(found["scores"])

    def ours(lines: Lines, size: int) -> list[float]:
        sources, translations = zip(*lines, strict=True)
        return score_lines(estimator, sources, translations, tokens_per_batch=size)

    return {COMET: theirs, OURS: ours}


def best_sizes(sides: dict[str, Score], lines: Lines, options: argparse.Namespace) -> dict[str, int]:
    """For each side the fastest size of a batch, in a single turn."""
    best = {}
    for side, score in sides.items():
        sizes = sorted({DEFAULTS[side], *TRIED[side]})
        turns = {str(size): lambda score=score, size=size: score(lines, size) for size in sizes}
        seconds = interleaved(turns, 1, 1 if options.quick else 0, options.device, options.clock)
        rates = {int(size): len(lines) / own[0] for size, own in seconds.items()}
        print(f"{side}, lines/s by {UNITS[side]}: " + ", ".join(f"{n}: {rate:.1f}" for n, rate in rates.items()))
        best[side] = max(rates, key=rates.__getitem__)
    return best


def measure(sides: dict[str, Score], lines: Lines, options: argparse.Namespace) -> dict[tuple[str, int], list[float]]:
    """Seconds of each side and size for all lines; says how far it has come."""
    scores: dict[tuple[str, int], list[float]] = {}
    start = time.perf_counter()

    def turn(side: str, size: int) -> None:
        scores[side, size] = sides[side](lines, size)
        print(f"  {time.perf_counter() - start:6.0f} s: {side}, {size} {UNITS[side]}, {len(lines):,} lines", flush=True)

    best = best_sizes(sides, lines[::8], options)
    chosen = dict.fromkeys((side, size) for sizes in (DEFAULTS, best) for side, size in sizes.items())
    names = {f"{side} {size}": lambda side=side, size=size: turn(side, size) for side, size in chosen}
    seconds = interleaved(names, options.rounds, 0, options.device, options.clock)
    wanted = scores[COMET, DEFAULTS[COMET]]
    for (side, size), found in scores.items():
        worst = max(abs(mine - other) for mine, other in zip(found, wanted, strict=True))
        if worst > CLOSE:
            raise SystemExit(f"{side} in batches of {size} and {COMET} differ by up to {worst:.3g}.")
    print(f"scores from {min(wanted):.3f} to {max(wanted):.3f}, equal within {CLOSE}")
    return dict(zip(chosen, seconds.values(), strict=True))


def report(seconds: dict[tuple[str, int], list[float]], lines: int) -> None:
    """A row for each side and size, and the ratios of defaults and of the best."""
    for (side, size), own in seconds.items():
        print(f"{side:14}{size:6} {UNITS[side]:10}{lines / statistics.median(own):10.2f} lines/s")
    best = {
        side: min((key for key in seconds if key[0] == side), key=lambda key: sum(seconds[key])) for side in DEFAULTS
    }
    defaults = ratio(seconds[COMET, DEFAULTS[COMET]], seconds[OURS, DEFAULTS[OURS]])
    verdict = "met" if defaults >= BAR else "MISSED"
    print(f"at defaults: {defaults:.2f} times as fast as {COMET}, bar {BAR}: {verdict}")
    print(f"each at its best: {ratio(seconds[best[COMET]], seconds[best[OURS]]):.2f} times as fast")


def more(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark alone."""
    parser.add_argument("--lines", type=int, default=2000)


def main() -> None:
    """Entry point."""
    options = parse(__doc__, 3, more)
    if importlib.util.find_spec("comet") is None:
        raise SystemExit("unbabel-comet is not installed, and it is the peer: install the extra [comet].")
    shape, count = (QUICK, 48) if options.quick else (BASE, options.lines)
    lines = mlqe_pe(count)
    print(f"{count:,} lines, layers, D = {shape.layers}, {shape.width}, {machine(options.device)}", flush=True)
    print(f"medians of {options.rounds} turns")
    with tempfile.TemporaryDirectory() as name:
        sides = sides_of(shape, lines, options.device, Path(name))
        for score in sides.values():
            score(lines[:16], 8)  # what happens in a first call alone
        report(measure(sides, lines, options), count)


if __name__ == "__main__":
    main()
