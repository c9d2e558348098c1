"""What QE-EBM, REINFORCE and PPO share: resumed runs, cut steps, sources, neighbours, alarms, and frozen judges."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from energymt.data.batching import collate
from energymt.data.corpus import DataConfig, read_corpus
from energymt.data.neighbours import build_neighbours
from energymt.data.sentence_vectors import SentenceEncoder
from energymt.development import translate_dev
from energymt.energies import QualityEnergy
from energymt.errors import ConfigurationError, DataError
from energymt.optimisation import make_optimizer
from energymt.records import StepBatch
from tests import toy

DYNAMIC = {"learns": "all", "sentences": 4, "rate": 0.01}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("qe_ebm", {}),
    "gradnorm": ("qe_ebm", {"balance": {"kind": "gradnorm"}}),
    "dynamic": ("qe_ebm", {"dynamic": DYNAMIC}),
    "leave-one-out": ("reinforce", {}),
    "running": ("reinforce", {"baseline": "running", "decay": 0.5}),
    "group": ("ppo", {}),
    "value": ("ppo", {"advantage": "value"}),
}
DROPOUT = {"variant": "transformer-toy", "changes": {**toy.SMALL["transformer-toy"], "dropout": 0.2}}
every_run = pytest.mark.parametrize("name", RUNS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.scored_world(tmp_path_factory.mktemp("world"))


def made(name: str, folder: Path, double: bool = False, **changes: Any) -> Any:
    trainable, settings = RUNS[name]
    return toy.make(trainable, toy.config(trainable, folder, **{**settings, **changes}), double)


# --------------------------------------------------------------------------------------------------------------- resume


def run(name: str, folder: Path, out: Path, stop_at: int | None = None, **changes: Any) -> tuple[Any, Any, list[Any]]:
    """One call of `fit`, with dropout: the trainable, the result and all that was reported."""
    settings = {"model": DROPOUT, "vocabulary": {"path": str(folder / "transformer-toy")}, **changes}
    trainable = made(name, folder, **settings)
    return trainable, *toy.fitted(trainable, out, stop_at)


def left(out: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint: weights, moments, and what the estimator learnt."""
    newest = max(out.glob("last-*"))
    files = sorted(newest.rglob("*.safetensors"))
    return {f"{file.name}.{k}": v for file in files for k, v in safetensors.torch.load_file(file).items()}


@every_run
def test_a_resumed_run_is_the_uninterrupted_one(name: str, folder: Path, tmp_path: Path) -> None:
    whole, wanted, reports = run(name, folder, tmp_path / "whole")
    before: list[Any] = []
    for at in (1, 4):  # before and behind the first evaluation; the next step draws on what was remembered
        _, first, some = run(name, folder, tmp_path / "cut", stop_at=at)
        assert first.interrupted and first.progress.step == at
        before += some
    resumed, result, after = run(name, folder, tmp_path / "cut")
    assert before + after == reports
    ours, theirs = left(tmp_path / "cut"), left(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert result.metrics == wanted.metrics
    assert resumed.monitor.history == whole.monitor.history
    assert len(whole.monitor.history) == 4  # the start, two evaluations, and the model that was left in place
    assert reports[0][0] == 0 and "dev/choice" in reports[0][1]
    assert resumed.balance.state() == whole.balance.state()


def test_what_a_checkpoint_holds(folder: Path, tmp_path: Path) -> None:
    names = {name: {key.split(".", 2)[2] for key in kept(name, folder, tmp_path)} for name in ("dynamic", "value")}
    assert "weights_P" in names["dynamic"]
    assert {"heads.value.weight", "heads.value.bias"} <= names["value"]
    run("running", folder, tmp_path / "running", steps=2)
    state = json.loads((tmp_path / "running" / "last-00000002" / "baseline.json").read_text("utf-8"))
    assert isinstance(state, float)


def kept(name: str, folder: Path, out: Path) -> dict[str, torch.Tensor]:
    run(name, folder, out / name, steps=2)
    return left(out / name)


# ----------------------------------------------------------------------------------------- 1 × 8 = 4 × 2 accumulated

WHOLE = ([[list(range(8))], [[8, 9]]], [[list(range(10, 16))], [list(range(16, 20))]])
CUT = ([[[0, 1], [2, 3], [4, 5], [6, 7]], [[8, 9]]], [[[10, 11], [12], [13, 14, 15]], [[16, 17], [18, 19]]])


def steps_of(trainable: Any, labelled: list[list[list[int]]], unlabelled: list[list[list[int]]]) -> list[StepBatch]:
    def batches(cut: list[list[int]]) -> Any:
        return tuple(collate(trainable.text.train, chosen) for chosen in cut)

    return [StepBatch(n, 0, batches(a), batches(b)) for n, (a, b) in enumerate(zip(labelled, unlabelled, strict=True))]


@every_run
def test_one_batch_is_several_accumulated(name: str, folder: Path) -> None:
    found = []
    for cut in (WHOLE, CUT):
        trainable = made(name, folder, double=True)
        before = toy.weights(trainable)
        reports = toy.train(trainable, steps_of(trainable, *cut))
        found.append((toy.weights(trainable), [without_times(report) for report in reports]))
    (whole, reports), (cut_weights, cut_reports) = found
    # Lessons are single precision, and Adam divides what they change by its own size.
    tolerance = 1e-4 if name == "dynamic" else 1e-8
    for key, weight in whole.items():
        torch.testing.assert_close(weight, cut_weights[key], rtol=0, atol=tolerance)
    assert max((weight - before[key]).abs().max() for key, weight in whole.items()) > 1e-3
    for one, several in zip(reports, cut_reports, strict=True):
        one.pop("train/clipped", None)  # a share of the tokens of each micro-batch
        assert one == pytest.approx({k: several[k] for k in one}, rel=1e-3 if name == "dynamic" else 1e-6, abs=1e-7)


def without_times(report: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in report.items() if not key.startswith("time/") and not key.endswith("_s")}


# ------------------------------------------------------------------------------------------------------- the estimator


@pytest.mark.parametrize("name", [name for name in RUNS if name != "dynamic"])
def test_the_estimator_and_the_start_stay_as_they_were(name: str, folder: Path) -> None:
    trainable = made(name, folder, judge=str(folder / "judge"))
    frozen = {"estimator": trainable.quality.estimator, "start": trainable.start}
    before = {part: {k: v.clone() for k, v in module.state_dict().items()} for part, module in frozen.items()}
    batches = trainable.plan.iterate()
    values = trainable.evaluate()
    toy.train(trainable, [next(batches) for _ in range(3)])
    optimised = make_optimizer(trainable.model, trainable.config.optimizer).param_groups
    learnt = {id(weight) for group in optimised for weight in group["params"]}
    for part, module in frozen.items():
        assert all(torch.equal(before[part][k], v) for k, v in module.state_dict().items())
        assert all(w.grad is None and not w.requires_grad and id(w) not in learnt for w in module.parameters())
        assert not module.training
    assert values["dev/judge"] != values["dev/quality"]


@every_run
def test_the_start_is_looked_at_before_anything_learns(name: str, folder: Path, tmp_path: Path) -> None:
    trainable, result, reports = run(name, folder, tmp_path, steps=1)
    start = trainable.monitor.history[0]
    assert reports[0][0] == 0 and all(reports[0][1][key] == value for key, value in start.items())
    assert start["dev/kl_to_start"] == pytest.approx(0.0, abs=1e-7)
    assert start.get("dev/drift", 0.0) == 0.0
    assert "0" in result.progress.kept or "1" in result.progress.kept, "the start may be the best"


# ---------------------------------------------------------------------------------------------------------------- text


def test_without_unlabelled_text_the_labelled_sources_are_taken_again(folder: Path) -> None:
    trainable = made("static", folder)
    sources = {tuple(ids) for ids in trainable.text.train.source_ids}
    found = seen(trainable)
    assert found <= sources and len(found) > 20
    more = tmp_text(folder, ["va", "va va", "va va va"])
    other = made("static", folder, unlabelled={"path": str(more), "format": "text"})
    assert seen(other) == {tuple(other.text.vocabulary.encode_source(text)) for text in ("va", "va va", "va va va")}


def tmp_text(folder: Path, lines: Sequence[str]) -> Path:
    (folder / "more.txt").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return folder / "more.txt"


def seen(trainable: Any, steps: int = 6) -> set[tuple[int, ...]]:
    """The unlabelled sources of the first steps."""
    batches, found = trainable.plan.iterate(), set()
    for _ in range(steps):
        for micro in next(batches).unlabelled:
            ids, mask = micro.source.ids_BS, micro.source.mask_BS
            found |= {tuple(row[kept].tolist()) for row, kept in zip(ids, mask, strict=True)}
    return found


def test_a_target_of_the_unlabelled_text_is_not_read(folder: Path) -> None:
    columns = {"source": "source", "target": "no such column"}
    made("static", folder, unlabelled={"path": str(folder / "train.tsv"), **columns})


@pytest.mark.parametrize("name", ["static", "dynamic", "leave-one-out", "group"])
def test_task_prefixes_are_read_by_the_translator_alone(name: str, folder: Path, monkeypatch) -> None:
    """Several parts, each with a prefix of its own or none: estimators see the sources that people wrote."""
    text = read_corpus(DataConfig(path=str(folder / "train.tsv"), source="source", target="target"))
    starts = list(dict.fromkeys(line.split()[0] for line in text.source))
    first, second, third = (f"{word} " * 2 for word in starts[:3])  # as no sentence begins
    column, back = {"source": "source", "target": "target"}, {"source": "target", "target": "source"}
    paths = [{"path": str(folder / file)} for file in ("train.tsv", "dev.tsv")]
    trainable = made(
        name,
        folder,
        train={**paths[0], **column, "prefix": first, "also": [{**paths[0], **back, "prefix": second}]},
        dev={**paths[1], **column, "prefix": second, "also": [{**paths[1], **back}]},
        unlabelled={**paths[0], **back, "prefix": third, "also": [{**paths[0], "source": "source"}]},
    )
    reader, words = trainable.energy.bridge.estimator, trainable.text.vocabulary
    dev = trainable.text.dev_corpus
    plain = {*text.source, *(text.target or []), *dev.source}
    known = {tuple(reader.encode_source(words.as_plain_text(line))) for line in plain}
    seen: list[tuple[int, ...]] = []
    begin = QualityEnergy._begin

    def watched(self, source, target):
        read = self.bridge.source(source)
        seen.extend(tuple(row[kept].tolist()) for row, kept in zip(read.ids_BS, read.mask_BS, strict=True))
        return begin(self, source, target)

    monkeypatch.setattr(QualityEnergy, "_begin", watched)
    batches = trainable.plan.iterate()
    inputs = {tuple(words.encode_source(line)) for line in [third + t for t in text.target or []] + text.source}
    batch = next(batches)
    for micro in batch.unlabelled:
        rows = zip(micro.source.ids_BS, micro.source.mask_BS, strict=True)
        assert {tuple(row[kept].tolist()) for row, kept in rows} <= inputs
    assert {tuple(ids.tolist()) for ids in trainable.text.train.source_ids} == {
        tuple(words.encode_source(line)) for line in trainable.text.train_corpus.inputs
    }
    toy.train(trainable, [batch, next(batches)])
    heard: list[str] = []
    judged = trainable.monitor.judges["quality"]
    trainable.monitor.judges["quality"] = lambda s, t: (heard.extend(s), judged(s, t))[1]
    values = trainable.evaluate()
    given = replace(dev, source=dev.inputs, prefixes=None)
    texts = [text for text, _ in translate_dev(trainable.model, given)]
    assert values["dev/quality"] == pytest.approx(float(np.mean(judged(dev.source, texts))), abs=1e-5)
    assert seen and set(seen) <= known
    assert set(heard) <= set(dev.source) and heard


def letters(texts: Sequence[str]) -> Any:
    """How often each letter stands in a text."""
    return np.array([[1.0 + text.count(chr(97 + n)) for n in range(26)] for text in texts], dtype=np.float32)


@pytest.fixture(scope="module")
def near(folder: Path) -> Path:
    """Neighbours of the training text among itself."""
    text = read_corpus(DataConfig(path=str(folder / "train.tsv"), source="source"), need_target=False)
    build_neighbours(folder / "near", text, text, SentenceEncoder("letters", "f" * 64, letters))
    return folder / "near"


def test_neighbours_stand_beside_their_labelled_sources(folder: Path, near: Path) -> None:
    trainable = made("static", folder, neighbours=str(near), unlabelled_tokens_per_step=64)
    rows_N = np.load(near / "neighbours.npy")[:, 0]
    batch = next(trainable.plan.iterate())
    assert len(batch.micro_batches) > 1
    labelled, beside = (
        [row for micro in side for row in micro.sentence_ids_B.tolist()]
        for side in (batch.micro_batches, batch.unlabelled)
    )
    assert sorted(beside) == sorted(set(rows_N[labelled].tolist()))
    (report,) = toy.train(trainable, [batch])
    assert np.isfinite(report["train/energy"]) and report["train/norm_unlabelled"] > 0


def test_neighbours_of_other_text_are_refused(folder: Path, near: Path) -> None:
    with pytest.raises(DataError, match=r"another unlabelled text, 40 sentences of .*train\.tsv.* find them anew"):
        made("static", folder, neighbours=str(near), unlabelled={"path": str(folder / "dev.tsv"), "source": "source"})


# --------------------------------------------------------------------------------------------------------------- alarms


def test_an_alarm_is_logged_and_ends_the_run_where_it_is_told_to(folder: Path, tmp_path: Path) -> None:
    baseline = {"least_chrf": 0.0, "translates": 0.0}
    alarm = {"alarms": {"kl_to_start": 1e-9, **baseline}}
    _, result, reports = run("static", folder, tmp_path / "on", **alarm)
    assert result.progress.step == 6
    assert [values.get("gaming/alarm/kl_to_start") for _, values in reports if "dev/choice" in values][1:] == [1.0, 1.0]
    for _ in range(2):  # a second start does not take it up
        trainable, result, reports = run("static", folder, tmp_path / "stopped", **alarm, stop_at_alarm=True)
        assert result.progress.step == 3 and result.progress.stopped_early and not result.interrupted
    assert reports == []
    assert trainable.monitor.history[0]["dev/kl_to_start"] == pytest.approx(0.0, abs=1e-7)
    _, result, _ = run("static", folder, tmp_path / "silent", stop_at_alarm=True, alarms={"least_chrf": 100.0})
    assert result.progress.step == 6


def test_the_judge_can_choose(folder: Path) -> None:
    trainable = made("static", folder, choose_by="judge", judge=str(folder / "judge"))
    values = trainable.evaluate()
    assert values["dev/choice"] == values["dev/judge"] != values["dev/chrf"]
    assert trainable.METRIC == "dev/judge" and made("static", folder).METRIC == "dev/chrf"
    with pytest.raises(ConfigurationError, match="no judge is named"):
        made("static", folder, choose_by="judge")


def test_a_micro_batch_leaves_room_for_samples_that_are_longer_than_their_sources(folder: Path) -> None:
    trainable = made("static", folder, tokens_per_micro_batch=56, unlabelled_tokens_per_step=200)
    batches = trainable.plan.iterate()
    sizes = {len(micro) for _ in range(4) for micro in next(batches).unlabelled}
    width = max(7, *(len(ids) for ids in trainable.text.train.source_ids))
    assert max(sizes) * 2 * 7 <= 56 < max(sizes) * 2 * 2 * width


def test_a_target_file_beside_unlabelled_text_is_not_read(folder: Path, tmp_path: Path) -> None:
    lines = [line.split("\t")[0] for line in (folder / "train.tsv").read_text("utf-8").splitlines()[1:]]
    (tmp_path / "text.de").write_text("".join(f"{line}\n" for line in lines), "utf-8")
    trainable = made("static", folder, unlabelled={"path": str(tmp_path / "text.de"), "target_path": "nowhere"})
    assert len(seen(trainable)) > 1
