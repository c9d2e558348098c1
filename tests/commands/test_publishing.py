"""A model goes to a Hugging Face hub and comes back, byte by byte: a small hub that listens on loopback."""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from energymt import __version__
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.errors import StorageError
from energymt.folders import verify_manifest
from energymt.models import load_translator
from tests import tiny
from tests.commands.conftest import files
from tests.terminal import environment, quick, run

TOKEN = "hf_of-this-test"
COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """What one user's repositories need: create, upload (large files apart), commit, list, download."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Requests)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}  # by sha256


class Requests(BaseHTTPRequestHandler):
    """One request."""

    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        """Stay quiet."""

    def answer(self, code: int, content: bytes | dict | list, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_PUT(self) -> None:
        content = self.body()
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self.answer(200, b"")

    def do_POST(self) -> None:
        content = self.body()
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path.endswith(".git/info/lfs/objects/batch"):
            return self.answer(
                200, {"transfer": "basic", "objects": [self.room(o) for o in json.loads(content)["objects"]]}
            )
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(content)["files"]]
            return self.answer(200, {"files": [self.mode(name) for name in names]})
        if "/commit/" in self.path:
            repository = "/".join(self.path.split("/")[3:5])
            for line in map(json.loads, content.splitlines()):
                self.take(line["key"], line["value"], self.server.repositories[repository])
            address = f"{self.server.url}/{repository}/commit/{COMMIT}"
            return self.answer(200, {"commitUrl": address, "commitOid": COMMIT, "pullRequestUrl": None})
        assert self.path == "/api/repos/create", self.path
        asked = json.loads(content)
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        self.server.repositories[name] = {}
        self.server.private[name] = "private" in (asked.get("visibility"), asked.get("private") and "private")
        return self.answer(200, {"url": f"{self.server.url}/{name}"})

    def room(self, item: dict) -> dict:
        return {**item, "actions": {"upload": {"href": f"{self.server.url}/large/{item['oid']}"}}}

    def mode(self, name: str) -> dict:
        large = name.endswith((".safetensors", ".model"))
        return {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def take(self, key: str, value: dict, repository: dict[str, bytes]) -> None:
        if key == "file":
            repository[value["path"]] = base64.b64decode(value["content"])
        if key == "lfsFile":
            repository[value["path"]] = self.server.large[value["oid"]]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            if name not in self.server.repositories:
                return self.answer(404, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
            if parts[4:5] == ["tree"]:
                return self.answer(200, [entry(*file) for file in self.server.repositories[name].items()])
            listing = [{"rfilename": file} for file in self.server.repositories[name]]
            return self.answer(200, {"id": name, "sha": COMMIT, "siblings": listing})
        owner, name, resolve, _, *path = parts
        assert resolve == "resolve", self.path
        file = "/".join(path)
        content = self.server.repositories[f"{owner}/{name}"][file]
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.answer(200, content, ETag=tag, X_Repo_Commit=COMMIT)


def entry(path: str, content: bytes) -> dict:
    """A file in the listing that newer clients ask for."""
    return {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def variables(hub: Hub, tmp_path: Path) -> dict[str, str | None]:
    """The hub client reads them once, when it is imported: so every test starts a new process."""
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
    home = {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN, "no_proxy": "127.0.0.1"}
    return {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": None, **quiet, **home}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as a run leaves it."""
    folder = tmp_path_factory.mktemp("models") / "model"
    words = SentencePieceVocabulary.train(["ba be bi bo bu da de di do du"] * 5, 40, model_type="word")
    tiny.masked(words).save_pretrained(folder, {"trainable": "masked", "steps": 7})
    return folder


LIBRARY = """
import sys
import torch
from energymt.errors import EnergymtError
from energymt.models import AutoregressiveModel, TranslationModel
from energymt.models.masked import MaskedTranslator

wanted = TranslationModel.from_pretrained(sys.argv[1])
model = MaskedTranslator.from_pretrained("me/translator@main")
assert type(wanted) is MaskedTranslator and not model.training
assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in wanted.state_dict().items())
model.save_pretrained("again")
print(model.push_to_hub("me/other", private=True))
for kind, address in ((AutoregressiveModel, "me/translator"), (MaskedTranslator, "me/damaged")):
    try:
        kind.from_pretrained(address)
    except EnergymtError as error:
        print(error)
"""


def test_a_model_goes_to_the_hub_and_comes_back(hub: Hub, model: Path, tmp_path: Path) -> None:
    """By the command, which uploads a folder as it is; and by the methods that users of the hub know."""
    done = run("models", "push", str(model), "me/translator", folder=tmp_path, **variables(hub, tmp_path))
    assert done.code == 0, done.err
    assert done.out.startswith(f"{hub.url}/me/translator/")
    ours = files(model)
    assert hub.repositories["me/translator"] == ours and not hub.private["me/translator"]
    assert set(hub.large.values()) == {ours["model.safetensors"], ours["spiece.model"]}

    hub.repositories["me/damaged"] = {**ours, "model.safetensors": ours["model.safetensors"][:-1] + b"?"}
    script, changes = [sys.executable, "-c", LIBRARY, str(model)], environment(tmp_path, variables(hub, tmp_path))
    library = subprocess.run(script, env=changes, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert library.returncode == 0, library.stderr
    address, wrong, damaged = library.stdout.splitlines()
    assert address.startswith(f"{hub.url}/me/other/") and hub.private["me/other"]
    assert wrong == "me/translator is a MaskedTranslator and no AutoregressiveModel; load it as such."
    assert "model.safetensors was changed" in damaged
    again = files(tmp_path / "again")
    assert hub.repositories["me/other"] == again, "one format, whichever way it is written"
    assert {**ours, "energymt.json": b""} == {**again, "energymt.json": b""}
    assert verify_manifest(tmp_path / "again") == {"energymt": __version__}


@pytest.mark.parametrize(
    "changes, part", [({"HF_TOKEN": "hf_wrong"}, "401"), ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "check")]
)
def test_a_hub_that_refuses_is_one_sentence(changes, part: str, hub: Hub, model: Path, tmp_path: Path) -> None:
    command = ("models", "push", str(model), "me/translator")
    done = run(*command, folder=tmp_path, **{**variables(hub, tmp_path), **changes})
    done.refuses(5, str(model), "could not be uploaded as me/translator", part, "hf auth login")
    assert hub.repositories == {}


def test_a_damaged_folder_is_not_pushed(hub: Hub, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "damaged")
    (tmp_path / "damaged" / "spiece.model").unlink()
    done = quick("models", "push", "damaged", "me/translator", folder=tmp_path)
    done.refuses(5, "damaged/spiece.model is missing")


def test_a_folder_of_other_files_is_not_replaced(model: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    translator = load_translator(model)
    with pytest.raises(StorageError, match="holds other files than a model"):
        translator.save_pretrained(tmp_path)
    assert files(tmp_path) == {"thesis.tex": b"years of work"}
    translator.save_pretrained(tmp_path / "new")
    translator.save_pretrained(tmp_path / "new", {"note": "again"})
    assert verify_manifest(tmp_path / "new")["note"] == "again"
