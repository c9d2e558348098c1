"""Training with the energy in a pool: the weights of a run are those of an estimator in the process, also on Ray."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch

from energymt import launch, runs
from energymt.cluster import runtime
from energymt.configuration import TrainingConfig
from energymt.errors import ConfigurationError
from energymt.models.estimator_folder import load_estimator
from energymt.pool import ground
from energymt.tracking import NullTracker
from tests import clusters, toy

pytestmark = pytest.mark.ray
DYNAMIC = {"learns": "head", "form": "ranking", "sentences": 4, "rate": 0.002}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.scored_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def wide_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Ray of this module; gives the folder of its runs."""
    with clusters.wide_ray(tmp_path_factory.mktemp("runs")) as runs:
        yield runs


@pytest.fixture(scope="module")
def pools(wide_ray: Path, world: Path) -> Iterator[None]:
    """`default` and `school`."""
    with clusters.two_pools(world):
        yield


def trained(name: str, config: TrainingConfig, folder: Path, workers: int = 0) -> dict[str, torch.Tensor]:
    """The last weights of a run, here or in Ray Train workers."""
    folder.mkdir(parents=True)
    if workers:
        from energymt.cluster.launch import Workers, train_on_ray

        outcome = train_on_ray(name, config, folder, workers=Workers(workers))
        assert outcome.step == config.steps
    else:
        runs.train(name, config, folder, NullTracker(), lambda text: None)
    newest = max((folder / runs.CHECKPOINTS).glob("last-*"))
    return safetensors.torch.load_file(newest / "weights.safetensors")


def logged(folder: Path, name: str) -> list[float]:
    lines = [json.loads(line) for line in (folder / runs.LOG).read_text("utf-8").splitlines()]
    return [line[name] for line in lines if name in line]


def near(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        if name.endswith("k_proj.bias"):  # moves no attention: its gradient is rounding, and Adam makes a step of that
            continue
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=tolerance, msg=name)


# In steps as small as these, what rounding changes is not made larger by Adam.
QUIET = {"optimizer": {"learning_rate": 1e-3, "warmup_steps": 2}, "deterministic": True}


@pytest.mark.parametrize("name", toy.SCORED)
def test_a_static_pool_trains_as_the_folder_does(name: str, pools: None, world: Path, wide_ray: Path) -> None:
    local = toy.config(name, world, **QUIET)
    pooled = toy.config(name, world, **QUIET, quality="pool:default")
    wanted = trained(name, local, wide_ray / f"{name}-local")
    near(trained(name, pooled, wide_ray / f"{name}-pooled"), wanted, 1e-6)
    for value in ("dev/quality", "dev/quality_soft"):
        ours, theirs = (logged(wide_ray / f"{name}-{where}", value) for where in ("pooled", "local"))
        assert ours == pytest.approx(theirs, rel=1e-4) and len(ours) == 3  # the start, and two evaluations


def test_a_pool_learns_as_the_folder_does_and_again_for_the_next_run(pools: None, world: Path, wide_ray: Path) -> None:
    settings = {**QUIET, "dynamic": DYNAMIC, "run_name": "one-of-them"}
    wanted = trained("qe_ebm", toy.config("qe_ebm", world, **settings), wide_ray / "dynamic-local")
    pooled = toy.config("qe_ebm", world, **settings, quality="pool:school")
    for run in ("dynamic-first", "dynamic-second"):  # of one name: the second begins with the estimator as it was
        near(trained("qe_ebm", pooled, wide_ray / run), wanted, 1e-4)
        for value in ("train/lesson/margin", "dev/drift"):
            assert logged(wide_ray / run, value) == pytest.approx(logged(wide_ray / "dynamic-local", value), abs=5e-3)
    assert logged(wide_ray / "dynamic-second", "dev/drift")[-1] > 0.01
    own, theirs, start = (
        load_estimator(folder).head.state_dict()
        for folder in (wide_ray / "dynamic-local/estimator", wide_ray / "dynamic-second/estimator", world / "estimator")
    )
    for weights in (own, theirs):
        weights.pop("3.bias")  # moves all candidates of a group alike, and so no ranking: its gradient is rounding
    near(theirs, own, 1e-3)
    assert not all(torch.equal(weight, start[name]) for name, weight in theirs.items())


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_two_workers_and_a_pool_train_as_one_process(kind: str, pools: None, world: Path, wide_ray: Path) -> None:
    settings = {"static": {"quality": "pool:default"}, "dynamic": {"quality": "pool:school", "dynamic": DYNAMIC}}[kind]
    settings = {**settings, "run_name": "workers"}
    config = toy.config("qe_ebm", world, **QUIET, **settings)
    wanted = trained("qe_ebm", config, wide_ray / f"{kind}-one")
    near(trained("qe_ebm", config, wide_ray / f"{kind}-two", workers=2), wanted, 1e-4)
    assert logged(wide_ray / f"{kind}-two", "train/energy") == pytest.approx(
        logged(wide_ray / f"{kind}-one", "train/energy"), rel=1e-2
    )


def test_another_part_than_the_pool_learns_is_refused(pools: None, world: Path) -> None:
    settings = {"quality": "pool:school", "run_name": "other", "dynamic": {**DYNAMIC, "learns": "lora"}}
    with pytest.raises(ConfigurationError, match=r"^dynamic.learns is lora, and pool:school was started with learns="):
        toy.make("qe_ebm", toy.config("qe_ebm", world, **settings))


def test_a_pool_that_learns_is_not_asked_as_if_it_stood_still(pools: None, world: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"The pool school learns \(learns=head\), so that what it"):
        toy.make("reinforce", toy.config("reinforce", world, quality="pool:school"))
    with pytest.raises(ConfigurationError, match="The pool school learns"):
        toy.make("qe_ebm", toy.config("qe_ebm", world, quality=str(world / "judge"), judge="pool:school"))
    with pytest.raises(ConfigurationError, match="The pool default is static and nobody can teach it"):
        toy.make("qe_ebm", toy.config("qe_ebm", world, quality="pool:default", dynamic=DYNAMIC, run_name="pupil"))
    with pytest.raises(ConfigurationError, match="set run_name"):
        toy.make("qe_ebm", toy.config("qe_ebm", world, quality="pool:school", dynamic=DYNAMIC))


def test_what_a_pool_serves_does_not_judge_itself(pools: None, world: Path) -> None:
    own = str(world / "estimator")
    for quality, judge in (("pool:default", own), (own, "pool:default"), ("pool:school", "pool:default")):
        with pytest.raises(ConfigurationError, match="what trains cannot judge"):
            toy.make("qe_ebm", toy.config("qe_ebm", world, quality=quality, judge=judge))


# --------------------------------------------------------------------------------------- which Ray a training stands on


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Which Ray is started or joined for estimators at these addresses."""

    def asked(*addresses: str | None) -> list[str]:
        found: list[str] = []
        monkeypatch.setattr(ground, "join", lambda: found.append("of the pools"))
        monkeypatch.setattr(runtime, "start", lambda: found.append("of its own"))
        data = {"path": "x.tsv", "source": "source", "target": "target"}
        launch.start_ray(
            toy.TRAINABLES["supervised" if address is None else "qe_ebm"].Config.model_validate(
                {"train": data, "dev": data, **({} if address is None else {"quality": address})}
            )
            for address in addresses
        )
        return found

    return asked


def test_workers_join_the_ray_of_the_pool_they_ask(joined: Callable[..., list[str]]) -> None:
    assert joined("pool:default") == ["of the pools"]
    assert joined("runs/estimator/model") == ["of its own"]
    assert joined(None) == ["of its own"]
    assert joined("runs/estimator/model", "pool:default") == ["of the pools"]
