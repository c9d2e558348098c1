"""From two translators to an estimator of their outputs, what it is worth, and what fools it: `energymt data judge`,
`train estimator`, `meta-evaluate` and `probe`.
"""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import yaml

from energymt.evaluation import energies_of, load_teacher
from energymt.folders import verify_manifest
from energymt.metrics.estimation import correlations
from energymt.metrics.gaming import PROBES
from energymt.models.estimator_folder import load_estimator
from energymt.models.scoring import score_lines
from tests import estimators
from tests.commands.conftest import STUDENT, TEACHER, configuration
from tests.terminal import Done, quick

ESTIMATOR = "runs/estimator/model"
PAIRS = ("--source", "source", "--target", "target")
JUDGED = ("--source", "source", "--target", "translation", "--score", "score")
KEYS = {"source": "source", "target": "translation", "score": "score"}


def judge(folder: Path, *arguments: str) -> Done:
    return quick("data", "judge", *arguments, *PAIRS, folder=folder)


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


@pytest.fixture(scope="module")
def done() -> dict[str, Done]:
    """How each of the commands below ended."""
    return {}


@pytest.fixture(scope="module")
def folder(shared: Path, tmp_path_factory: pytest.TempPathFactory, done: dict[str, Done]) -> Path:
    """The two translators, judged text of theirs, and an estimator that was trained on it."""
    folder = tmp_path_factory.mktemp("estimation")
    for name in (TEACHER, STUDENT):
        shutil.copytree(shared / name, folder / name)
    for name in ("train.tsv", "dev.tsv", "test.tsv", "test.source", "test.target"):
        shutil.copy(shared / name, folder)
    options = ("--damage", "0.3", "--damage", "0", "--damage", "0.3", "--iterations", "2")
    done["judge"] = judge(folder, TEACHER, STUDENT, "--data", "test.tsv", "--output", "judged.tsv", *options)
    command = (TEACHER, STUDENT, "--data", "train.tsv", "--rows", "60", "--damage", "0.4", "--output", "learnt.tsv")
    done["learn"] = judge(folder, *command)
    settings = configuration(
        train={"path": "learnt.tsv", **KEYS},
        dev={"path": "judged.tsv", **KEYS},
        model={"variant": "estimator-toy", "changes": {"layers": 1}},
        vocabulary={"size": 120},
        optimizer={"learning_rate": 0.005, "warmup_steps": 5, "rates": {"encoder.": 0.5}},
        steps=24,
        tokens_per_step=512,
        tokens_per_micro_batch=512,
    )
    (folder / "estimator.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = ("train", "estimator", "-c", "estimator.yaml", "--name", "estimator", "--tracking", "none")
    done["train"] = quick(*command, folder=folder)
    for name, result in done.items():
        assert result.code == 0, f"{name}: {result.err}"
    return folder


@pytest.fixture(scope="module")
def evaluated(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, list[dict[str, Any]]]:
    """The estimator on what it was not trained on, beside a teacher and a column of the same lines."""
    out = tmp_path_factory.mktemp("evaluated") / "agreements.json"
    lines = rows_of(folder / "judged.tsv")
    with (folder / "baseline.tsv").open("w", encoding="utf-8") as file:
        print(*lines[0], "coin", sep="\t", file=file)
        for number, line in enumerate(lines):
            print(*line.values(), (7 * number) % 5, sep="\t", file=file)
    options = ("--data", "baseline.tsv", "--baseline", "coin", "--teacher", TEACHER, "--json", str(out))
    done = quick("meta-evaluate", ESTIMATOR, *JUDGED, *options, folder=folder)
    assert (done.code, done.err) == (0, "")
    return done, json.loads(out.read_text("utf-8"))


# -------------------------------------------------------------------------------------------------- energymt data judge


def test_outputs_of_all_translators_are_judged_whole_and_damaged(folder: Path, done: dict[str, Done]) -> None:
    lines = rows_of(folder / "judged.tsv")
    assert list(lines[0]) == ["source", "translation", "score", "reference", "system"]
    assert done["judge"].err == ""
    assert done["judge"].out == f"judged.tsv holds {len(lines)} judged translations of 24 sentences.\n"
    systems = [TEACHER, f"{TEACHER} (30% damaged)", STUDENT, f"{STUDENT} (30% damaged)"]
    assert list(dict.fromkeys(line["system"] for line in lines)) == systems
    assert 90 < len(lines) <= 96  # an empty translation is left out
    pairs = dict(row.split("\t") for row in (folder / "test.tsv").read_text("utf-8").splitlines())
    for line in lines:
        assert pairs[line["source"]] == line["reference"]
        chrf = sacrebleu.sentence_chrf(line["translation"], [line["reference"]]).score
        assert float(line["score"]) == pytest.approx(chrf / 100, abs=6e-5)
    means = [sum(float(line["score"]) for line in lines if line["system"] == system) for system in systems]
    assert means[1] < means[0] and means[3] < means[2]


def test_what_is_judged_is_what_translate_prints(folder: Path) -> None:
    for model, option in ((TEACHER, ("--beam", "1")), (STUDENT, ("--iterations", "2", "--length-beam", "1"))):
        stdin = (folder / "test.source").read_text("utf-8")
        printed = quick("translate", model, *option, folder=folder, stdin=stdin).out.splitlines()
        found = [line["translation"] for line in rows_of(folder / "judged.tsv") if line["system"] == model]
        assert found == [line for line in printed if line]


def test_the_seed_decides_the_damage_and_text_files_do_too(folder: Path, tmp_path: Path) -> None:
    def judged(*options: str) -> str:
        out = tmp_path / "out.tsv"
        command = ("data", "judge", STUDENT, "--output", str(out), "--rows", "8", "--damage", "0.5", *options)
        assert quick(*command, folder=folder).code == 0
        return out.read_text("utf-8")

    first = judged("--data", "test.tsv", *PAIRS)
    assert judged("--data", "test.source", "--target-path", "test.target") == first
    other = judged("--data", "test.tsv", *PAIRS, "--seed", "2")
    whole = [[line for line in text.splitlines() if "damaged" not in line] for text in (first, other)]
    assert other != first and whole[0] == whole[1]


def test_translations_of_others_beginnings_and_repetitions_are_judged_too(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.tsv"
    options = ("--data", "test.tsv", "--output", str(out), "--unrelated", "0.5", "--cut", "0.5", "--twice", "0.5")
    assert judge(folder, TEACHER, *options).code == 0
    lines: dict[str, dict[str, dict[str, str]]] = {}
    for line in rows_of(out):
        lines.setdefault(line["system"], {})[line["source"]] = line
    whole, unrelated, cut = lines[TEACHER], lines[f"{TEACHER} (unrelated)"], lines[f"{TEACHER} (cut)"]
    twice = lines[f"{TEACHER} (twice)"]
    assert len(lines) == 4 and all(4 <= len(some) <= 20 for some in (unrelated, cut, twice))
    texts = {line["translation"] for line in whole.values()}
    for source, line in unrelated.items():
        assert line["translation"] in texts and line["translation"] != whole[source]["translation"]
    for source, line in cut.items():
        words, all_words = line["translation"].split(), whole[source]["translation"].split()
        assert 0 < len(words) < len(all_words) and words == all_words[: len(words)]
    for source, line in twice.items():
        assert line["translation"] == " ".join([whole[source]["translation"]] * 2)
    for line in (*unrelated.values(), *cut.values(), *twice.values()):
        chrf = sacrebleu.sentence_chrf(line["translation"], [line["reference"]]).score
        assert float(line["score"]) == pytest.approx(chrf / 100, abs=6e-5)
        assert line["reference"] == whole[line["source"]]["reference"]


# --------------------------------------------------------------------------------------------- energymt train estimator


def test_an_estimator_is_trained_and_scores(folder: Path, done: dict[str, Done]) -> None:
    sentence = done["train"].err.splitlines()[-1]
    found = re.fullmatch(r".*/runs/estimator/model holds the model: dev/pearson (0\.\d+) after 24 steps\.", sentence)
    assert found is not None and float(found[1]) > 0.2
    assert verify_manifest(folder / ESTIMATOR)["trainable"] == "estimator"
    for option, column in (("source", 0), ("target", 1)):
        rows = [row.split("\t")[column] for row in (folder / "judged.tsv").read_text("utf-8").splitlines()[1:]]
        (folder / f"score.{option}").write_text("\n".join(rows) + "\n", "utf-8")
    printed = quick("score", ESTIMATOR, "--source", "score.source", "--target", "score.target", folder=folder)
    judgements = [float(line["score"]) for line in rows_of(folder / "judged.tsv")]
    values = correlations([float(line) for line in printed.out.splitlines()], judgements)
    assert values["pearson"] == pytest.approx(float(found[1]), abs=1e-3)


def test_a_dry_run_says_what_would_be_trained(folder: Path) -> None:
    planned = quick("train", "estimator", "-c", "estimator.yaml", "--dry-run", folder=folder)
    assert (planned.code, planned.err) == (0, "")
    assert re.search(r"model +estimator, [\d,]+ parameters", planned.out)
    assert "dev/pearson (higher is better)" in planned.out and "Nothing was trained" in planned.out


@pytest.mark.parametrize(
    "setting, code, parts",
    [
        ("train.score=scoer", 4, ["learnt.tsv:1", "'scoer'", "did you mean 'score'?"]),
        ("train.score=system", 4, ["learnt.tsv:2", "'system'", TEACHER, "instead of a number"]),
        ("train={path: learnt.tsv, source: source, target: translation}", 2, ["'train.score' is missing"]),
        (f"vocabulary.path={TEACHER}", 2, ["unigram", "vocabulary.model_type"]),
        (f"model.init={TEACHER}", 5, [TEACHER, "holds no estimator", "energymt train estimator"]),
        ("model.init=REGRESSION", 2, ["needs references", "not trained"]),
        ("model.metric=xcomet_metric", 2, ["'model.metric'", "'xcomet_metric'"]),
        ("model.variant=masked-toy", 2, ["'masked-toy'", "estimator-toy"]),
        ("optimizer.rates={encodre.: 0.1}", 2, ["optimizer.rates", "'encodre.'", "'encoder.', 'head.', 'mix.'"]),
        ("optimizer.rates={head.: 0}", 2, ["optimizer.rates.head.", "greater than 0"]),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(setting: str, code: int, parts: list[str], folder: Path) -> None:
    setting = setting.replace("REGRESSION", str(estimators.converted("regression")))
    command = ("train", "estimator", "-c", "estimator.yaml", "--name", "bad", "--tracking", "none", "--set", setting)
    quick(*command, folder=folder).refuses(code, *parts)
    assert not (folder / "runs" / "bad" / "model").exists()


# ----------------------------------------------------------------------------------------------- energymt meta-evaluate


def test_agreement_beside_baselines(evaluated: tuple[Done, list[dict[str, Any]]], folder: Path) -> None:
    _, found = evaluated
    lines = rows_of(folder / "baseline.tsv")
    sources, targets = [line["source"] for line in lines], [line["translation"] for line in lines]
    judgements = [float(line["score"]) for line in lines]
    scores = {"estimator": score_lines(load_estimator(folder / ESTIMATOR), sources, targets)}
    teacher = load_teacher(str(folder / TEACHER))
    energies = energies_of(teacher, sources, targets)
    scores["log-probability"] = [
        -energy / (len(teacher.vocabulary.encode(text)) + 1) for energy, text in zip(energies, targets, strict=True)
    ]
    scores["coin"] = [float(line["coin"]) for line in lines]
    names = ["estimator", "length ratio", "log-probability", "coin"]
    assert [item["scorer"] for item in found] == [*names, *(f"estimator − {name}" for name in names[1:])]
    by_name = {item["scorer"]: item for item in found}
    for name, values in scores.items():
        assert by_name[name]["sentences"] == len(lines)
        for key, value in correlations(values, judgements).items():
            own = by_name[name][key]
            assert own["value"] == pytest.approx(value, abs=1e-4)
            assert own["low"] <= own["value"] <= own["high"]
            if name != "estimator":
                gap = by_name[f"estimator − {name}"][key]
                assert gap["value"] == pytest.approx(by_name["estimator"][key]["value"] - own["value"])
    assert by_name["estimator"]["pearson"]["low"] > by_name["coin"]["pearson"]["value"]


def test_the_table_of_agreements(evaluated: tuple[Done, list[dict[str, Any]]]) -> None:
    done, found = evaluated
    title, header, *lines = done.out.splitlines()
    assert title == f"{found[0]['sentences']} judged translations of baseline.tsv"
    assert header.split() == ["pearson", "spearman", "kendall"]
    for line, item in zip(lines, found, strict=True):
        assert line.startswith(f"{item['scorer']}  ")
        cells = [item[key] for key in header.split()]
        wanted = [f"{cell[part]:.3f}" for cell in cells for part in ("value", "low", "high")]
        assert re.findall(r"-?\d\.\d{3}", line) == wanted
    assert all(line[header.index("spearman") :].startswith((" ", "-")) for line in lines)


def test_some_lines_alone(folder: Path, tmp_path: Path) -> None:
    """And what stands in the other lines need not be a number."""
    lines = [line for line in rows_of(folder / "judged.tsv") if line["system"] in (TEACHER, STUDENT)]
    kinds = [{**line, "kind": 1} if line["system"] == STUDENT else {**line, "kind": 2, "score": None} for line in lines]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kinds), "utf-8")
    data = ("--data", str(tmp_path / "some.jsonl"), "--only", "kind=1", "--json", str(tmp_path / "out.json"))
    done = quick("meta-evaluate", ESTIMATOR, *JUDGED, *data, folder=folder)
    assert done.code == 0, done.err
    own = [line for line in lines if line["system"] == STUDENT]
    assert done.out.startswith(f"{len(own)} judged translations of {tmp_path}/some.jsonl, kind=1\n")
    estimator = load_estimator(folder / ESTIMATOR)
    scores = score_lines(estimator, [line["source"] for line in own], [line["translation"] for line in own])
    wanted = correlations(scores, [float(line["score"]) for line in own])
    found = json.loads((tmp_path / "out.json").read_text("utf-8"))[0]
    assert {key: found[key]["value"] for key in wanted} == pytest.approx(wanted, abs=1e-4)


# ------------------------------------------------------------------------------------------------------- energymt probe


def test_probes_and_their_table(folder: Path, tmp_path: Path) -> None:
    rows = (folder / "test.tsv").read_text("utf-8").splitlines()
    third = ["third", *(f"mot {number}" for number in range(len(rows) - 1))]
    (tmp_path / "test.tsv").write_text("\n".join("\t".join(pair) for pair in zip(rows, third, strict=True)) + "\n")
    out = tmp_path / "probes.json"
    options = ("--data", str(tmp_path / "test.tsv"), *PAIRS, "--wrong-language", "third", "--json", str(out))
    done = quick("probe", ESTIMATOR, *options, folder=folder)
    assert (done.code, done.err) == (0, "")
    found = json.loads(out.read_text("utf-8"))
    words = [name for name in PROBES if name != "numbers changed"]  # there are none in the toy language
    assert [item["probe"] for item in found] == [*words, "wrong language"]
    header, *lines = done.out.splitlines()
    assert " ".join(header.split()) == "wrong translation sentences right one wins, 95 % interval margin, σ"
    for line, item in zip(lines, found, strict=True):
        wins = [f"{100 * item['wins'][key]:.1f}" for key in ("value", "low", "high")]
        shown = f"{wins[0]} % [{wins[1]}, {wins[2]}] {item['margin']:.2f}"
        assert line.startswith(item["probe"]) and " ".join(line.split()).endswith(f" {item['sentences']} {shown}")
        assert 0 < item["sentences"] <= 24
    pair = ("--data", "test.source", "--target-path", "test.target")
    assert quick("probe", ESTIMATOR, *pair, folder=folder).out.splitlines()[1:] == lines[:-1]


# ------------------------------------------------------------------------------------------------------------ bad input

META = ["meta-evaluate", ESTIMATOR, "--data", "judged.tsv", *JUDGED]
PROBE = ["probe", ESTIMATOR, "--data", "test.tsv", *PAIRS]
OUTPUT = ["data", "judge", TEACHER, "--output"]


@pytest.mark.parametrize(
    "arguments, code, parts",
    [
        ([*META[:-1], "scroe"], 4, ["judged.tsv:1", "'scroe'", "did you mean 'score'?"]),
        ([*META, "--baseline", "nope"], 4, ["judged.tsv:1", "'nope'", "columns:"]),
        ([*META, "--baseline", "system"], 4, ["judged.tsv:2", "'system'", "instead of a number"]),
        (["meta-evaluate", TEACHER, *META[2:]], 5, [TEACHER, "holds no estimator", "energymt train estimator"]),
        (["meta-evaluate", "nowhere/model", *META[2:]], 5, ["nowhere/model"]),
        (["meta-evaluate", str(estimators.converted("regression")), *META[2:]], 2, ["references", "COMET-KIWI"]),
        ([*META, "--teacher", STUDENT], 2, [STUDENT, "not autoregressive"]),
        ([*META, "--only", "system"], 2, ["--only system", "write column=value"]),
        ([*META, "--only", "sytsem=a"], 4, ["judged.tsv:1", "'sytsem'", "did you mean 'system'?"]),
        ([*META, "--only", "system=teacher"], 4, ["No line of judged.tsv", "'teacher'", "others have"]),
        ([*META, "--json", "nowhere/out.json"], 2, ["--json nowhere/out.json", "make it first"]),
        (["meta-evaluate", ESTIMATOR, "--data", "test.source", *JUDGED], 2, ["test.source", "format"]),
        ([*PROBE, "--json", "runs"], 2, ["--json runs is a folder", "name a file"]),
        (["probe", "pool:kiwi", *PROBE[2:]], 2, ["pool:kiwi is an energy pool", "own folder"]),
        ([*PROBE, "--wrong-language", "french"], 4, ["test.tsv:1", "'french'"]),
        (["probe", STUDENT, *PROBE[2:]], 5, [STUDENT, "holds no estimator"]),
        (["probe", str(estimators.converted("regression")), *PROBE[2:]], 2, ["references", "COMET-KIWI"]),
        (["probe", ESTIMATOR, "--data", "test.tsv"], 2, ["test.tsv", "source"]),
        ([*OUTPUT, "nowhere/out.tsv", "--data", "test.tsv", *PAIRS], 2, ["--output nowhere/out.tsv", "make it first"]),
        ([*OUTPUT, "out.tsv", "--data", "test.tsv", "--source", "source"], 2, ["test.tsv", "translations", "target"]),
        ([*OUTPUT, "out.tsv", "--data", "test.tsv", *PAIRS, "--damage", "2"], 2, ["--damage", "equal to 1"]),
        (["data", "judge", STUDENT, "nowhere/model", *OUTPUT[3:], "out.tsv", *PROBE[2:]], 5, ["nowhere/model"]),
        (["data", "judge", ESTIMATOR, *OUTPUT[3:], "out.tsv", *PROBE[2:]], 5, [ESTIMATOR]),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], code: int, parts: list[str], folder: Path) -> None:
    done = quick(*arguments, folder=folder)
    done.refuses(code, *parts)
    assert done.out == "" and not (folder / "out.tsv").exists()


@pytest.mark.parametrize(
    "scores, code, parts",
    [
        (["0.5", "0.5", "0.5"], 4, ["All judgements in column 'score' are 0.5"]),
        (["0.5", "0.7"], 4, ["2 judged translations", "10 at least"]),
        (["0.5", "x"], 4, ["few.tsv:3", "'x'"]),
    ],
)
def test_judgements_that_nothing_can_agree_with(
    scores: list[str], code: int, parts: list[str], folder: Path, tmp_path: Path
) -> None:
    lines = ["source\ttranslation\tscore", *(f"a{score}\tb\t{score}" for score in scores)]
    (tmp_path / "few.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    quick(*META[:3], str(tmp_path / "few.tsv"), *JUDGED, folder=folder).refuses(code, *parts)


def test_a_third_language_that_is_no_text(folder: Path, tmp_path: Path) -> None:
    record = {"source": "zive", "target": "viki", "third": None}
    (tmp_path / "some.jsonl").write_text(json.dumps(record) + "\n", "utf-8")
    command = ("probe", ESTIMATOR, "--data", str(tmp_path / "some.jsonl"), *PAIRS, "--wrong-language", "third")
    quick(*command, folder=folder).refuses(4, "some.jsonl:1", "'third'", "instead of text")
