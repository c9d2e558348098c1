"""The loop, followed by hand: evaluation, patience, keeping the best, stopping, diverging, damaged best models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from energymt.checkpoints import Progress
from energymt.errors import DivergenceError
from energymt.records import Step, Term
from energymt.training import Stop, fit
from energymt.window import Window
from tests import tiny, toy


class Killed(Exception):
    """What a test does to a run."""


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


def test_a_run_that_patience_ended_goes_on_when_it_is_raised(settings, tmp_path) -> None:
    values = {1: 5.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 9.0, 6: 0.0}
    follow(Falling(settings(steps=6, patience=2), values), tmp_path / "run")
    result, _ = follow(again := Falling(settings(steps=6, patience=4), values), tmp_path / "run")
    assert [number for number, _ in again.seen] == [3, 4, 5]
    whole, _ = follow(Falling(settings(steps=6, patience=4), values), tmp_path / "whole")
    assert replace(result.progress, seconds=0.0) == replace(whole.progress, seconds=0.0)
    assert (result.progress.best_step, result.progress.stopped_early) == (5, False)


def test_a_run_that_patience_ended_has_it_again_when_steps_are_raised(settings, tmp_path) -> None:
    values = {1: 5.0, **dict.fromkeys(range(2, 10), 1.0)}
    follow(Falling(settings(steps=6, patience=2), values), tmp_path)
    result, _ = follow(again := Falling(settings(steps=9, patience=2), values), tmp_path)
    assert [number for number, _ in again.seen] == [3, 4]
    assert (result.progress.step, result.progress.stopped_early) == (5, True)
    follow(again := Falling(settings(steps=9, patience=2), values), tmp_path)
    assert again.seen == []


def test_patience_that_is_lowered_ends_a_run_that_has_none_left(settings, tmp_path) -> None:
    values = {1: 5.0, **dict.fromkeys(range(2, 10), 1.0)}
    stop = Stop()

    def dev(step: int) -> float:
        stop.requested = step == 4
        return values[step]

    follow(Falling(settings(steps=9, patience=8), dev), tmp_path, stop)
    result, _ = follow(again := Falling(settings(steps=9, patience=3), values), tmp_path)
    assert again.seen == [] and (result.interrupted, result.progress.stopped_early) == (False, True)


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


def test_the_spread_of_a_gradient_is_that_of_its_norm_since_the_last_line() -> None:
    window = Window()
    for norm in (1.0, 2.0, 3.0):
        window.add({"train/norm_unlabelled": norm, "train/a": norm})
    means = window.means()
    assert means["train/norm_unlabelled_spread"] == pytest.approx(0.5)
    assert "train/a_spread" not in means
    window.add({"train/norm_unlabelled": 2.0})
    assert "train/norm_unlabelled_spread" not in window.means()


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


def broken(out: Path, step: int) -> None:
    (out / f"kept-{step:08d}" / "weights.safetensors").write_bytes(b"")


def test_a_broken_best_model_is_left_out_and_the_run_goes_on(settings, tmp_path, caplog) -> None:
    values = {1: 9.0, 2: 3.0, 3: 4.0, 4: 1.0}
    follow(Falling(settings(steps=2), values), tmp_path)
    broken(tmp_path, 1)
    result, reports = follow(again := Falling(settings(steps=4), values), tmp_path)
    assert reports[0] == (2, {"checkpoints/passed_over": 1.0})
    assert len(caplog.records) == 1 and "kept-00000001" in caplog.text and "goes on from step 2" in caplog.text
    assert (result.progress.best, result.progress.kept) == (4.0, {"3": 4.0})
    assert steps_done(again.model) == 3


def test_a_broken_best_model_of_a_finished_run_leaves_the_next_best_or_the_last(settings, tmp_path) -> None:
    values = {1: 9.0, 2: 3.0, 3: 8.0, 4: 1.0}
    follow(Falling(settings(steps=4, keep_best=2), values), tmp_path)
    for step, left, best in ((1, 3, 8.0), (3, 4, 1.0)):
        broken(tmp_path, step)
        result, _ = follow(again := Falling(settings(steps=4, keep_best=2), values), tmp_path)
        assert steps_done(again.model) == left and again.seen == []
        assert result.metrics == {"dev/value": best, "checkpoints/averaged": 1.0}
        assert (result.progress.best, result.progress.best_step) == (best, left)


def test_progress_starts_at_nothing() -> None:
    assert Progress() == Progress(step=0, best=None, best_step=-1, kept={}, stopped_early=False)
