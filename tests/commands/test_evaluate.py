"""`energymt evaluate` and `score`: the numbers, where they are written, and what cannot be scored."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sacrebleu

from energymt.data.corpus import DataConfig, read_corpus
from energymt.decoding import DecodingOptions
from energymt.evaluation import evaluate_models
from energymt.metrics import translation
from energymt.models.scoring import score_lines
from tests import estimators
from tests.commands.conftest import STUDENT, TEACHER
from tests.terminal import Done, quick

ENGINE = "runs/engine/model"
DATA = ("--data", "test.tsv", "--source", "source", "--target", "target")
ONE_PASS = ("--iterations", "1", "--length-beam", "3", "--beam", "1")


@pytest.fixture(scope="module")
def evaluated(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, dict[str, Any], list[str]]:
    """Two students against each other with an energy: what was printed, the JSON file, the translations."""
    out = tmp_path_factory.mktemp("evaluated")
    files = ("--json", str(out / "scores.json"), "--output", str(out / "translations"))
    both = ("--against", STUDENT, "--energy", TEACHER)
    done = quick("evaluate", ENGINE, *DATA, *both, *ONE_PASS, *files, folder=shared)
    assert (done.code, done.err) == (0, "")
    lines = (out / "translations").read_text("utf-8").splitlines()
    return done, json.loads((out / "scores.json").read_text("utf-8")), lines


def test_the_table_shows_scores_with_intervals(evaluated) -> None:
    done, found, _ = evaluated
    for name, model in zip((ENGINE, STUDENT), found["systems"], strict=True):
        assert f"{name}  (24 sentences" in done.out
        for key in ("bleu", "chrf", "energy", "repetition", "length_ratio"):
            interval = model["intervals"][key]
            assert interval["low"] <= model[key] <= interval["high"]
            value, low, high = (
                number * (100 if key == "repetition" else 1)
                for number in (model[key], interval["low"], interval["high"])
            )
            assert f"{value:.3f}   95 % [{low:.3f}, {high:.3f}]" in done.out
    assert "source   0-10 tokens (  24)" in done.out and "nrefs:1|case:mixed" in done.out


def test_repetition_is_shown_in_percent_and_written_as_a_share(evaluated) -> None:
    done, found, lines = evaluated
    words = [line.split() for line in lines]
    repeated = sum(left == right for line in words for left, right in pairwise(line))
    first, second = (model["repetition"] for model in found["systems"])
    assert first == pytest.approx(repeated / sum(map(len, words))) and first > 0.01
    assert re.search(rf"repeated % +{100 * first:.3f}  ", done.out)
    assert f"repeated % {100 * first:.2f}" in next(line for line in done.out.splitlines() if "source   0-10" in line)
    test = found["comparisons"]["repetition"]
    shown = f"repeated %   first {100 * first:.4g}  second {100 * second:.4g}  difference {100 * (first - second):.4g}"
    assert shown in done.out and f"p_bootstrap {test['p_bootstrap']:.4g}" in done.out


def test_two_models_are_compared_pairwise(evaluated) -> None:
    done, found, _ = evaluated
    assert "first minus second" in done.out
    for key, comparison in found["comparisons"].items():
        first, second = (model[key] for model in found["systems"])
        assert comparison["difference"] == pytest.approx(first - second)
        assert comparison["low"] <= comparison["difference"] <= comparison["high"]


def test_n_grams_are_counted_once(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    real = translation.bleu
    monkeypatch.setattr(translation, "bleu", lambda *texts: counted.append(len(texts[0])) or real(*texts))
    corpus = read_corpus(DataConfig(path=str(shared / "test.tsv"), source="source", target="target"))
    evaluate_models([str(shared / STUDENT)], corpus, DecodingOptions(length_beam=1, iterations=1))
    assert counted == [24]


def test_scores_are_those_of_the_translations(evaluated, shared: Path) -> None:
    _, found, lines = evaluated
    model = found["systems"][0]
    assert model["outputs"] == lines
    stdin = (shared / "test.source").read_text("utf-8")
    translated = quick("translate", ENGINE, "--iterations", "1", "--length-beam", "3", folder=shared, stdin=stdin)
    assert translated.out.splitlines() == lines
    references = (shared / "test.target").read_text("utf-8").splitlines()
    assert model["bleu"] == pytest.approx(sacrebleu.corpus_bleu(lines, [references]).score)


def test_energy_is_the_mean_of_what_score_prints(evaluated, shared: Path, tmp_path: Path) -> None:
    _, found, lines = evaluated
    (tmp_path / "out").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    done = quick("score", TEACHER, "--source", "test.source", "--target", str(tmp_path / "out"), folder=shared)
    assert (done.code, done.err) == (0, "")
    assert all(re.fullmatch(r"\d+\.\d{4}", line) for line in done.out.splitlines())
    energies = [float(line) for line in done.out.splitlines()]
    assert len(energies) == 24
    assert found["systems"][0]["energy"] == pytest.approx(sum(energies) / 24, abs=1e-3)


def test_judges_score_the_outputs_with_references_where_they_read_them(shared: Path, tmp_path: Path) -> None:
    kiwi, comet = (str(estimators.converted(kind)) for kind in ("kiwi", "regression"))
    files = ("--json", str(tmp_path / "scores.json"))
    done = quick("evaluate", ENGINE, *DATA, *ONE_PASS, "--judge", kiwi, "--judge", comet, *files, folder=shared)
    assert (done.code, done.err) == (0, "")
    [system] = json.loads((tmp_path / "scores.json").read_text("utf-8"))["systems"]
    test = read_corpus(DataConfig(path=str(shared / "test.tsv"), source="source", target="target"))
    for kind, address, references in (("kiwi", kiwi, None), ("regression", comet, test.target)):
        wanted = score_lines(estimators.estimator(kind), test.source, system["outputs"], references)
        value = sum(wanted) / len(wanted)
        assert system["intervals"][f"judged by {address}"]["value"] == pytest.approx(value, abs=1e-5)
        assert f"judged by {address}  {value:9.3f}" in done.out


def test_what_re_ranks_is_told_against_the_plain_output_of_the_same_model(shared: Path, tmp_path: Path) -> None:
    judge = str(estimators.converted("kiwi"))
    files = ("--json", str(tmp_path / "scores.json"))
    chosen = ("--rerank", judge, "--beam", "3")
    done = quick("evaluate", TEACHER, *DATA, *chosen, "--against", TEACHER, "--judge", judge, *files, folder=shared)
    assert (done.code, done.err) == (0, "")
    found = json.loads((tmp_path / "scores.json").read_text("utf-8"))
    stdin = (shared / "test.source").read_text("utf-8")
    outputs = [
        quick("translate", TEACHER, *options, folder=shared, stdin=stdin).out.splitlines()
        for options in (chosen, ("--beam", "3"))
    ]
    assert [system["outputs"] for system in found["systems"]] == outputs and outputs[0] != outputs[1]
    assert [system["model"] for system in found["systems"]] == [f"{TEACHER}, re-ranked by {judge}", TEACHER]
    means = [system[f"judged by {judge}"] for system in found["systems"]]
    assert found["comparisons"][f"judged by {judge}"]["difference"] == pytest.approx(means[0] - means[1]) and (
        means[0] > means[1]
    )
    assert f"{TEACHER}, re-ranked by {judge}  (24 sentences" in done.out


def test_the_consensus_of_samples_is_scored_as_it_is_translated(shared: Path, tmp_path: Path) -> None:
    judge = str(estimators.converted("regression"))
    drawn = ("--samples", "4", "--seed", "3", "--top-p", "0.9", "--rerank", judge)
    files = ("--output", str(tmp_path / "translations"), "--json", str(tmp_path / "scores.json"))
    done = quick("evaluate", TEACHER, *DATA, *drawn, "--against", TEACHER, "--beam", "1", *files, folder=shared)
    assert (done.code, done.err) == (0, "")
    stdin = (shared / "test.source").read_text("utf-8")
    wanted = quick("translate", TEACHER, *drawn, folder=shared, stdin=stdin).out
    assert (tmp_path / "translations").read_text("utf-8") == wanted
    greedy = quick("translate", TEACHER, "--beam", "1", folder=shared, stdin=stdin).out
    second = json.loads((tmp_path / "scores.json").read_text("utf-8"))["systems"][1]
    assert second["outputs"] == greedy.splitlines() != wanted.splitlines()
    assert f"{TEACHER}, 4 samples (seed 3), top_p 0.9, re-ranked by {judge}  (24" in done.out


def test_oracle_lengths_are_those_of_the_references(shared: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    options = ("--iterations", "1", "--length-beam", "1", "--oracle-lengths", "--output", out)
    assert quick("evaluate", STUDENT, *DATA, *options, folder=shared).code == 0
    references = (shared / "test.target").read_text("utf-8").splitlines()
    lengths = [len(line.split()) for line in Path(out).read_text("utf-8").splitlines()]
    assert lengths == [len(line.split()) for line in references]


def test_a_pair_of_text_files_is_a_test_set_too(evaluated, shared: Path) -> None:
    pair = ("--data", "test.source", "--target-path", "test.target")
    done = quick("evaluate", ENGINE, *pair, *ONE_PASS, folder=shared)
    assert done.code == 0
    bleu = evaluated[1]["systems"][0]["bleu"]
    assert re.search(rf"BLEU +{bleu:.3f}", done.out)


# ------------------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("option", ["--json", "--output"])
def test_a_folder_that_is_missing_is_named_before_hours_of_work(option: str, shared: Path) -> None:
    done = quick("evaluate", STUDENT, *DATA, option, "nowhere/out", folder=shared)
    done.refuses(2, option, "nowhere/out", "does not exist", "make it")
    assert done.out == ""


@pytest.mark.parametrize(
    "arguments, code, parts",
    [
        (["evaluate", STUDENT, "--data", "test.tsv"], 2, ["test.tsv", "source"]),
        (["evaluate", STUDENT, "--data", "tset.tsv", *DATA[2:]], 4, ["tset.tsv", "test.tsv"]),
        (["evaluate", STUDENT, "--data", "test.source"], 2, ["test.source", "format"]),
        (["evaluate", STUDENT, *DATA, "--energy", STUDENT], 2, [STUDENT, "not autoregressive"]),
        (["evaluate", TEACHER, *DATA, "--oracle-lengths"], 2, ["autoregressive", "lengths"]),
        (["evaluate", STUDENT, *DATA, "--rerank", STUDENT], 2, [STUDENT, "not autoregressive"]),
        (["evaluate", STUDENT, *DATA, "--samples", "3"], 2, ["Samples", "autoregressive"]),
        (["score", STUDENT, "--source", "test.source", "--target", "test.target"], 2, [STUDENT, "not autoregressive"]),
        (["score", TEACHER, "--source", "test.source", "--target", "dev.target"], 4, ["24 lines", "12"]),
        (["score", TEACHER, "--source", "nowhere", "--target", "dev.target"], 4, ["nowhere does not exist"]),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(arguments: list[str], code: int, parts: list[str], shared: Path) -> None:
    done = quick(*arguments, folder=shared)
    done.refuses(code, *parts)
    assert done.out == ""
