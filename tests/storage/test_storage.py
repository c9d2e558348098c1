"""Every kind of address leads to a local path, or to one clear sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from energymt import storage
from energymt.errors import ConfigurationError, StorageError
from energymt.storage import fetch, write_manifest


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A real S3 server on loopback with the bucket `models`, and the environment that leads to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="models", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        yield client
    server.stop()


def upload(client: Any, folder: Path, prefix: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), "models", f"{prefix}/{path.relative_to(folder).as_posix()}")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 5000)
    (folder / "sub" / "config.json").write_text("{}")
    write_manifest(folder, {"step": 1})
    return folder


def test_a_local_path_is_itself(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch(str(model)) == model
    assert fetch(model / "weights") == model / "weights"
    monkeypatch.chdir(model.parent)
    assert fetch("model").samefile(model)


def test_a_local_folder_is_verified(model: Path) -> None:
    (model / "weights").write_bytes(b"w" * 4000)
    with pytest.raises(StorageError, match="was cut"):
        fetch(str(model))


def test_a_wrong_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=str(tmp_path / "none")):
        fetch(str(tmp_path / "none"))
    with pytest.raises(StorageError, match=r"train\.tsv does not exist"):
        fetch("data/train.tsv")


@pytest.mark.parametrize("address", ["", "  ", "gs://bucket/x", "s3://", "s3://bucket"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError):
        fetch(address)


def test_a_hugging_face_id_that_cannot_be_fetched_says_both_things() -> None:
    with pytest.raises(StorageError, match=r"neither a path .*/nobody/nothing\) nor a Hugging Face"):
        fetch("nobody/nothing")


def test_a_hugging_face_id_names_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, revision: asked.append((name, revision)) or str(tmp_path)
    )
    assert fetch("owner/name@v2") == tmp_path and fetch("gpt2") == tmp_path
    assert asked == [("owner/name", "v2"), ("gpt2", None)]


def test_s3_gives_a_folder_once(s3: Any, model: Path, tmp_path: Path) -> None:
    upload(s3, model, "a/teacher")
    s3.put_object(Bucket="models", Key="a/teacher-two/weights", Body=b"another model")
    got = fetch("s3://models/a/teacher", cache=tmp_path / "cache")
    assert got.name == "teacher" and (got / "weights").read_bytes() == b"w" * 5000
    assert sorted(path.name for path in got.iterdir()) == ["energymt.json", "sub", "weights"]
    inode = (got / "weights").stat().st_ino
    again = fetch("s3://models/a/teacher/", cache=tmp_path / "cache")
    assert again == got and (again / "weights").stat().st_ino == inode


def test_s3_gives_a_single_file(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="models", Key="data/train.tsv", Body=b"source\ttarget\n")
    got = fetch("s3://models/data/train.tsv", cache=tmp_path)
    assert got.name == "train.tsv" and got.read_text() == "source\ttarget\n"


def test_s3_content_that_changed_is_fetched_again(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="models", Key="data/dev.tsv", Body=b"one")
    assert fetch("s3://models/data/dev.tsv", cache=tmp_path).read_text() == "one"
    s3.put_object(Bucket="models", Key="data/dev.tsv", Body=b"two")
    assert fetch("s3://models/data/dev.tsv", cache=tmp_path).read_text() == "two"


def test_a_cut_copy_in_the_cache_is_fetched_again(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="models", Key="data/cut.tsv", Body=b"all of it")
    got = fetch("s3://models/data/cut.tsv", cache=tmp_path)
    got.write_bytes(b"all")
    assert fetch("s3://models/data/cut.tsv", cache=tmp_path).read_text() == "all of it"


def test_a_file_damaged_before_its_upload_is_named(s3: Any, model: Path, tmp_path: Path) -> None:
    (model / "weights").write_bytes(b"x" * 5000)
    upload(s3, model, "b/damaged")
    with pytest.raises(StorageError, match=r"weights was changed"):
        fetch("s3://models/b/damaged", cache=tmp_path / "cache")


def test_what_s3_does_not_hold_is_one_sentence(s3: Any, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"s3://models/none does not exist in http://127"):
        fetch("s3://models/none", cache=tmp_path)
    with pytest.raises(StorageError, match=r"s3://nobucket/x could not be read"):
        fetch("s3://nobucket/x", cache=tmp_path)


def test_a_key_cannot_leave_its_folder(s3: Any, tmp_path: Path) -> None:
    s3.put_object(Bucket="models", Key="evil/../../out", Body=b"x")
    with pytest.raises(StorageError, match="refuse"):
        fetch("s3://models/evil", cache=tmp_path)


def test_no_endpoint_is_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with pytest.raises(StorageError, match=r"could not be read from http://127\.0\.0\.1:9"):
        fetch("s3://models/a", cache=tmp_path)


def test_importing_storage_is_light() -> None:
    assert not {"mlflow", "boto3", "huggingface_hub", "torch"} & {
        name for name, value in vars(storage).items() if type(value).__name__ == "module"
    }
