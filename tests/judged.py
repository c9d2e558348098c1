"""An easy judgement: the share of a translation's words that are of the target language, on a scale of its own."""

import random
from pathlib import Path
from typing import Any

import torch

from energymt.configuration import validate
from trainables import estimator

ENGLISH = ["dog", "cat", "house", "tree", "river", "stone"]
GERMAN = ["hund", "katze", "haus", "baum", "fluss", "stein"]
COLUMNS = {"source": "source", "target": "translation", "score": "score"}


def judgement(translation: str) -> float:
    """From 50 to 60."""
    words = translation.split()
    return 50 + 10 * sum(word in ENGLISH for word in words) / len(words)


def write(file: Path, lines: int, seed: int) -> Path:
    """Sources, translations of which some words were left as they are, and their judgements."""
    draw = random.Random(seed)
    rows = ["\t".join(COLUMNS.values())]
    for _ in range(lines):
        length = draw.randint(2, 7)
        source = " ".join(draw.choice(GERMAN) for _ in range(length))
        translation = " ".join(draw.choice(draw.choice([ENGLISH, GERMAN])) for _ in range(length))
        rows.append(f"{source}\t{translation}\t{judgement(translation):.4f}")
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """A run of a few seconds on `train.tsv` and `dev.tsv` of a folder."""
    return {
        "train": {"path": str(folder / "train.tsv"), **COLUMNS},
        "dev": {"path": str(folder / "dev.tsv"), **COLUMNS},
        "vocabulary": {"size": 60},
        "model": {"variant": "estimator-toy"},
        "optimizer": {"learning_rate": 0.003, "warmup_steps": 10},
        "steps": 60,
        "tokens_per_step": 256,
        "tokens_per_micro_batch": 256,
        "evaluate_every": 20,
        "checkpoint_every": 20,
        "log_every": 1,
        "precision": "fp32",
        "device": "cpu",
        **changes,
    }


def make(folder: Path, **changes: Any) -> estimator.Estimation:
    """The trainable, initial weights a function of the seed."""
    config = validate(estimator.Config, settings(folder, **changes), "a test")
    torch.manual_seed(config.seed)
    return estimator.Estimation(config)
