"""Two Ray Train workers give the loss curve of one, on real text and with dropout, for fifty steps."""

import json
from pathlib import Path

import pytest

from energymt import runs
from energymt.configuration import read_config
from energymt.tracking import NullTracker

pytestmark = [pytest.mark.ray, pytest.mark.slow]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "multi30k" / "teacher.yaml"
STEPS = 50


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / runs.LOG).read_text().splitlines()]
    return [line["train/nll"] for line in lines if "train/nll" in line]


def test_fifty_steps_of_the_example(local_ray: Path, data_folder: Path) -> None:
    from energymt.cluster.launch import Workers, train_on_ray
    from trainables.supervised import Config

    budget = [f"steps={STEPS}", f"evaluate_every={STEPS}", f"checkpoint_every={STEPS}", "log_every=1", "dev.rows=20"]
    batches = ["tokens_per_step=1024", "tokens_per_micro_batch=512", "optimizer.warmup_steps=100"]
    config = read_config(Config, EXAMPLE, [*budget, *batches])
    alone, two = local_ray / "alone", local_ray / "two"
    for folder in (alone, two):
        folder.mkdir()
    runs.train("supervised", config, alone, NullTracker(), lambda text: None)
    train_on_ray("supervised", config, two, workers=Workers(2))
    assert len(losses(alone)) == STEPS and losses(alone)[-1] < losses(alone)[0] - 1
    # Sums in another order differ in the last digits, and AdamW divides by small numbers: the difference grows slowly.
    assert losses(two)[:10] == pytest.approx(losses(alone)[:10], rel=5e-5)
    assert losses(two) == pytest.approx(losses(alone), rel=2e-3)
