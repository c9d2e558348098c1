"""Task prefixes of commands: translators read them; estimators, metrics and written files do not."""

import json
from pathlib import Path

import pytest

from tests import estimators
from tests.commands.conftest import STUDENT, TEACHER
from tests.commands.test_estimation import rows_of
from tests.terminal import Done, quick

DATA = ("--data", "test.tsv", "--source", "source", "--target", "target")


@pytest.fixture
def prefix(shared: Path) -> str:
    """Words that the models know, and a space."""
    return (shared / "train.source").read_text("utf-8").splitlines()[3] + " "


def done(folder: Path, *arguments: str, stdin: str = "") -> Done:
    found = quick(*arguments, folder=folder, stdin=stdin)
    assert found.code == 0, found.err
    return found


def sides(folder: Path) -> tuple[str, str]:
    """Sources as people write them, and with the prefix that the tests take."""
    plain = (folder / "test.source").read_text("utf-8")
    first = (folder / "train.source").read_text("utf-8").splitlines()[3]
    return plain, "".join(f"{first} {line}\n" for line in plain.splitlines())


def test_translate_reads_it_before_each_line(shared: Path, prefix: str) -> None:
    plain, given = sides(shared)
    wanted = done(shared, "translate", TEACHER, stdin=given).out
    assert done(shared, "translate", TEACHER, "--prefix", prefix, stdin=plain).out == wanted
    assert done(shared, "translate", TEACHER, stdin=plain).out != wanted


def test_evaluate_translates_with_it_and_judges_without(shared: Path, prefix: str, tmp_path: Path) -> None:
    plain, given = sides(shared)
    judge, out = str(estimators.converted("kiwi")), tmp_path / "out"
    files = ("--json", str(tmp_path / "found.json"), "--output", str(out))
    options = ("--prefix", prefix, "--beam", "1", "--judge", judge, "--energy", TEACHER)
    done(shared, "evaluate", TEACHER, *DATA, *options, *files)
    assert out.read_text("utf-8") == done(shared, "translate", TEACHER, "--beam", "1", stdin=given).out
    [system] = json.loads((tmp_path / "found.json").read_text("utf-8"))["systems"]
    (tmp_path / "plain").write_text(plain, "utf-8")
    pair = ("--source", str(tmp_path / "plain"), "--target", str(out))
    for scorer, key, settings in (
        (judge, f"judged by {judge}", ()),
        (TEACHER, "energy", ("--prefix", prefix)),
    ):
        scores = [float(line) for line in done(shared, "score", scorer, *pair, *settings).out.splitlines()]
        assert system["intervals"][key]["value"] == pytest.approx(sum(scores) / len(scores), abs=1e-3)
    bare = [float(line) for line in done(shared, "score", TEACHER, *pair).out.splitlines()]
    assert system["energy"] != pytest.approx(sum(bare) / len(bare), abs=1e-2)


def test_an_estimator_ranks_by_the_plain_source(shared: Path, prefix: str, tmp_path: Path) -> None:
    plain, given = sides(shared)
    judge = str(estimators.converted("kiwi"))
    listed = done(shared, "translate", TEACHER, "--beam", "3", "--n-best", "3", stdin=given).out.splitlines()
    candidates = [line.split(" ||| ")[1] for line in listed]
    (tmp_path / "source").write_text("".join(f"{line}\n" * 3 for line in plain.splitlines()), "utf-8")
    (tmp_path / "target").write_text("".join(f"{line}\n" for line in candidates), "utf-8")
    pair = ("--source", str(tmp_path / "source"), "--target", str(tmp_path / "target"))
    scores = [float(line) for line in done(shared, "score", judge, *pair).out.splitlines()]
    wanted = [max(range(row, row + 3), key=lambda k: scores[k]) for row in range(0, len(scores), 3)]
    options = ("--beam", "3", "--rerank", judge, "--prefix", prefix)
    assert done(shared, "translate", TEACHER, *options, stdin=plain).out.splitlines() == [candidates[k] for k in wanted]


def test_what_is_judged_stands_beside_the_plain_source(shared: Path, prefix: str, tmp_path: Path) -> None:
    plain, given = sides(shared)
    file = tmp_path / "judged.tsv"
    done(shared, "data", "judge", TEACHER, *DATA, "--prefix", prefix, "--output", str(file))
    printed = done(shared, "translate", TEACHER, "--beam", "1", stdin=given).out.splitlines()
    pairs = [pair for pair in zip(plain.splitlines(), printed, strict=True) if pair[1]]
    assert [(line["source"], line["translation"]) for line in rows_of(file)] == pairs


def test_the_baseline_of_a_translator_reads_it(shared: Path, prefix: str, tmp_path: Path) -> None:
    judge, file = str(estimators.converted("kiwi")), tmp_path / "judged.tsv"
    done(shared, "data", "judge", STUDENT, *DATA, "--output", str(file))
    given = tmp_path / "given.tsv"
    lines = file.read_text("utf-8").splitlines()
    given.write_text("\n".join([lines[0], *(prefix + line for line in lines[1:])]) + "\n", "utf-8")

    def found(data: Path, *options: str) -> dict[str, float]:
        columns = ("--source", "source", "--target", "translation", "--score", "score")
        out = tmp_path / "found.json"
        settings = ("--data", str(data), "--teacher", TEACHER, "--json", str(out), *options)
        done(shared, "meta-evaluate", judge, *columns, *settings)
        items = json.loads(out.read_text("utf-8"))
        return {item["scorer"]: item["pearson"]["value"] for item in items}

    without, with_option, in_text = found(file), found(file, "--prefix", prefix), found(given)
    assert with_option["log-probability"] == pytest.approx(in_text["log-probability"], abs=1e-6)
    assert with_option["log-probability"] != without["log-probability"]
    assert with_option["estimator"] == without["estimator"] != in_text["estimator"]
