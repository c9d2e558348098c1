"""`energymt models`: average and import; model folders that are missing, cut, changed, or of another vocabulary."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import MarianConfig, MarianMTModel

from energymt.folders import verify_manifest
from tests import tiny
from tests.commands.conftest import STUDENT, TEACHER, files
from tests.data.conftest import marian
from tests.terminal import quick

ENGINE = "runs/engine/model"


def weights(model: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(model / "model.safetensors")


def test_the_average_is_the_mean_of_all_weights(shared: Path, tmp_path: Path) -> None:
    out = tmp_path / "mean"
    done = quick("models", "average", STUDENT, ENGINE, str(out), folder=shared)
    assert (done.code, done.err) == (0, "") and done.out == f"{out} holds the mean of 2 models.\n"
    assert verify_manifest(out)["mean_of"] == [STUDENT, ENGINE]
    left, right, mean = weights(shared / STUDENT), weights(shared / ENGINE), weights(out)
    assert left.keys() == right.keys() == mean.keys()
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, (left[name] + right[name]) / 2)
    assert any(not torch.equal(left[name], right[name]) for name in left)
    assert quick("translate", str(out), folder=shared, stdin="zive\n").code == 0


def test_a_model_that_is_there_is_not_overwritten_by_an_average(place: Path) -> None:
    before = files(place / ENGINE)
    quick("models", "average", STUDENT, STUDENT, ENGINE, folder=place).refuses(2, ENGINE, "there already", "last")
    assert files(place / ENGINE) == before


@pytest.mark.parametrize(
    "models, code, parts",
    [
        ([STUDENT, "out"], 2, ["at least two"]),
        ([STUDENT, TEACHER, "out"], 2, [STUDENT, TEACHER, "like with like"]),
        ([STUDENT, "runs/nowhere", "out"], 5, ["runs/nowhere", "no translator"]),
        ([STUDENT, STUDENT, "train.tsv/out"], 5, ["train.tsv/out", "could not be written"]),
    ],
)
def test_what_cannot_be_averaged_is_one_sentence(models: list[str], code: int, parts: list[str], shared: Path) -> None:
    quick("models", "average", *models, folder=shared).refuses(code, *parts)
    assert not (shared / "out").exists()


def test_an_imported_checkpoint_translates_and_scores(tmp_path: Path) -> None:
    folder = tmp_path / "marian"
    folder.mkdir()
    marian(folder)
    size = len((folder / "vocab.json").read_text("utf-8").split('": '))
    ids = {"pad_token_id": size - 2, "decoder_start_token_id": size - 2, "eos_token_id": 0, "forced_eos_token_id": 0}
    torch.manual_seed(1)
    sizes = {**tiny.BART_SIZES, **ids, "bos_token_id": 0, "vocab_size": size - 1}
    MarianMTModel(MarianConfig(**sizes)).save_pretrained(folder)
    done = quick("models", "import", "marian", "teacher", folder=tmp_path)
    assert done.code == 0 and "teacher holds MarianMTModel with" in done.out
    assert verify_manifest(tmp_path / "teacher")["imported"] == "marian"
    lines = "zwei Kinder spielen .\nein Hund läuft .\n"
    assert len(quick("translate", "teacher", folder=tmp_path, stdin=lines).out.splitlines()) == 2
    for name, text in (("source", lines), ("target", "two children play .\na dog runs .\n")):
        (tmp_path / name).write_text(text, "utf-8")
    scored = quick("score", "teacher", "--source", "source", "--target", "target", folder=tmp_path)
    assert len([float(line) for line in scored.out.splitlines()]) == 2


def test_what_cannot_be_imported_is_one_sentence(shared: Path) -> None:
    quick("models", "import", "train.tsv", "out", folder=shared).refuses(5, "train.tsv is a file", "folder")
    quick("models", "import", TEACHER, "out", folder=shared).refuses(5, TEACHER, "no tokenizer")
    assert not (shared / "out").exists()


# ------------------------------------------------------------------------------------------------- folders that are not


@pytest.mark.parametrize(
    "address, code, parts",
    [
        ("runs/nowhere", 5, ["'runs/nowhere'", "/runs/nowhere", "neither a path"]),
        ("/nowhere/model", 5, ["/nowhere/model does not exist", "check the path"]),
        ("runs/student", 5, ["runs/student holds no translator", "did you mean runs/student/model?"]),
        ("runs", 5, ["runs holds no translator", "models import"]),
        ("train.tsv", 5, ["train.tsv holds no translator"]),
        ("ftp://host/model", 2, ["ftp://host/model", "unknown", "s3://"]),
        ("", 2, ["address is empty"]),
    ],
)
def test_an_address_that_leads_nowhere(address: str, code: int, parts: list[str], shared: Path) -> None:
    done = quick("translate", address, folder=shared, stdin="zive\n")
    done.refuses(code, *parts)
    assert done.out == ""


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def change(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


HARM: dict[str, Callable[[Path], None]] = {"cut": cut, "changed": change, "gone": Path.unlink}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("file", ["model.safetensors", "spiece.model", "translator.json"])
def test_a_damaged_model_is_named_by_its_manifest(file: str, harm: str, shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / STUDENT, tmp_path / "model")
    HARM[harm](tmp_path / "model" / file)
    said = {"cut": "it was cut", "changed": "sha256 differs", "gone": "is missing"}[harm]
    done = quick("translate", "model", folder=tmp_path, stdin="zive\n")
    done.refuses(5, f"model/{file}", said, "older copy")
    command = ("train", "engine", "-c", str(shared / "student.yaml"), "--set", f"teacher={shared / TEACHER}")
    quick(*command, "--set", f"model.init={tmp_path / 'model'}", folder=shared).refuses(5, f"model/{file}", said)


@pytest.mark.parametrize("model", [TEACHER, STUDENT])
@pytest.mark.parametrize("harm", ["cut", "gone"])
@pytest.mark.parametrize("file", ["model.safetensors", "spiece.model", "translator.json", "vocabulary.json"])
def test_a_damaged_model_without_a_manifest_is_one_sentence_too(
    file: str, harm: str, model: str, shared: Path, tmp_path: Path
) -> None:
    shutil.copytree(shared / model, tmp_path / "model")
    (tmp_path / "model" / "energymt.json").unlink()
    HARM[harm](tmp_path / "model" / file)
    done = quick("translate", "model", folder=tmp_path, stdin="zive\n")
    done.refuses(5, "model")
    assert file in done.err or "holds no" in done.err


def test_a_damaged_manifest_is_named(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / STUDENT, tmp_path / "model")
    cut(tmp_path / "model" / "energymt.json")
    quick("translate", "model", folder=tmp_path, stdin="zive\n").refuses(5, "model/energymt.json is damaged")


# ------------------------------------------------------------------------------------------------- another vocabulary


def test_a_teacher_with_another_vocabulary_is_refused(place: Path) -> None:
    other = ("--set", "vocabulary.size=40", "--set", "steps=1", "--name", "other", "--tracking", "none")
    assert quick("train", "supervised", "-c", "teacher.yaml", *other, folder=place).code == 0
    teacher, before = "runs/other/model", files(place / "runs" / "student")
    command = ("train", "engine", "-c", "student.yaml", "--name", "engine-2", "--tracking", "none")
    settings = (f"teacher={teacher}", f"model.init={STUDENT}", "target_lengths=reference")
    done = quick(*command, *(part for setting in settings for part in ("--set", setting)), folder=place)
    parts = ["different vocabularies", teacher, "40 pieces", "49 pieces", "id 40", "vocabulary.path"]
    done.refuses(2, *parts)
    assert not (place / "runs" / "engine-2" / "model").exists() and files(place / "runs" / "student") == before
    quick("translate", STUDENT, "--rerank", teacher, folder=place, stdin="zive\n").refuses(2, teacher, *parts[2:4])
    data = ("--data", "test.tsv", "--source", "source", "--target", "target", "--iterations", "1")
    quick("evaluate", STUDENT, *data, "--energy", teacher, folder=place).refuses(2, STUDENT, *parts[2:4])
