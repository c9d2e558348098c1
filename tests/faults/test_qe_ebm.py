"""Replicas, drivers and workers die while QE-EBM trains by a pool: the run comes to the weights that it would have."""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from energymt import runs
from energymt.configuration import TrainingConfig, validate
from energymt.pool import ground
from energymt.tracking import NullTracker
from tests import clusters, toy
from tests.faults import dying_qe_ebm
from tests.faults.conftest import same
from tests.terminal import begin

pytestmark = [pytest.mark.faults, pytest.mark.ray]
DYNAMIC = {"learns": "head", "sentences": 4, "rate": 0.01}
KINDS: dict[str, dict[str, Any]] = {
    "static": {"quality": "pool:default", "samples_ahead": True},
    "dynamic": {"quality": "pool:school", "dynamic": DYNAMIC, "run_name": "pupil"},
}
both = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.scored_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def pools(cluster: Path, world: Path) -> Iterator[None]:
    """`default` and `school`."""
    with clusters.two_pools(world):
        yield


def config(kind: str, world: Path, **changes: Any) -> TrainingConfig:
    """Six steps, a checkpoint at each second."""
    changes = {"deterministic": True, **KINDS[kind], **changes}
    found: TrainingConfig = toy.config("qe_ebm", world, **changes)
    return found


def train(settings: TrainingConfig, folder: Path, echo: Any = lambda text: None) -> dict[str, torch.Tensor]:
    """In this process; what the run left."""
    folder.mkdir()
    runs.train("qe_ebm", settings, folder, NullTracker(), echo)
    return left(folder)


def left(folder: Path) -> dict[str, torch.Tensor]:
    """The last weights and moments, what the estimator learnt, and the model."""
    newest = max((folder / runs.CHECKPOINTS).glob("last-*"))
    assert newest.name == "last-00000006"
    files = [*sorted(newest.rglob("*.safetensors")), folder / runs.MODEL / "model.safetensors"]
    return {f"{file.name}.{k}": v for file in files for k, v in safetensors.torch.load_file(file).items()}


@pytest.fixture(scope="module")
def undisturbed(pools: None, world: Path, cluster: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Both kinds, by one process that nothing happens to."""
    return {kind: train(config(kind, world), cluster / f"undisturbed-{kind}") for kind in KINDS}


def replicas(name: str) -> list[dict[str, Any]]:
    from energymt.pool import lifecycle

    return list(lifecycle.status(name)["replicas"])


@both
def test_a_replica_is_killed(kind: str, undisturbed: Any, world: Path, cluster: Path) -> None:
    """The answer comes from the other one, or from the next, which has learnt what this one had."""
    name, killed = KINDS[kind]["quality"].removeprefix("pool:"), []

    def echo(text: str) -> None:
        if "3/6  train" in text and not killed:
            killed.append(replicas(name)[0]["process"])
            os.kill(killed[0], signal.SIGKILL)

    found = train(config(kind, world), cluster / f"replica-{kind}", echo)
    assert len(killed) == 1
    until = time.monotonic() + 60.0
    while killed[0] in [row.get("process") for row in replicas(name)]:
        assert time.monotonic() < until
        time.sleep(0.2)
    assert same(found, undisturbed[kind])


@both
@pytest.mark.parametrize("step", [1, 3])  # before the first checkpoint, and between two
def test_the_driver_is_killed(step: int, kind: str, undisturbed: Any, world: Path, tmp_path: Path) -> None:
    """The same command goes on, and puts the estimator back to where it was at the checkpoint."""
    import ray

    # As `energymt pool up` leaves it for whoever comes from this machine.
    head = ground.Head(ray.get_runtime_context().gcs_address, os.getpid(), "")
    (tmp_path / "cache" / "pool").mkdir(parents=True)
    (tmp_path / "cache" / "pool" / "ray.json").write_text(json.dumps(asdict(head)), "utf-8")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config(kind, world).model_dump(mode="json")), "utf-8")
    command = ("train", "qe_ebm", "-c", "run.yaml", "--name", "run", "--tracking", "none")

    def started() -> Any:
        return begin(*command, folder=tmp_path, ENERGYMT_CACHE=str(tmp_path / "cache"))

    first = started()
    first.wait_until(f"{step}/6  train")
    first.signal(signal.SIGKILL)
    assert first.end().code == -signal.SIGKILL
    assert not (tmp_path / "runs" / "run" / runs.MODEL).exists()
    done = started().end()
    assert done.code == 0, done.err
    assert ("     1/6  train" in done.err) == (step < 2)
    assert same(left(tmp_path / "runs" / "run"), undisturbed[kind])


@both
def test_a_worker_is_killed(kind: str, undisturbed: Any, world: Path, cluster: Path) -> None:
    from energymt.cluster.launch import Workers, train_on_ray

    def run(name: str, kill_at: int) -> dict[str, torch.Tensor]:
        note = cluster / f"{name}-{kind}-note"
        values = {**config(kind, world).model_dump(mode="json"), "kill_at": kill_at, "kill_note": str(note)}
        settings = validate(dying_qe_ebm.Config, values, "a test")
        folder = cluster / f"{name}-{kind}"
        folder.mkdir()
        outcome = train_on_ray("tests.faults.dying_qe_ebm", settings, folder, workers=Workers(2))
        assert outcome.step == 6 and note.exists() == (kill_at < 6)
        return left(folder)

    assert same(run("worker-killed", 3), run("worker-whole", 6))
