"""What a run leaves in MLflow without any server: settings, values, provenance, and a registered model that works."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from tests.commands.conftest import TEACHER
from tests.terminal import SECONDS, Done, environment, quick


@pytest.fixture(scope="module")
def store(shared: Path) -> MlflowClient:
    uri = f"sqlite:///{shared / 'runs' / 'mlflow.db'}"
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@pytest.fixture(scope="module")
def run(store: MlflowClient) -> mlflow.entities.Run:
    (experiment,) = [found for found in store.search_experiments() if found.name == "energymt"]
    runs = store.search_runs([experiment.experiment_id])
    (found,) = [run for run in runs if run.info.run_name == "teacher"]
    return found


def test_the_run_holds_settings_values_and_provenance(run, store: MlflowClient, shared: Path) -> None:
    assert (run.info.run_name, run.info.status) == ("teacher", "FINISHED")
    assert run.data.params["trainable"] == "supervised"
    assert run.data.params["optimizer.learning_rate"] == "0.01"
    assert run.data.params["train.path"] == "train.tsv"
    logged = [json.loads(line) for line in (shared / "runs" / "teacher" / "log.jsonl").read_text("utf-8").splitlines()]
    for key in ("dev/bleu", "train/nll", "train/learning_rate"):
        wanted = [(line["step"], line[key]) for line in logged if key in line]
        history = [(value.step, value.value) for value in store.get_metric_history(run.info.run_id, key)]
        assert sorted(history) == wanted
    assert run.data.metrics["final/bleu"] == max(line["dev/bleu"] for line in logged if "dev/bleu" in line)
    assert {"seed", "package.torch", "package.mlflow", "python", "command"} <= run.data.tags.keys()
    assert "train supervised -c teacher.yaml" in run.data.tags["command"]
    names = {artifact.path for artifact in store.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "provenance.json"} <= names


def test_the_best_model_is_the_registered_champion(run, store: MlflowClient, trained: tuple[Path, dict[str, Done]]):
    version = store.get_model_version_by_alias("energymt-supervised", "champion")
    assert (str(version.version), version.run_id) == ("1", run.info.run_id)
    assert float(version.tags["metric_value"]) == run.data.metrics["final/bleu"]
    assert "Registered as models:/energymt-supervised/1 (champion)" in trained[1]["teacher"].err


def test_the_champion_translates_in_any_process_that_has_mlflow(shared: Path, tmp_path: Path) -> None:
    lines = (shared / "test.source").read_text("utf-8").splitlines()[:3]
    code = """if True:
        import json, sys, mlflow
        model = mlflow.pyfunc.load_model("models:/energymt-supervised@champion")
        print(json.dumps([model.predict(sys.argv[1:]), model.predict(sys.argv[1:], params={"beam": 1})]))"""
    variables = environment(tmp_path, {"MLFLOW_TRACKING_URI": f"sqlite:///{shared / 'runs' / 'mlflow.db'}"})
    done = subprocess.run(
        [sys.executable, "-c", code, *lines],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    beam, greedy = json.loads(done.stdout.splitlines()[-1])
    stdin = "".join(f"{line}\n" for line in lines)
    assert beam == quick("translate", TEACHER, folder=shared, stdin=stdin).out.splitlines()
    assert greedy == quick("translate", TEACHER, "--beam", "1", folder=shared, stdin=stdin).out.splitlines()


def test_registered_models_and_runs_are_addresses(run, shared: Path, tmp_path: Path) -> None:
    stdin = (shared / "test.source").read_text("utf-8")
    wanted = quick("translate", TEACHER, folder=shared, stdin=stdin)
    addresses = (
        "models:/energymt-supervised@champion",
        "models:/energymt-supervised/1",
        f"runs:/{run.info.run_id}/model",
    )
    before = sorted(shared.iterdir())
    for address in addresses:
        assert quick("translate", address, folder=shared, stdin=stdin, ENERGYMT_CACHE=str(tmp_path)) == wanted
    assert sorted(shared.iterdir()) == before  # no store of MLflow's own beside ours


def test_an_address_that_the_registry_does_not_know(shared: Path, tmp_path: Path) -> None:
    for address in ("models:/nobody@champion", "models:/energymt-supervised/9", f"runs:/{'0' * 32}/model"):
        done = quick("translate", address, folder=shared, stdin="zive\n", ENERGYMT_CACHE=str(tmp_path))
        done.refuses(5, address, "runs/mlflow.db", "check the address")


def test_a_better_model_becomes_champion_and_a_run_goes_on_in_its_own_run(bare: Path) -> None:
    command = ("train", "supervised", "-c", "teacher.yaml", "--name", "a", "--register", "toy")
    for steps, registered in ((2, "toy/1 (champion)"), (3, "toy/2"), (3, "toy/2"), (3, "toy/2")):
        done = quick(*command, "--set", f"steps={steps}", folder=bare)
        assert done.code == 0 and f"Registered as models:/{registered}" in done.err, done.err
    uri = f"sqlite:///{bare / 'runs' / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    found = client.search_runs([client.get_experiment_by_name("energymt").experiment_id])
    assert [run.info.run_name for run in found] == ["a"]
    assert found[0].data.tags["resumed.steps"] == "3"
    assert [str(version.version) for version in client.search_model_versions("name = 'toy'")] == ["2", "1"]


def test_no_tracking_leaves_no_store(train: Callable[..., Done], bare: Path) -> None:
    assert train("steps=1").code == 0
    assert sorted(path.name for path in (bare / "runs").iterdir()) == ["run"]
    assert not (bare / "runs" / "run" / "tracking").exists()
    assert not [path for path in bare.rglob("*") if "mlflow" in path.name or "mlruns" in path.name]


def test_a_store_that_cannot_be_opened_costs_no_training(train: Callable[..., Done], bare: Path) -> None:
    command = ("train", "supervised", "-c", "teacher.yaml", "--set", "steps=1", "--name", "run")
    done = quick(*command, "--tracking", "sqlite:////proc/nowhere/mlflow.db", folder=bare)
    assert (bare / "runs" / "run" / "model" / "energymt.json").is_file()
    done.ended_by(5, "/proc/nowhere", "complete", "start the same command again")
