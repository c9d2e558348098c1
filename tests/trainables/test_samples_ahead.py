"""`samples_ahead`: the samples of a step come from the translator as it was one step ago, and nothing else changes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from energymt.errors import ConfigurationError
from energymt.semisupervised import Drawn
from tests import toy
from tests.trainables.test_semisupervised import left

METHODS = {
    "static": ("qe_ebm", {}),
    "dynamic": ("qe_ebm", {"dynamic": {"sentences": 4}}),
    "reinforce": ("reinforce", {}),
}
every_method = pytest.mark.parametrize("name", METHODS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.scored_world(tmp_path_factory.mktemp("world"))


def made(name: str, folder: Path, **changes: Any) -> Any:
    method, settings = METHODS[name]
    return toy.make(method, toy.config(method, folder, **{"samples_ahead": True, **settings, **changes}))


class Watched:
    """What a run drew and learnt from, each with the weights of its moment."""

    def __init__(self, trainable: Any) -> None:
        self.trainable = trainable
        self.drawn: list[tuple[int, Any, dict[str, torch.Tensor]]] = []
        self.used: list[tuple[int, Drawn]] = []
        own_draw, own_use = trainable.draw_now, trainable.draw

        def draw_now(batch: Any, step: int) -> Drawn:
            weights = {name: value.clone() for name, value in trainable.model.state_dict().items()}
            self.drawn.append((step, batch, weights))
            found: Drawn = own_draw(batch, step)
            return found

        def draw(batch: Any, step: int) -> Drawn:
            self.used.append((step, own_use(batch, step)))
            return self.used[-1][1]

        trainable.draw_now, trainable.draw = draw_now, draw
        trainable.ahead.draw = draw_now


@every_method
def test_samples_come_from_the_step_before(name: str, folder: Path, tmp_path: Path) -> None:
    """And behind a checkpoint, and at the start, from the present translator."""
    watched = Watched(made(name, folder, checkpoint_every=4, steps=6))
    steps: list[dict[str, torch.Tensor]] = []
    own = watched.trainable.steps

    def counted(batch: Any) -> Any:
        steps.append({name: value.clone() for name, value in watched.trainable.model.state_dict().items()})
        return own(batch)

    watched.trainable.steps = counted
    toy.fitted(watched.trainable, tmp_path / "run")
    assert [step for step, _ in watched.used] == sorted(step for step, _, _ in watched.drawn)  # each used, none twice
    assert {step for step, _ in watched.used} == set(range(6))
    for step, batch, weights in watched.drawn:
        of = step if step in (0, 4) else step - 1
        assert all(torch.equal(value, steps[of][key]) for key, value in weights.items()), (step, of)
        names_B = batch.sentence_ids_B
        (drawn,) = (one for at, one in watched.used if at == step and one.batch.sentence_ids_B.equal(names_B))
        watched.trainable.model.load_state_dict(weights)
        again = type(watched.trainable).draw_now(watched.trainable, batch, step)
        assert torch.equal(again.ids_RT, drawn.ids_RT)


@every_method
def test_with_a_rate_of_zero_nothing_changes(name: str, folder: Path, tmp_path: Path) -> None:
    frozen = {"optimizer": {"learning_rate": 1e-30, "warmup_steps": 2}}
    for ahead in (True, False):
        toy.fitted(made(name, folder, **frozen, samples_ahead=ahead), tmp_path / str(ahead))
    ours, theirs = left(tmp_path / "True"), left(tmp_path / "False")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_it_makes_a_difference(folder: Path, tmp_path: Path) -> None:
    for ahead in (True, False):
        toy.fitted(made("static", folder, samples_ahead=ahead), tmp_path / str(ahead))
    ours, theirs = left(tmp_path / "True"), left(tmp_path / "False")
    assert not all(torch.equal(ours[key], theirs[key]) for key in theirs)


@every_method
def test_a_run_that_goes_on_from_a_checkpoint_is_the_uninterrupted_one(name: str, folder: Path, tmp_path: Path) -> None:
    toy.fitted(made(name, folder), tmp_path / "whole")
    for at in (2, 4, None):
        toy.fitted(made(name, folder), tmp_path / "cut", at)
    ours, theirs = left(tmp_path / "cut"), left(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_steps_of_several_micro_batches(folder: Path, tmp_path: Path) -> None:
    """The next step may have fewer or more than this one; each micro-batch has its own samples."""
    small = {"tokens_per_micro_batch": 64, "unlabelled_tokens_per_step": 100, "checkpoint_every": 100}
    watched = Watched(made("static", folder, **small))
    toy.fitted(watched.trainable, tmp_path / "run")
    sizes = [sum(step == at for step, _ in watched.used) for at in range(6)]
    assert max(sizes) > 1
    assert len(watched.drawn) == len(watched.used)
    batches = {(step, tuple(batch.sentence_ids_B.tolist())) for step, batch, _ in watched.drawn}
    assert batches == {(step, tuple(drawn.batch.sentence_ids_B.tolist())) for step, drawn in watched.used}


def test_a_worker_without_unlabelled_sources_draws_ahead_too(folder: Path) -> None:
    """Else the weights that samples come from would depend on which worker a micro-batch falls to."""
    watched = Watched(made("static", folder, checkpoint_every=100))
    trainable = watched.trainable
    batches = trainable.plan.iterate()
    first, second = next(batches), next(batches)
    before = {name: value.clone() for name, value in trainable.model.state_dict().items()}
    toy.train(trainable, [replace(first, unlabelled=())])
    assert [step for step, _, _ in watched.drawn] == [1] * len(second.unlabelled) and second.unlabelled
    for _, _, weights in watched.drawn:
        assert all(torch.equal(value, before[name]) for name, value in weights.items())
    assert not all(torch.equal(value, before[name]) for name, value in trainable.model.state_dict().items())
    toy.train(trainable, [second])
    assert [step for step, _ in watched.used] == [1] * len(second.unlabelled)


def test_ppo_takes_samples_of_its_own(folder: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^Impossible values in a test: samples_ahead is for qe_ebm and reinforce"
    ):
        toy.config("ppo", folder, samples_ahead=True)
