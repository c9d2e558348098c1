"""The registry: champion is the best version, and MLflow alone can translate with it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow.tracking import MlflowClient

from energymt.data.toy import ToyLanguage
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.decoding.translate import DecodingOptions, Translator
from energymt.errors import StorageError
from energymt.models import load_translator, make_translator
from energymt.models.scoring import score_lines
from energymt.storage import fetch, write_manifest
from energymt.tracking.mlflow import MlflowTracker
from energymt.tracking.outbox import run_id_of
from energymt.tracking.registry import _is_better, register_model
from tests import estimators, proxies

LINES = ["vute mare dobi motu vido", "dufa mifu giku motu giku pove"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    corpus = ToyLanguage(1).sentences(50, seed=1)
    vocabulary = SentencePieceVocabulary.train([*corpus.source, *corpus.target], 60, model_type="word")
    folder = tmp_path_factory.mktemp("registry") / "model"
    folder.mkdir()
    make_translator("tagger-toy", vocabulary).save(folder)
    write_manifest(folder, {"trainable": "masked", "steps": 7})
    return folder


@pytest.fixture
def quiet(recwarn: pytest.WarningsRecorder) -> Iterator[None]:
    """MLflow gives no advice on how code should be written, for users would read it."""
    yield
    assert not [warning for warning in recwarn if "type hint" in str(warning.message)]


def test_the_champion_is_the_best_and_translates(model: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = [4.0, 3.0, 3.5]
    versions = [register_model(model, "toy", metric="dev/energy", value=v, mode="min", uri=uri) for v in values]
    assert [version.champion for version in versions] == [True, True, False]
    assert "3.5 against 3" in versions[2].reason
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    champion = client.get_model_version_by_alias("toy", "champion")
    assert str(champion.version) == versions[1].version
    assert champion.tags["metric_value"] == "3.0" and champion.tags["trainable"] == "masked"

    assert _is_better(client, "toy", "dev/bleu", 99.0, "max")[0] is False, "another metric is no comparison"
    assert _is_better(client, "toy", "dev/energy", float("nan"), "min")[0] is False

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    got = fetch("models:/toy@champion", cache=model.parent)
    assert (got / "energymt.json").read_bytes() == (model / "energymt.json").read_bytes()
    assert fetch(versions[1].address, cache=model.parent) == got, "the same version is fetched once"
    with pytest.raises(StorageError, match=r"models:/nobody@champion could not be fetched"):
        fetch("models:/nobody@champion", cache=model.parent)
    monkeypatch.undo()

    mlflow.set_tracking_uri(uri)
    loaded = mlflow.pyfunc.load_model("models:/toy@champion")
    translator = Translator(load_translator(model), DecodingOptions())
    expected = [candidates[0][0] for candidates in translator.translate(LINES)]
    assert loaded.predict(LINES) == expected
    quick = Translator(load_translator(model), DecodingOptions(iterations=1, length_beam=1))
    expected = [candidates[0][0] for candidates in quick.translate(LINES)]
    assert loaded.predict(LINES, params={"iterations": 1, "length_beam": 1}) == expected

    mlflow.set_tracking_uri(None)


@pytest.mark.usefixtures("quiet")
def test_an_estimator_is_registered_as_one_that_scores(uri: str) -> None:
    version = register_model(estimators.converted("kiwi"), "kiwi", metric="dev/pearson", value=0.5, mode="max", uri=uri)
    assert version.champion
    mlflow.set_tracking_uri(uri)
    loaded = mlflow.pyfunc.load_model(version.address)
    table = pd.DataFrame({"source": estimators.SOURCES, "translation": estimators.TRANSLATIONS})
    wanted = score_lines(estimators.estimator("kiwi"), estimators.SOURCES, estimators.TRANSLATIONS)
    assert list(loaded.predict(table)) == pytest.approx(wanted, abs=1e-6)
    mlflow.set_tracking_uri(None)


@pytest.mark.usefixtures("quiet")
def test_a_proxy_is_registered_as_one_that_predicts(uri: str, tmp_path: Path) -> None:
    proxy = proxies.proxy(6)
    proxy.save_pretrained(tmp_path / "proxy", {"trainable": "proxy"})
    version = register_model(tmp_path / "proxy", "proxy", metric="dev/pearson", value=0.5, mode="max", uri=uri)
    assert version.champion
    mlflow.set_tracking_uri(uri)
    loaded = mlflow.pyfunc.load_model(version.address)
    states_BSD = torch.randn(2, 3, 6)
    wanted_B = proxy.predict(states_BSD, torch.ones(2, 3, dtype=torch.bool))
    assert loaded.predict(states_BSD.numpy()) == pytest.approx(wanted_B.numpy(), abs=1e-5)
    mlflow.set_tracking_uri(None)


def test_a_registered_model_needs_no_installed_energymt(model: Path, uri: str, tmp_path: Path) -> None:
    version = register_model(model, "alone", metric="dev/energy", value=1.0, mode="min", uri=uri)
    code = f"""if True:
        import sys
        sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
        sys.path = [place for place in sys.path if "platform" not in place]
        import mlflow
        mlflow.set_tracking_uri({uri!r})
        print(mlflow.pyfunc.load_model({version.address!r}).predict(["vute mare"]))
        import energymt
        print(energymt.__file__)"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "/artifacts/" in done.stdout.splitlines()[-1] or "/code/energymt" in done.stdout.splitlines()[-1]


def test_registering_leaves_the_run_and_the_global_store_alone(model: Path, uri: str, tmp_path: Path) -> None:
    tracker = MlflowTracker(uri, "demo", "a", tmp_path / "a")
    assert tracker.finish("FINISHED") == ""
    client = MlflowClient(tracking_uri=uri)
    before = client.get_run(run_id_of(tmp_path / "a")).info
    register_model(model, "kept", metric="m", value=1.0, mode="max", run_id=before.run_id, uri=uri)
    after = client.get_run(before.run_id).info
    assert (after.status, after.end_time) == (before.status, before.end_time)
    assert client.get_model_version("kept", "1").run_id == before.run_id
    assert not mlflow.is_tracking_uri_set()


def test_a_damaged_model_is_not_registered(model: Path, uri: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write_manifest(tmp_path / "model", {})
    (tmp_path / "model" / "energymt.json").write_text("{")
    with pytest.raises(StorageError, match="is damaged"):
        register_model(tmp_path / "model", "toy", metric="m", value=1.0, mode="max", uri=uri)
