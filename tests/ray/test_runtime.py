"""How Ray is started: on loopback alone, with a token, and with the environment that workers need."""

import os
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from energymt.cluster import runtime
from energymt.errors import ResourceError

ROOT = Path(__file__).resolve().parents[2]
CHILD = """if True:
    import ray                       # before anything is set, as a user's search space does
    from energymt.cluster import runtime
    runtime.start("local", num_cpus=1, object_store_memory=150_000_000)

    @ray.remote(num_cpus=0)
    def listening():
        import os, psutil
        import energymt, trainables
        ours = [psutil.Process(os.getppid()), *psutil.Process(os.getppid()).parent().children(recursive=True)]
        found = {c.laddr.ip for p in ours for c in p.net_connections() if c.status == "LISTEN"}
        return sorted(found), os.environ["RAY_AUTH_MODE"], os.getcwd()

    print(ray.get(listening.remote()))
    print(sorted({c.laddr.ip for c in __import__("psutil").Process().net_connections() if c.status == "LISTEN"}))
    print(ray.get_runtime_context().gcs_address)
"""


def test_arguments_of_a_local_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("ENERGYMT_RUNS", "here")
    monkeypatch.chdir(tmp_path)
    arguments = runtime.init_arguments()
    assert arguments["address"] == "local" and arguments["include_dashboard"] is False
    assert "working_dir" not in arguments["runtime_env"]
    variables = arguments["runtime_env"]["env_vars"]
    assert variables["ENERGYMT_RUNS"] == str(tmp_path / "here"), "workers may stand in another folder"
    assert variables["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/here/mlflow.db"
    assert variables["PYTHONPATH"].split(os.pathsep)[:2] == [str(ROOT / "platform"), str(ROOT)]


def test_a_cluster_gets_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    arguments = runtime.init_arguments()
    environment = arguments["runtime_env"]
    assert arguments["address"] == "192.0.2.1:6379" and "include_dashboard" not in arguments
    assert environment["working_dir"] == str(ROOT) and environment["env_vars"]["PYTHONPATH"] == "platform"
    create_package(environment["working_dir"], tmp_path / "p.zip", True, excludes=environment["excludes"])
    names = zipfile.ZipFile(tmp_path / "p.zip").namelist()
    for needed in ("platform/energymt/data/corpus.py", "platform/energymt/runs.py", "trainables/engine.py"):
        assert needed in names, "workers need it"
    tops = {name.split("/")[0] for name in names}
    assert not tops & {".git", ".venv", "tests", "docs", "benchmarks", "runs"}, "only costs time"
    assert (tmp_path / "p.zip").stat().st_size < 5_000_000


def test_an_installed_package_ships_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "find_checkout", lambda: None)
    assert set(runtime.runtime_environment(local=False)) == {"env_vars"}


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "7")
    monkeypatch.delenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S")
    runtime.prepare_environment("192.0.2.1:6379")
    assert os.environ["RAY_AUTH_MODE"] == "disabled" and os.environ["RAY_TRAIN_COLLECTIVE_TIMEOUT_S"] == "7"
    assert os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "2"
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")


@pytest.mark.ray
@pytest.mark.slow
def test_a_local_ray_listens_on_loopback_and_asks_for_a_token(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_worker_niceness": "0"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-2000:]
    workers, driver, gcs = done.stdout.splitlines()[-3:]
    addresses = {address.removeprefix("::ffff:") for address in eval(workers)[0] + eval(driver)}
    assert addresses == {"127.0.0.1"} and gcs.startswith("127.0.0.1:")
    assert eval(workers)[1] == "token"
    token = tmp_path / ".ray" / "auth_token"
    assert len(token.read_text()) == 64 and stat.S_IMODE(token.stat().st_mode) == 0o600


def test_a_cluster_that_does_not_answer_is_one_sentence() -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("another test's Ray is up")
    with pytest.raises(ResourceError, match=r"Ray at 127\.0\.0\.1:9 does not answer"):
        runtime.start("127.0.0.1:9")
