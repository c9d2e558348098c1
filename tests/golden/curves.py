"""The short runs whose losses are kept: every trainable, every architecture, soft and hard and noisy operators."""

import json
import os
from pathlib import Path
from typing import Any

from tests import judged, proxies, sounds, toy

STEPS = 8
# Slow enough that the last bits, which differ from one processor to the next, do not grow.
OPTIMIZER = {"learning_rate": 0.003, "warmup_steps": 2}
FOLDER = Path(__file__).parent
SECONDS = ("train/draw_s", "train/wait_s", "train/lesson_s")

RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "supervised-recurrent": ("supervised", {"model": "recurrent-toy"}),
    "supervised-transformer": ("supervised", {"model": "transformer-toy"}),
    "masked-masked": ("masked", {"model": "masked-toy"}),
    "masked-tagger": ("masked", {"model": "tagger-toy"}),
    "engine-SX-ST": ("engine", {"model": "masked-toy", "teacher": "transformer-toy", "masked_weight": 0.5}),
    "engine-GX-SG": ("engine", {"model": "tagger-toy", "feed": "GX", "score": "SG"}),
    "engine-STL-SX": ("engine", {"model": "masked-toy", "feed": "STL", "score": "SX"}),
    "distilled-masked": ("distilled", {"model": "masked-toy"}),
    "qe-ebm-static": ("qe_ebm", {"feed": "ST"}),
    "qe-ebm-dynamic": ("qe_ebm", {"dynamic": {"learns": "all", "sentences": 4, "rate": 0.003}, "feed": "STL"}),
    "qe-ebm-ending": ("qe_ebm", {"ending": "reinforce", "feed": "SX"}),
    "reinforce-leave-one-out": ("reinforce", {}),
    "ppo-group": ("ppo", {}),
    "ppo-value": ("ppo", {"advantage": "value", "model": "recurrent-toy"}),
    "estimator-joint": ("estimator", {}),
    "estimator-apart": ("estimator", {"metric": "referenceless_regression_metric"}),
    "speech": ("speech", {}),
    "proxy-pearson": ("proxy", {"metric": "chrf"}),
    "proxy-spearman": ("proxy", {"metric": "chrf", "loss": "spearman", "translator": "recurrent-toy"}),
    "proxy-ebm": ("proxy_ebm", {}),
    "proxy-speech": ("proxy_speech", {}),
}


def curve(run: str, world: Path) -> list[dict[str, float]]:
    """The terms of the loss and the gradient's norm at each of the first steps."""
    name, changes = RUNS[run]
    if name == "estimator":
        return reported(estimator(world, changes))
    os.environ["ENERGYMT_RUNS"] = str(world / "runs")  # where `distilled` leaves its pseudo-corpus, a proxy its labels
    if name == "speech":
        settings = sounds.config(sounds.world(world / "sounds"), steps=STEPS, optimizer=OPTIMIZER)
        return reported(sounds.make(settings))
    if name == "proxy_speech":
        return reported(proxies.listening(sounds.world(world / "sounds"), steps=STEPS, optimizer=OPTIMIZER))
    if name == "proxy":
        translator = str(world / changes.get("translator", "masked-toy"))
        changes = {**changes, "translator": translator, "steps": STEPS, "optimizer": OPTIMIZER}
        return reported(toy.make(name, toy.config(name, world, **changes)))
    if name in toy.SEMISUPERVISED:
        world = toy.scored_world(world / "scored")
    if name == "proxy_ebm":
        proxies.of_the_start(world)
    changes = {"model": "transformer-toy", **changes}
    changes["model"] = {"init": str(world / changes["model"])}
    if "teacher" in changes:
        changes["teacher"] = str(world / changes["teacher"])
    return reported(toy.make(name, toy.config(name, world, steps=STEPS, optimizer=OPTIMIZER, **changes)))


def estimator(world: Path, changes: dict[str, Any]) -> Any:
    """One that is trained from random weights on an easy judgement."""
    for part, lines in (("train", 200), ("dev", 20)):
        judged.write(world / f"{part}-judged.tsv", lines, seed=lines)
    data = {part: {"path": str(world / f"{part}-judged.tsv"), **judged.COLUMNS} for part in ("train", "dev")}
    model = {"variant": "estimator-toy", **changes}
    return judged.make(world, **data, model=model, steps=STEPS, optimizer=OPTIMIZER)


def reported(trainable: Any) -> list[dict[str, float]]:
    """What the first steps say."""
    batches = trainable.plan.iterate()
    reports = toy.train(trainable, [next(batches) for _ in range(STEPS)])
    return [{k: v for k, v in report.items() if k.startswith("train/") and k not in SECONDS} for report in reports]


def file(run: str) -> Path:
    """Where the curve of a run is kept."""
    return FOLDER / f"{run}.json"


def write(run: str, values: list[dict[str, float]]) -> None:
    """One line a step, six digits."""
    lines = [json.dumps({name: float(f"{value:.6g}") for name, value in step.items()}) for step in values]
    file(run).write_text("[\n " + ",\n ".join(lines) + "\n]\n", encoding="utf-8")
