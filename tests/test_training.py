"""The loop: resumed runs are uninterrupted runs bit by bit; evaluation, patience, keeping, stopping, diverging."""

import logging
from pathlib import Path

import pytest
import safetensors.torch
import torch

from energymt.checkpoints import Progress
from energymt.errors import DivergenceError
from energymt.records import Step, Term
from energymt.training import Stop, fit
from tests import tiny, toy
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


# ------------------------------------------------------------------------------------------------------------ the loop


class Slope(torch.nn.Module):
    """One weight that falls by the learning rate at each step: the loop can be followed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


class Falling:
    """A made-up method; `dev` maps a step to its dev value."""

    METRIC = "dev/value"
    HIGHER_IS_BETTER = True

    def __init__(self, settings, dev, higher: bool = True, inner: int = 1) -> None:
        self.config, self.dev, self.HIGHER_IS_BETTER, self.inner = settings, dev, higher, inner
        self.model = Slope()
        self.factor = lambda number: 1.0
        self.seen: list[tuple[int, bool]] = []

    @property
    def plan(self):
        return self

    def iterate(self, start: int, rank: int, world: int):
        number = start
        while True:
            yield number
            number += 1

    def steps(self, number: int):
        batch = tiny.batch_of([([6], [7])], tiny.Numbers(), first=number)
        for _ in range(self.inner):
            self.seen.append((number, self.model.training))
            yield Step(
                ("a",),
                [batch],
                lambda micro: [Term("a", self.model.weight.sum() * self.factor(number), 1.0)],
                lambda micro: {"a": 1.0},
            )

    def evaluate(self):
        assert not self.model.training
        step = round(-self.model.weight.item() * 10)
        return {"dev/value": self.dev(step) if callable(self.dev) else self.dev[step]}


@pytest.fixture
def settings(tmp_path: Path):
    def make(**changes):
        data = {"path": "unread.tsv"}
        optimizer = {"learning_rate": 0.1, "warmup_steps": 0, "schedule": "constant", "betas": (0.0, 0.0)}
        values = {"evaluate_every": 1, "checkpoint_every": 100, "optimizer": optimizer, **changes}
        return toy.config("supervised", tmp_path, train=data, dev=data, **values)

    return make


def follow(trainable: Falling, out: Path, stop: Stop | None = None):
    reports: list[tuple[int, dict[str, float]]] = []
    return fit(trainable, toy.fabric(), out, lambda step, values: reports.append((step, values)), stop), reports


def steps_done(model: Slope) -> float:
    return pytest.approx(-model.weight.item() * 10, abs=1e-3)


def test_the_best_model_is_left_in_place(settings, tmp_path) -> None:
    trainable = Falling(settings(steps=5), {1: 1.0, 2: 4.0, 3: 2.0, 4: 3.0, 5: 0.0})
    result, _ = follow(trainable, tmp_path)
    assert steps_done(trainable.model) == 2
    assert result.metrics == {"dev/value": 4.0, "checkpoints/averaged": 1.0}
    assert (result.progress.best, result.progress.best_step, result.progress.step) == (4.0, 2, 5)


def test_lower_may_be_better(settings, tmp_path) -> None:
    trainable = Falling(settings(steps=4), {1: 3.0, 2: 1.0, 3: 2.0, 4: 5.0}, higher=False)
    result, _ = follow(trainable, tmp_path)
    assert steps_done(trainable.model) == 2
    assert result.progress.best == 1.0


def test_patience_ends_a_run_and_a_gain_renews_it(settings, tmp_path) -> None:
    values = {1: 1.0, 2: 0.0, 3: 2.0, 4: 2.0, 5: 1.0, 6: 9.0}
    trainable = Falling(settings(steps=6, patience=2), values)
    result, _ = follow(trainable, tmp_path)
    assert (result.progress.step, result.progress.stopped_early, result.interrupted) == (5, True, False)
    assert steps_done(trainable.model) == 3
    again = Falling(settings(steps=6, patience=2), values)
    assert follow(again, tmp_path)[0].progress == result.progress
    assert again.seen == []


@pytest.mark.parametrize("average, left", [(9.0, 2), (3.0, 3)])
def test_the_mean_of_the_best_stays_only_if_it_is_better(average: float, left: int, settings, tmp_path) -> None:
    # Kept are the models of steps 1 and 3; their mean looks like the model of step 2.
    seen: list[int] = []

    def dev(step: int) -> float:
        seen.append(step)
        return {1: 4.0, 2: 1.0 if seen.count(2) == 1 else average, 3: 5.0, 4: 0.0}[step]

    trainable = Falling(settings(steps=4, keep_best=2), dev)
    result, _ = follow(trainable, tmp_path)
    assert result.progress.kept == {"1": 4.0, "3": 5.0}
    assert steps_done(trainable.model) == left
    assert result.metrics["dev/value"] == max(average, 5.0)
    assert result.metrics["checkpoints/averaged"] == (2.0 if left == 2 else 1.0)


def test_the_last_step_is_always_evaluated(settings, tmp_path) -> None:
    trainable = Falling(settings(steps=5, evaluate_every=3), {3: 1.0, 5: 2.0})
    result, reports = follow(trainable, tmp_path)
    assert result.progress.best_step == 5
    assert [step for step, values in reports if "dev/value" in values] == [3, 5]


def test_what_is_logged_is_the_mean_since_the_last_line(settings, tmp_path) -> None:
    trainable = Falling(settings(steps=4, log_every=2, evaluate_every=4), {4: 1.0})
    _, reports = follow(trainable, tmp_path)
    logged = [(step, values) for step, values in reports if "train/a" in values]
    assert [step for step, _ in logged] == [2, 4]
    assert [values["train/a"] for _, values in logged] == [pytest.approx(-0.05), pytest.approx(-0.25)]
    assert all(values["train/learning_rate"] == 0.1 for _, values in logged)
    assert all(values["time/tokens_per_s"] > 0 for _, values in logged)


def test_the_rate_follows_its_schedule(settings, tmp_path) -> None:
    optimizer = {"learning_rate": 0.2, "warmup_steps": 2, "schedule": "linear"}
    trainable = Falling(settings(steps=4, evaluate_every=4, optimizer=optimizer), lambda step: 0.0)
    _, reports = follow(trainable, tmp_path)
    rates = [values["train/learning_rate"] for _, values in reports if "train/learning_rate" in values]
    assert rates == pytest.approx([0.1, 0.2, 0.2, 0.1])


def test_a_batch_may_give_several_optimizer_steps(settings, tmp_path) -> None:
    trainable = Falling(settings(steps=2, evaluate_every=2), {6: 1.0}, inner=3)
    result, _ = follow(trainable, tmp_path)
    assert trainable.seen == [(0, True)] * 3 + [(1, True)] * 3
    assert result.progress.step == 2
    assert steps_done(trainable.model) == 6


def test_stop_writes_a_checkpoint_behind_the_current_step(settings, tmp_path) -> None:
    stop = Stop()

    def dev(step: int) -> float:
        stop.requested = step == 2
        return 0.0

    result, _ = follow(Falling(settings(steps=9), dev), tmp_path, stop)
    assert result.interrupted and result.metrics == {}
    assert [path.name for path in tmp_path.glob("last-*")] == ["last-00000002"]


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_checkpoint(settings, tmp_path) -> None:
    values = dict.fromkeys(range(9), 0.0)
    trainable = Falling(settings(steps=6, checkpoint_every=2), values)
    trainable.factor = lambda number: float("nan") if number == 3 else 1.0
    with pytest.raises(DivergenceError, match="step 4"):
        follow(trainable, tmp_path)
    assert steps_done(trainable.model) == 3  # three good steps
    assert [path.name for path in tmp_path.glob("last-*")] == ["last-00000002"]
    healed = Falling(settings(steps=6, checkpoint_every=2), values)
    follow(healed, tmp_path)
    assert healed.seen[0] == (2, True)


def test_a_dev_value_that_is_no_number_ends_the_run(settings, tmp_path) -> None:
    with pytest.raises(DivergenceError, match="dev/value is nan at step 2"):
        follow(Falling(settings(steps=3), {1: 1.0, 2: float("nan")}), tmp_path)


def test_a_resumed_run_finds_its_former_best_model(settings, tmp_path) -> None:
    """Killed after a better model came and before the next checkpoint; then the evaluation comes out otherwise."""

    def dies(step: int) -> float:
        if step == 4:
            raise Killed
        return float(step)

    with pytest.raises(Killed):
        follow(Falling(settings(steps=5, checkpoint_every=2), dies), tmp_path)
    trainable = Falling(settings(steps=5, checkpoint_every=2), {2: 2.0, 3: 0.0, 4: 0.0, 5: 0.0})
    result, _ = follow(trainable, tmp_path)
    assert result.progress.best_step == 2
    assert steps_done(trainable.model) == 2


def test_progress_starts_at_nothing() -> None:
    assert Progress() == Progress(step=0, best=None, best_step=-1, kept={}, stopped_early=False)
