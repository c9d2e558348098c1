"""`energymt train`: what a run leaves behind, names, going on, starting anew, plans."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from energymt.folders import verify_manifest
from tests.commands.conftest import STUDENT, TEACHER, files
from tests.terminal import Done, quick

NO_TRACKING = ("--tracking", "none")


def log(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(run / "model" / "model.safetensors")


def same(left: Path, right: Path) -> bool:
    first, second = weights(left), weights(right)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_configuration_log_checkpoints_and_model(trained: tuple[Path, dict[str, Done]]) -> None:
    folder, done = trained
    run = folder / "runs" / "teacher"
    assert "step     48/48  dev" in done["teacher"].err
    assert f"{run / 'model'} holds the model: dev/bleu" in done["teacher"].err.splitlines()[-1]
    assert done["teacher"].out == ""
    assert yaml.safe_load((run / "config.yaml").read_text("utf-8"))["model"]["variant"] == "transformer-toy"
    reports = log(run)
    assert [report["step"] for report in reports if "train/nll" in report] == [8, 16, 24, 32, 40, 48]
    assert [report["step"] for report in reports if "dev/bleu" in report] == [24, 48]
    provenance = verify_manifest(run / "model")
    assert (provenance["trainable"], provenance["steps"]) == ("supervised", 48)
    best = max(report["dev/bleu"] for report in reports if "dev/bleu" in report)
    assert provenance["dev"]["dev/bleu"] == best
    assert {path.name for path in (run / "checkpoints").glob("last-*")} == {"last-00000036", "last-00000048"}
    for path in (run / "checkpoints").iterdir():
        verify_manifest(path)


def test_the_same_command_does_nothing_when_the_run_is_finished(place: Path) -> None:
    before = files(place / "runs" / "teacher" / "checkpoints"), log(place / "runs" / "teacher")
    done = quick("train", "supervised", "-c", "teacher.yaml", "--name", "teacher", *NO_TRACKING, folder=place)
    assert done.code == 0
    assert done.err.count("\n") == 1 and "holds the model: dev/bleu" in done.err
    assert (files(place / "runs" / "teacher" / "checkpoints"), log(place / "runs" / "teacher")) == before


def test_more_steps_go_on_and_fresh_begins_anew(place: Path, shared: Path) -> None:
    run = place / "runs" / "teacher"
    command = ("train", "supervised", "-c", "teacher.yaml", "--name", "teacher", *NO_TRACKING)
    done = quick(*command, "--set", "steps=56", folder=place)
    assert done.code == 0 and "after 56 steps" in done.err
    assert [report["step"] for report in log(run) if "train/nll" in report] == [8, 16, 24, 32, 40, 48, 56]
    again = quick(*command, "--fresh", folder=place)
    assert again.code == 0 and "after 48 steps" in again.err
    assert [report["step"] for report in log(run) if "train/nll" in report] == [8, 16, 24, 32, 40, 48]
    assert same(run, shared / "runs" / "teacher")


def test_the_default_name_is_that_of_the_configuration(train: Callable[..., Done], bare: Path) -> None:
    command = ("train", "supervised", "-c", "teacher.yaml", "--set", "steps=2", *NO_TRACKING)
    first, second, other = (
        quick(*command, *more, folder=bare) for more in ((), (), ("--set", "optimizer.learning_rate=1e-3"))
    )
    assert [first.code, second.code, other.code] == [0, 0, 0]
    assert first.err.splitlines()[-1:] == second.err.splitlines()  # found, and nothing to do
    assert other.err.splitlines()[-1:] != second.err.splitlines()
    names = sorted(path.name for path in (bare / "runs").iterdir())
    assert len(names) == 2 and all(re.fullmatch(r"supervised-[0-9a-f]{8}", name) for name in names)


def test_another_configuration_under_the_same_name_is_refused(place: Path) -> None:
    before = files(place / "runs" / "teacher")
    command = ("train", "supervised", "-c", "teacher.yaml", "--name", "teacher", *NO_TRACKING)
    done = quick(*command, "--set", "optimizer.learning_rate=0.02", "--set", "seed=2", folder=place)
    done.refuses(2, "runs/teacher", "optimizer", "seed", "--name", "--fresh")
    assert files(place / "runs" / "teacher") == before


def test_a_run_that_failed_before_its_first_step_may_be_changed(train: Callable[..., Done], bare: Path) -> None:
    train("train.source=origin").refuses(4, "train.tsv:1", "'origin'")
    assert train("steps=1").code == 0


def test_settings_are_read_as_yaml(train: Callable[..., Done], bare: Path) -> None:
    done = train(
        "steps=1",
        "optimizer.learning_rate=2e-3",
        "optimizer.betas=[0.8, 0.9]",
        "train={path: train.source, target_path: train.target, segmented: false, format: text}",
        "train.rows=60",
        "model.init=null",
    )
    assert done.code == 0, done.err
    written = yaml.safe_load((bare / "runs" / "run" / "config.yaml").read_text("utf-8"))
    assert written["optimizer"]["learning_rate"] == 2e-3 and written["optimizer"]["betas"] == [0.8, 0.9]
    assert written["train"]["target_path"] == "train.target" and written["train"]["rows"] == 60
    assert written["model"]["init"] is None


def test_an_environment_variable_in_a_configuration_is_filled_in(train: Callable[..., Done], bare: Path) -> None:
    file = bare / "teacher.yaml"
    file.write_text(file.read_text("utf-8").replace("path: train.tsv", "path: ${TOY_TEXT}/train.tsv"), "utf-8")
    assert train("steps=1", TOY_TEXT=str(bare)).code == 0
    train("steps=1", TOY_TEXT=None).refuses(2, "teacher.yaml", "TOY_TEXT", "not set", "export")


# ------------------------------------------------------------------------------------------------ the other trainables


def test_engine_leaves_a_student_and_its_pseudo_corpus_is_found_again(shared: Path) -> None:
    for name in ("engine", "tagger"):
        reports = log(shared / "runs" / name)
        assert {"dev/energy", "dev/energy_relaxed", "dev/energy_gap", "dev/bleu"} <= reports[-1].keys()
        assert verify_manifest(shared / "runs" / name / "model")["trainable"] == "engine"
    (pseudo,) = (shared / "runs" / "pseudo").iterdir()
    facts = json.loads((pseudo / "provenance.json").read_text("utf-8"))
    assert (facts["teacher_address"], facts["beam"], facts["sentences"]) == (TEACHER, 5, 300)
    assert len((pseudo / "pseudo.tsv").read_text("utf-8").splitlines()) == 301


def test_masked_and_distilled_go_on_from_a_model(place: Path) -> None:
    arguments = ("-c", "student.yaml", "--set", f"model.init={STUDENT}", "--set", "steps=2", *NO_TRACKING)
    masked = quick("train", "masked", *arguments, "--name", "masked", folder=place)
    assert masked.code == 0, masked.err
    distilled = quick("train", "distilled", *arguments, "--set", f"teacher={TEACHER}", "--name", "d", folder=place)
    assert distilled.code == 0, distilled.err
    assert len(list((place / "runs" / "pseudo").iterdir())) == 1  # that of `engine`
    assert not same(place / "runs" / "masked", place / "runs" / "d")


def test_a_trainable_of_ones_own_is_found_where_one_stands(bare: Path) -> None:
    (bare / "mine").mkdir()
    code = """if True:
        from trainables import supervised

        class Config(supervised.Config):
            "Mine."
            slowness: float = 2.0

        class Mine(supervised.Supervised):
            "Like `supervised`."

        TRAINABLE = Mine"""
    (bare / "mine" / "method.py").write_text(code, "utf-8")
    command = ("train", "mine.method", "-c", "teacher.yaml", "--set", "steps=1", "--name", "own", *NO_TRACKING)
    assert quick(*command, folder=bare).code == 0
    assert verify_manifest(bare / "runs" / "own" / "model")["trainable"] == "mine.method"
    assert "slowness: 2.0" in quick("config", "show", "mine.method", "-c", "teacher.yaml", folder=bare).out
    quick(*command, "--set", "slownes=1", folder=bare).refuses(2, "'slownes'", "'slowness'")


# ------------------------------------------------------------------------------------------------------------- dry runs


@pytest.mark.parametrize(
    "trainable, config, parts",
    [
        (
            "supervised",
            "teacher.yaml",
            ["300 sentences of train.tsv", "12 pairs of dev.tsv", "transformer", "48 steps"],
        ),
        ("masked", "student.yaml", ["masked", "48 steps of about 128 tokens", "dev/bleu (higher is better)"]),
        ("distilled", "student.yaml", ["300 translations of beam 3", TEACHER, "dev/bleu"]),
        ("engine", "student.yaml", ["masked", "dev/energy (lower is better)", "49 pieces"]),
    ],
)
def test_a_dry_run_checks_everything_and_writes_nothing(trainable: str, config: str, parts, place: Path) -> None:
    sets = {"distilled": [f"teacher={TEACHER}", "beam=3"], "engine": [f"teacher={TEACHER}"]}.get(trainable, [])
    before = files(place)
    done = quick("train", trainable, "-c", config, "--dry-run", *(p for s in sets for p in ("--set", s)), folder=place)
    assert (done.code, done.err) == (0, "")
    for part in [*parts, "Nothing was trained and nothing was written."]:
        assert part in done.out
    assert files(place) == before


def test_a_dry_run_meets_what_would_stop_the_run(place: Path) -> None:
    command = ("train", "engine", "-c", "student.yaml", "--dry-run")
    quick(*command, folder=place).refuses(2, "'teacher'", "missing", "student.yaml")
    quick(*command, "--set", f"teacher={STUDENT}", folder=place).refuses(2, STUDENT, "not autoregressive")
    wrong = ("--set", f"teacher={TEACHER}", "--set", "dev.path=nowhere.tsv")
    quick(*command, *wrong, folder=place).refuses(4, "nowhere.tsv does not exist")
