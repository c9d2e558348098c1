"""Scores beside translations: read from their column, each in its line, and refused by file and line."""

import json
from pathlib import Path

import numpy as np
import pytest

from energymt.data.corpus import read_columns
from energymt.data.judgements import JudgedDataConfig, numbers, read_judged
from energymt.errors import ConfigurationError, DataError, EnergymtError

TSV = "original\ttranslation\tz_mean\tmodel\nein Hund\ta dog\t0.75\t-1\nein Buch\ta book\t-2e-1\t-2\nja\tno\t 3 \t-3\n"


def write(path: Path, text: str) -> str:
    path.write_text(text, "utf-8")
    return str(path)


def config(path: str, **changes: object) -> JudgedDataConfig:
    names = {"source": "original", "target": "translation", "score": "z_mean"}
    return JudgedDataConfig(path=path, **{**names, **changes})


def failure(settings: JudgedDataConfig, kind: type[EnergymtError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        read_judged(settings)
    return str(caught.value)


def test_scores_of_a_tsv_file(tmp_path: Path) -> None:
    found = read_judged(config(write(tmp_path / "a.tsv", TSV)))
    assert (found.corpus.source, found.corpus.target) == (["ein Hund", "ein Buch", "ja"], ["a dog", "a book", "no"])
    assert found.scores_N.tolist() == [0.75, -0.2, 3.0] and found.scores_N.dtype == np.float64
    assert len(found) == 3
    first_two = read_judged(config(str(tmp_path / "a.tsv"), rows=2))
    assert first_two.scores_N.tolist() == [0.75, -0.2]


def test_scores_of_json_lines(tmp_path: Path) -> None:
    records = [
        {"original": "ein Hund", "translation": "a dog", "human": {"z_mean": value}} for value in (0.75, -1, "0.5")
    ]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    assert read_judged(config(path, score="human.z_mean")).scores_N.tolist() == [0.75, -1.0, 0.5]


@pytest.mark.parametrize("value", ["", "good", "nan", "inf", "-Infinity", "0,5", "1e999", "0x1"])
def test_a_score_that_is_no_number_names_file_and_line(value: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", f"original\ttranslation\tz_mean\na\tb\t1\nc\td\t{value}\ne\tf\tgut\n")
    assert failure(config(path)) == f"{path}:3: column 'z_mean' holds {value!r} instead of a number; correct it."


@pytest.mark.parametrize("value", ["null", "true", "false", "[1]", '{"z": 1}', "NaN", "1" + "0" * 400])
def test_json_that_is_no_number_is_refused_too(value: str, tmp_path: Path) -> None:
    good = '{"original": "a", "translation": "b", "z_mean": 1}\n'
    path = write(tmp_path / "a.jsonl", good + good.replace("1", value))
    text = failure(config(path))
    assert text.startswith(f"{path}:2: column 'z_mean' holds ") and text.endswith(" instead of a number; correct it.")


def test_scores_that_are_all_equal_teach_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "original\ttranslation\tz_mean\na\tb\t0.5\nc\td\t0.50\n")
    assert failure(config(path)) == f"All scores in column 'z_mean' of {path} are 0.5: nothing to learn."
    assert "are 0.75: nothing to learn" in failure(config(write(tmp_path / "b.tsv", TSV), rows=1))


def test_a_column_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", TSV)
    assert f"{path}:1 has no column 'z'; did you mean 'z_mean'?" in failure(config(path, score="z"))
    with pytest.raises(ValueError, match="score"):
        JudgedDataConfig(path=path, source="original", target="translation")


def test_plain_text_has_no_scores(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a.txt", "a\nb\n"), write(tmp_path / "b.txt", "c\nd\n")
    pair = JudgedDataConfig(path=one, target_path=other, score="z_mean")
    assert failure(pair, ConfigurationError) == f"{one} is plain text without columns: it has no 'z_mean'; use TSV."


# ------------------------------------------------------------------------------------------------ columns beside text


def test_columns_stand_beside_the_text_with_their_places(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", TSV)
    corpus, beside = read_columns(config(path), ["model", "z_mean"])
    assert len(corpus) == 3 and list(beside) == ["model", "z_mean"]
    assert beside["model"] == [(f"{path}:2", "-1"), (f"{path}:3", "-2"), (f"{path}:4", "-3")]
    assert numbers("model", beside["model"]).tolist() == [-1.0, -2.0, -3.0]


def test_a_column_that_is_asked_for_twice_is_read_once(tmp_path: Path) -> None:
    settings = config(write(tmp_path / "a.tsv", TSV))
    assert read_columns(settings, ["model", "model", "original"]) == read_columns(settings, ["model", "original"])
