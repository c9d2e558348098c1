"""Resumed runs of every method are uninterrupted runs, bit by bit."""

import logging
from pathlib import Path

import pytest
import safetensors.torch
import torch

from energymt.training import Stop, fit
from tests import toy
from tests.toy import METHODS


class Killed(Exception):
    """What a test does to a run."""


def run(name: str, folder: Path, out: Path, **changes):
    """One call of `fit`; returns the trainable, the result and all that was reported."""
    variant = "recurrent-toy" if name == "supervised" else "masked-toy"
    model = {"variant": variant, "changes": {**toy.SMALL[variant], "dropout": 0.2}}
    if name == "supervised":
        model["changes"]["layers"] = 2  # dropout stands between them
    operators = {"feed": "SG", "score": "GX"} if name == "engine" else {}
    settings = {"model": model, "vocabulary": {"path": str(folder / variant)}, **operators, **changes}
    stop_at, kill_at = settings.pop("stop_at", None), settings.pop("kill_at", None)
    trainable = toy.make(name, toy.config(name, folder, **settings))
    stop, reports = Stop(), []

    def report(step: int, values: dict[str, float]) -> None:
        reports.append((step, values))
        if step == kill_at:
            raise Killed
        stop.requested = stop.requested or step == stop_at

    result = fit(trainable, toy.fabric(), out, report, stop)
    return trainable, result, reports


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def last(out: Path) -> dict[str, torch.Tensor]:
    """The weights of the newest checkpoint: `fit` leaves the best model in place, not the last."""
    return safetensors.torch.load_file(max(out.glob("last-*")) / "weights.safetensors")


def losses(reports) -> list[tuple[int, dict[str, float]]]:
    kept = [(step, {k: v for k, v in values.items() if not k.startswith("time/")}) for step, values in reports]
    return [(step, values) for step, values in kept if "checkpoints/passed_over" not in values]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """Each method once, from start to end: six steps of epochs that have four."""
    found = {}
    for name in METHODS:
        out = tmp_path_factory.mktemp(name)
        trainable, result, reports = run(name, folder, out)
        assert trainable.plan.steps_per_epoch == 4
        found[name] = toy.weights(trainable), result, reports, last(out)
    return found


# --------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("at", [1, 3, 4, 5])
@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(name: str, at: int, folder, uninterrupted, tmp_path) -> None:
    _, first, before = run(name, folder, tmp_path, stop_at=at)
    assert first.interrupted and first.progress.step == at and first.metrics == {}
    trainable, result, after = run(name, folder, tmp_path)
    weights, wanted, reports, newest = uninterrupted[name]
    assert not result.interrupted
    assert same(last(tmp_path), newest)
    assert same(toy.weights(trainable), weights)
    assert result.metrics == wanted.metrics
    assert losses(before + after) == losses(reports)
    assert (result.progress.kept, result.progress.best_step) == (wanted.progress.kept, wanted.progress.best_step)


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_goes_on_from_its_last_checkpoint(name: str, folder, uninterrupted, tmp_path) -> None:
    with pytest.raises(Killed):
        run(name, folder, tmp_path, kill_at=5)
    assert sorted(path.name for path in tmp_path.glob("last-*")) == ["last-00000002", "last-00000004"]
    trainable, _, reports = run(name, folder, tmp_path)
    assert reports[0][0] == 5
    assert same(last(tmp_path), uninterrupted[name][3])
    assert same(toy.weights(trainable), uninterrupted[name][0])


def test_a_broken_checkpoint_is_passed_over_for_the_one_before(folder, uninterrupted, tmp_path, caplog) -> None:
    with pytest.raises(Killed):
        run("masked", folder, tmp_path, kill_at=5)
    weights = tmp_path / "last-00000004" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        trainable, _, reports = run("masked", folder, tmp_path)
    assert reports[0] == (2, {"checkpoints/passed_over": 1.0})
    assert reports[1][0] == 3
    assert str(weights) in caplog.text and "it was cut" in caplog.text
    assert same(last(tmp_path), uninterrupted["masked"][3])
    assert same(toy.weights(trainable), uninterrupted["masked"][0])


def test_a_finished_run_is_not_trained_again(folder, uninterrupted, tmp_path) -> None:
    run("masked", folder, tmp_path)
    trainable, result, reports = run("masked", folder, tmp_path)
    assert reports == []
    assert same(toy.weights(trainable), uninterrupted["masked"][0])
    assert result.metrics == uninterrupted["masked"][1].metrics


def test_more_steps_continue_a_finished_run(folder, uninterrupted, tmp_path) -> None:
    run("masked", folder, tmp_path, steps=3)
    run("masked", folder, tmp_path)
    assert same(last(tmp_path), uninterrupted["masked"][3])


def test_another_seed_is_another_run(folder, uninterrupted, tmp_path) -> None:
    run("masked", folder, tmp_path, seed=2)
    assert not same(last(tmp_path), uninterrupted["masked"][3])
