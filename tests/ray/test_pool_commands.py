"""`energymt pool up`, `status`, `down` and `keys`, each a process of its own, with the authentication of a user."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from energymt.errors import ResourceError
from energymt.pool import ground
from energymt.pool.settings import PoolConfig
from tests import estimators
from tests.terminal import SECONDS, Done, environment, quick, run

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--cpus", "2", "--set", "cpus=0.5", "--set", "ping_seconds=0.5")


def variables(folder: Path) -> dict[str, str | None]:
    """What a user of that folder has set: nothing of Ray but how nice its workers are, on a busy machine."""
    return {"ENERGYMT_CACHE": str(folder / "cache"), "RAY_AUTH_MODE": None, "RAY_worker_niceness": "0"}


def pool(*arguments: str, folder: Path) -> Done:
    return run("pool", *arguments, folder=folder, **variables(folder))


def forked(*arguments: str, folder: Path) -> Done:
    """The same in a fork, which saves the imports."""
    return quick("pool", *arguments, folder=folder, **variables(folder))


def state(folder: Path) -> Path:
    return folder / "cache" / "pool" / "ray.json"


def family(folder: Path) -> list[psutil.Process]:
    """The Ray of that folder and all that it started."""
    head = psutil.Process(json.loads(state(folder).read_text())["process"])
    return [head, *head.children(recursive=True)]


def left(processes: list[psutil.Process]) -> list[str]:
    """Those that run, after the moment that a killed one takes to go."""
    _, alive = psutil.wait_procs(processes, timeout=3.0)
    return [process.name() for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def with_estimator(folder: Path) -> Path:
    shutil.copytree(estimators.converted("kiwi"), folder / "kiwi")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose pool is up."""
    folder = with_estimator(tmp_path_factory.mktemp("pool"))
    try:
        done = pool("up", "kiwi", *SMALL, folder=folder)
        assert done.code == 0, done.err
        assert done.out == f"The energy pool default is up: 1 replica(s) of {folder / 'kiwi'}.\n"
        assert "`energymt pool status`" in done.err and "`energymt pool down`" in done.err
        yield folder
    finally:
        if state(folder).exists():
            pool("down", folder=folder)


def found(folder: Path) -> dict[str, Any]:
    """What `pool status --json` writes."""
    done = forked("status", "--json", "status.json", folder=folder)
    assert (done.code, done.out, done.err) == (0, "", "")
    return dict(json.loads((folder / "status.json").read_text()))


# ------------------------------------------------------------------------------------------------------- without a pool


def test_the_keys_are_those_of_a_pool(tmp_path: Path) -> None:
    done = forked("keys", folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    for name in PoolConfig.model_fields:
        assert re.search(rf"^{name}\b", done.out, re.MULTILINE), name


@pytest.mark.parametrize("command", ["status", "down"])
def test_a_pool_that_is_not_up(command: str, tmp_path: Path) -> None:
    forked(command, folder=tmp_path).refuses(6, "No energy pool is up", "`energymt pool up ESTIMATOR`", "RAY_ADDRESS")


def test_a_state_file_of_a_dead_ray_is_not_believed(tmp_path: Path) -> None:
    state(tmp_path).parent.mkdir(parents=True)
    state(tmp_path).write_text(json.dumps({"address": "127.0.0.1:1", "process": os.getpid(), "log": ""}))
    forked("status", folder=tmp_path).refuses(6, "No energy pool is up")
    assert not state(tmp_path).exists()


def test_what_is_no_estimator_starts_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    estimators.official(tmp_path / "comet", "kiwi")
    for address, code, parts in (
        ("empty", 5, ["empty holds no estimator", "estimator.json is missing", "`energymt models import`"]),
        ("comet", 5, ["comet holds no estimator", "`energymt models import`"]),
        (str(tmp_path / "nothing"), 5, ["nothing does not exist", "check the path"]),
        ("tests.no_such:function", 2, ["no function tests.no_such:function", "check module and name"]),
    ):
        forked("up", address, folder=tmp_path).refuses(code, *parts)
    assert not (tmp_path / "cache").exists()


def test_a_ray_that_was_started_in_vain_ends(tmp_path: Path) -> None:
    done = forked("up", "kiwi", "--cpus", "2", "--replicas", "8", "--set", "cpus=4", folder=with_estimator(tmp_path))
    done.refuses(3, "needs 32 CPUs (8 replicas of 4 CPUs and 0 GPUs)", "the cluster has 2", "fewer or smaller replicas")
    assert not state(tmp_path).exists()


def test_the_ray_of_another_address_is_not_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(ground, "find_head", lambda: pytest.fail("looked for the Ray of this machine"))
    assert not ground.end()


@pytest.mark.parametrize("running, patience, joined", [(False, 60.0, True), (False, 0.0, False), (True, 60.0, False)])
def test_a_new_ray_is_given_time_and_ends_if_it_cannot_be_joined(
    running: bool, patience: float, joined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, tried, ended = ground.Head("127.0.0.1:1", 1, ""), [], []

    def start(address: str, **settings: Any) -> None:
        tried.append(address)
        if len(tried) < 3:
            raise ResourceError("no node yet")

    monkeypatch.setattr(ground, "START_SECONDS", patience)
    monkeypatch.setattr(ground, "find_head", lambda: head if running else None)
    monkeypatch.setattr(ground, "_start", lambda cpus: head)
    monkeypatch.setattr(ground, "end", lambda: ended.append(head))
    monkeypatch.setattr(ground.runtime, "start", start)
    if joined:
        assert ground.start_or_join()
        assert (tried, ended) == ([head.address] * 3, [])
    else:
        with pytest.raises(ResourceError, match="no node yet"):
            ground.start_or_join()
        assert (tried, ended) == ([head.address], [] if running else [head])


# ---------------------------------------------------------------------------------------------------------- with a pool


def test_another_process_sees_it(place: Path) -> None:
    done = pool("status", folder=place)
    assert (done.code, done.err) == (0, "")
    assert (
        f"energy pool default: {place / 'kiwi'}, version 0" in " ".join(done.out.split())
        and "callers: none" in done.out
    )
    assert re.search(r"^ *0 +healthy +0 +0 ", done.out, re.MULTILINE), done.out
    status = found(place)
    [replica] = status["replicas"]
    assert (status["name"], status["leases"], status["trouble"], status["gave_up"]) == ("default", [], "", False)
    assert replica["state"] == "healthy" and replica["restarts"] == 0
    assert replica["process"] in [process.pid for process in family(place)]


def test_a_caller_that_joins_by_the_state_file_gets_the_local_scores(place: Path) -> None:
    command = [sys.executable, "-m", "tests.ray.pool_client", str(place / "kiwi")]
    settings = environment(place, variables(place))
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    local = estimators.estimator("kiwi")
    target = estimators.target_of(local, estimators.TRANSLATIONS)
    target.emb_BTD.requires_grad_()
    score_B = local(estimators.source_of(local, estimators.SOURCES), target)
    score_B.sum().backward()
    assert target.emb_BTD.grad is not None
    answer = json.loads(done.stdout)
    assert answer["scores"] == pytest.approx(score_B.tolist(), abs=1e-5)
    assert answer["slopes"] == pytest.approx(target.emb_BTD.grad.sum((1, 2)).tolist(), abs=1e-4)
    status = found(place)
    assert status["leases"] == []
    assert (status["replicas"][0]["served"], status["replicas"][0]["sentences"]) == (1, len(estimators.SOURCES))


def test_what_is_up_stays_whatever_is_asked_beside_it(place: Path) -> None:
    before = found(place)["replicas"][0]["process"]
    done = forked("up", "kiwi", *SMALL, folder=place)
    assert (done.code, done.out) == (0, f"The energy pool default is up already: 1 replica(s) of {place / 'kiwi'}.\n")
    forked("up", "kiwi", *SMALL, "--set", "precision=bf16", folder=place).refuses(
        2, "pool default is up with other settings (precision is fp32 and not bf16)", "--name", "`energymt pool down`"
    )
    forked("up", "kiwi", "--name", "second", "--replicas", "3", folder=place).refuses(3, "needs 3 CPUs", "has 2")
    forked("status", "--name", "second", folder=place).refuses(
        6, "no energy pool second", "`energymt pool up ESTIMATOR --name second`"
    )
    forked("down", "--name", "defautl", folder=place).refuses(6, "no energy pool defautl", "(up: default)")
    assert found(place)["replicas"][0]["process"] == before


def test_the_code_of_the_documents_runs_as_it_stands(place: Path) -> None:
    """In a process that nobody has connected to anything."""
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "pool.md").read_text("utf-8"), re.DOTALL)[0]
    shown = code + "print(float(emb_BTD.grad.abs().sum()))\n"
    command = [sys.executable, "-c", shown]
    settings = environment(place, variables(place))
    done = subprocess.run(
        command, cwd=place, env=settings, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    score, slope = done.stdout.splitlines()
    assert float(score.strip("[]")) and float(slope) > 0


def test_a_connection_joins_by_itself(place: Path) -> None:
    code = "from energymt.pool.connection import Connection\nwith Connection('nobody', deadline=5): pass\n"
    settings = environment(place, variables(place))
    done = subprocess.run(
        [sys.executable, "-c", code], env=settings, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert "EnergyUnavailable: There is no energy pool nobody in this Ray (up: default)" in done.stderr


def test_down_leaves_nothing(place: Path) -> None:
    processes = family(place)
    assert {"gcs_server", "raylet"} <= {process.name() for process in processes}
    done = pool("down", folder=place)
    assert (done.code, done.err) == (0, "")
    assert done.out == "The energy pool default is down (2 actors ended; Ray too).\n"
    assert not state(place).exists()
    assert left(processes) == []
    forked("status", folder=place).refuses(6, "No energy pool is up")
