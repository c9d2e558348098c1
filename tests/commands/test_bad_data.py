"""Text that is missing, misnamed, uneven, empty, broken or cut: exit code 4, file and line, and nothing is trained."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.conftest import STUDENT
from tests.terminal import Done, quick

Train = Callable[..., Done]
PAIR = "train={path: train.source, target_path: train.target, format: text}"


def lines(file: Path) -> list[bytes]:
    return file.read_bytes().split(b"\n")


def rewrite(file: Path, number: int, line: bytes) -> None:
    """Replace a line (from 1) by another."""
    content = lines(file)
    content[number - 1] = line
    file.write_bytes(b"\n".join(content))


def refused(done: Done, bare: Path, code: int, *parts: str) -> None:
    done.refuses(code, *parts)
    assert not (bare / "runs" / "run" / "checkpoints").exists() and not (bare / "runs" / "run" / "model").exists()


@pytest.mark.parametrize("side", ["train", "dev"])
def test_a_missing_file_and_the_nearest_name(side: str, train: Train, bare: Path) -> None:
    (bare / f"{side}.tsv").rename(bare / f"{side}n.tsv")
    refused(train(), bare, 4, f"{side}.tsv does not exist", f"did you mean {side}n.tsv?")


def test_a_missing_folder(train: Train, bare: Path) -> None:
    refused(
        train("train.path=data/train.tsv"), bare, 4, "data/train.tsv does not exist", "folder data", "check the path"
    )


def test_a_wrong_column_and_the_nearest_one(train: Train, bare: Path) -> None:
    refused(train("train.source=sorce"), bare, 4, "train.tsv:1", "'sorce'", "did you mean 'source'?")
    refused(train("dev.target=Targets"), bare, 4, "dev.tsv:1", "'Targets'", "did you mean 'target'?")


def test_unequal_line_counts(train: Train, bare: Path) -> None:
    content = lines(bare / "train.target")
    (bare / "train.target").write_bytes(b"\n".join(content[:-4]) + b"\n")
    refused(train(PAIR), bare, 4, "train.source has 300 lines", "train.target has 297", "line n")


def test_an_empty_line(train: Train, bare: Path) -> None:
    rewrite(bare / "train.target", 7, b"  ")
    refused(train(PAIR), bare, 4, "train.target:7 is empty", "remove")
    rewrite(bare / "train.tsv", 9, b"")
    refused(train(), bare, 4, "train.tsv:9 is empty", "tabs")
    rewrite(bare / "train.tsv", 9, b"zive\t ")
    refused(train(), bare, 4, "train.tsv:9", "'target' is empty")


def test_a_line_with_too_many_columns(train: Train, bare: Path) -> None:
    rewrite(bare / "train.tsv", 30, b"zive\tviki\tgapi")
    refused(train(), bare, 4, "train.tsv:30 has 3 columns and the header 2")


def test_broken_utf8(train: Train, bare: Path) -> None:
    rewrite(bare / "train.tsv", 5, b"zive v\xe4ze\tviki")
    refused(train(), bare, 4, "train.tsv:5 is not UTF-8", "0xe4", "column 7", "convert")
    rewrite(bare / "train.source", 300, b"\xff")
    refused(train(PAIR), bare, 4, "train.source:300 is not UTF-8")


@pytest.mark.parametrize("harm", ["cut", "changed", "plain"])
def test_a_damaged_gzip(harm: str, train: Train, bare: Path) -> None:
    plain = (bare / "train.tsv").read_bytes()
    content = gzip.compress(plain, mtime=0)
    if harm == "cut":
        content = content[: len(content) // 2]
    elif harm == "changed":
        content = content[:-8] + bytes(4) + content[-4:]  # the checksum
    else:
        content = plain
    (bare / "train.tsv.gz").write_bytes(content)
    done = train("train.path=train.tsv.gz")
    if harm == "plain":
        refused(done, bare, 4, "train.tsv.gz is named .gz but is not gzip")
    else:
        refused(done, bare, 4, "train.tsv.gz is cut or damaged", "last good line is line ")
        number = int(done.err.split("line is line ")[1].split(";")[0])
        assert (10 < number < 300) if harm == "cut" else number == 301


def test_json_lines(train: Train, bare: Path) -> None:
    good = '{"source": "zive veze", "target": "viki gapi"}\n'
    for bad, parts in (('{"source": "zive"\n', ["x.jsonl:4 is not JSON"]), ("\n", ["x.jsonl:4 is empty"])):
        (bare / "x.jsonl").write_text(good * 3 + bad, "utf-8")
        refused(train("train.path=x.jsonl"), bare, 4, *parts, "one JSON object")
    (bare / "x.jsonl").write_text(good * 3 + '{"source": "zive"}\n', "utf-8")
    refused(train("train.path=x.jsonl"), bare, 4, "x.jsonl:4", "'target'")


def test_empty_files_and_limits_that_leave_nothing(train: Train, bare: Path) -> None:
    (bare / "none.tsv").write_text("source\ttarget\n", "utf-8")
    refused(train("dev.path=none.tsv"), bare, 4, "none.tsv holds no sentence")
    refused(train("train.max_source_tokens=2"), bare, 4, "train.tsv", "at most 2 source", "raise max_source_tokens")


def test_text_that_the_model_has_no_room_for(train: Train, bare: Path) -> None:
    done = train("model.changes={longest: 8}")
    parts = ("train.max_source_tokens is 250", "train.tsv", "source of 9 tokens", "the model takes 7")
    refused(done, bare, 2, *parts, "lower train.max_source_tokens to 7, or raise model.changes.longest")
    rewrite(bare / "train.tsv", 3, b"zive\t" + b" ".join([b"viki"] * 40))
    done = train("model.changes={longest: 16}", "train.max_target_tokens=99")
    parts = ("train.max_target_tokens is 99", "train.tsv", "target of 41 tokens", "the model takes 16")
    refused(done, bare, 2, *parts, "lower train.max_target_tokens")


def test_a_file_whose_format_cannot_be_told(train: Train, bare: Path) -> None:
    refused(train("train.path=train.dat"), bare, 2, "train.dat", ".tsv", "format")
    refused(train("train={path: train.tsv}"), bare, 2, "train.tsv", "source")


def test_segmented_text_for_a_vocabulary_of_plain_text(place: Path) -> None:
    command = ("train", "masked", "-c", "student.yaml", "--set", f"model.init={STUDENT}", "--tracking", "none")
    done = quick(*command, "--set", "train.segmented=true", folder=place)
    done.refuses(2, "train.tsv", "segmented", "vocabulary")


def test_a_file_that_may_not_be_read_or_is_a_folder(train: Train, bare: Path) -> None:
    (bare / "folder.tsv").mkdir()
    refused(train("train.path=folder.tsv"), bare, 4, "folder.tsv cannot be read", "check the path")
