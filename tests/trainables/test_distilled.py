"""The pseudo-corpus is the teacher's beam search, written once, in shards; training on it is that of `masked`."""

import json
from pathlib import Path

import pytest
import torch

from energymt import distillation, shards
from energymt.data.corpus import DataConfig, read_corpus
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.decoding.translate import DecodingOptions, Translator
from energymt.distillation import pseudo_corpus
from energymt.errors import ConfigurationError
from energymt.models import AutoregressiveModel, load_translator
from tests import toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("ENERGYMT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def teacher(folder: Path):
    return load_translator(folder / "recurrent-toy")


def data_of(folder: Path, **changes) -> DataConfig:
    return DataConfig(path=str(folder / "train.tsv"), source="source", target="target", **changes)


class Interrupted(Exception):
    """What a test does to a run."""


def test_the_targets_are_the_teacher_s_beam_search(folder: Path, teacher) -> None:
    pseudo = read_corpus(pseudo_corpus(teacher, "the teacher", data_of(folder), beam=3))
    own = read_corpus(data_of(folder))
    translations = Translator(teacher, DecodingOptions(beam=3)).translate(own.source)
    wanted = [(source, found[0][0]) for source, found in zip(own.source, translations, strict=True) if found[0][0]]
    assert list(zip(pseudo.source, pseudo.target, strict=True)) == wanted
    assert len(wanted) > 30
    greedy = read_corpus(pseudo_corpus(teacher, "the teacher", data_of(folder), beam=1))
    assert greedy.target != pseudo.target


def test_it_is_written_once_and_keyed_by_teacher_text_and_beam(folder: Path, teacher, monkeypatch) -> None:
    first = pseudo_corpus(teacher, "a", data_of(folder), beam=2)
    others = [
        pseudo_corpus(teacher, "a", data_of(folder), beam=3),
        pseudo_corpus(teacher, "a", data_of(folder, rows=9), beam=2),
        pseudo_corpus(load_translator(folder / "transformer-toy"), "a", data_of(folder), beam=2),
    ]
    assert len({first.path, *(other.path for other in others)}) == 4

    def never(self, texts, **prefixes):
        raise AssertionError("translated again")

    monkeypatch.setattr(distillation.Translator, "translate", never)
    assert pseudo_corpus(teacher, "elsewhere", data_of(folder), beam=2).path == first.path
    provenance = json.loads((Path(first.path).parent / "provenance.json").read_text())
    assert provenance["teacher_address"] == "a"


def test_a_pair_of_text_files_is_distilled_too(folder: Path, teacher, tmp_path: Path) -> None:
    own = read_corpus(data_of(folder, rows=5))
    (tmp_path / "text.de").write_text("".join(f"{source}\n" for source in own.source))
    (tmp_path / "text.en").write_text("x\n" * 5)
    data = DataConfig(path=str(tmp_path / "text.de"), target_path=str(tmp_path / "text.en"))
    found = read_corpus(pseudo_corpus(teacher, "a", data, beam=2))
    assert found.target == read_corpus(pseudo_corpus(teacher, "a", data_of(folder, rows=5), beam=2)).target


def test_limits_and_other_settings_of_the_data_stay(folder: Path, teacher) -> None:
    found = pseudo_corpus(teacher, "a", data_of(folder, max_target_tokens=6, max_source_tokens=7))
    assert (found.max_target_tokens, found.max_source_tokens) == (6, 7)


def test_provenance_says_where_it_came_from(folder: Path, teacher) -> None:
    found = pseudo_corpus(teacher, "runs:/1/model", data_of(folder), beam=2)
    provenance = json.loads((Path(found.path).parent / "provenance.json").read_text())
    assert provenance["teacher_address"] == "runs:/1/model"
    assert provenance["beam"] == 2
    assert provenance["sentences"] == 40
    assert len(provenance["teacher"]) == len(provenance["text"]) == 64


def test_an_interrupted_run_goes_on_with_the_shards_that_are_missing(folder: Path, teacher, runs, monkeypatch) -> None:
    whole = read_corpus(pseudo_corpus(teacher, "a", data_of(folder), beam=2))
    monkeypatch.setenv("ENERGYMT_RUNS", str(runs / "again"))
    monkeypatch.setattr(shards, "SHARD", 15)
    real, done = Translator.translate, []

    def dies(self, texts, **prefixes):
        if len(done) == 2:
            raise Interrupted
        done.append(len(texts))
        return real(self, texts, **prefixes)

    monkeypatch.setattr(distillation.Translator, "translate", dies)
    with pytest.raises(Interrupted):
        pseudo_corpus(teacher, "a", data_of(folder), beam=2)
    assert done == [15, 15]
    assert not list((runs / "again").glob("pseudo/*/provenance.json"))
    rest = []

    def counts(self, texts, **prefixes):
        rest.append(len(texts))
        return real(self, texts, **prefixes)

    monkeypatch.setattr(distillation.Translator, "translate", counts)
    pieces = read_corpus(pseudo_corpus(teacher, "a", data_of(folder), beam=2))
    assert rest == [10]
    assert (pieces.source, pieces.target) == (whole.source, whole.target)


def test_tabs_and_line_ends_in_a_source_do_not_break_the_corpus(folder: Path, teacher, tmp_path: Path) -> None:
    own = read_corpus(data_of(folder))
    odd = [f"{own.source[0]}\t{own.source[1]}", f"{own.source[2]}\r{own.source[3]}", own.source[4]]
    lines = [json.dumps({"source": source, "target": "x"}) for source in odd]
    (tmp_path / "odd.jsonl").write_text("\n".join(lines) + "\n")
    data = DataConfig(path=str(tmp_path / "odd.jsonl"), source="source", target="target")
    found = read_corpus(pseudo_corpus(teacher, "a", data, beam=2))
    assert [source.split() for source in found.source] == [source.split() for source in odd]


def test_segmented_text_stays_segmented(tmp_path: Path) -> None:
    lines = ["un@@ der stand", "be stand", "un@@ be der"] * 3
    words = SentencePieceVocabulary.train(lines, 30, segmented=True, joiner="@@")
    path = toy.save_model(tmp_path, "recurrent-toy", words)
    (tmp_path / "train.tsv").write_text("source\ttarget\n" + "".join(f"{line}\tx\n" for line in lines))
    found = pseudo_corpus(load_translator(path), "a", data_of(tmp_path, segmented=True, joiner="@@"), beam=2)
    pseudo = read_corpus(found)
    assert pseudo.segmented
    ids = [words.encode(target) for target in pseudo.target]
    translated = Translator(load_translator(path), DecodingOptions(beam=2)).translate(pseudo.source)
    assert any("@@" in target for target in pseudo.target)
    assert ids == [list(candidates[0][1].ids) for candidates in translated]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_teacher_on_the_cpu_translates_on_the_device_that_is_asked_for(folder: Path, teacher) -> None:
    device = torch.device("cuda")
    found = read_corpus(pseudo_corpus(teacher, "a", data_of(folder), beam=2, device=device))
    assert teacher.device.type == "cuda" and len(found) > 30


# ------------------------------------------------------------------------------------------------------- the trainable


@pytest.mark.parametrize("name", ["distilled", "engine"])
@pytest.mark.parametrize("wanted, device", [("auto", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")])
def test_the_teacher_translates_where_the_run_trains(name, wanted, device, folder: Path, monkeypatch) -> None:
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(AutoregressiveModel, "to", lambda self, where: moved.append(str(where)) or self)
    lengths = {"target_lengths": "teacher"} if name == "engine" else {}
    toy.make(name, toy.config(name, folder, device=wanted, **lengths))
    assert moved == [device]


def test_it_trains_on_the_pseudo_corpus_with_the_teacher_s_vocabulary(folder: Path, teacher) -> None:
    settings = toy.config("distilled", folder, model={"variant": "masked-toy", "changes": toy.SMALL["masked-toy"]})
    trainable = toy.make("distilled", settings)
    words = trainable.text.vocabulary
    assert words.fingerprint == teacher.vocabulary.fingerprint
    pseudo = read_corpus(pseudo_corpus(teacher, "a", data_of(folder), beam=5))
    kept = [(s, t) for s, t in zip(pseudo.source, pseudo.target, strict=True) if words.encode(t)]
    assert [list(ids) for ids in trainable.text.train.target_ids] == [words.encode(target) for _, target in kept]
    assert (
        trainable.text.dev_corpus.target
        == read_corpus(DataConfig(path=str(folder / "dev.tsv"), source="source", target="target")).target
    )
    batches = trainable.plan.iterate()
    reports = toy.train(trainable, [next(batches) for _ in range(3)])
    assert reports[0].keys() >= {"train/nll", "train/length"}


def test_a_student_of_another_vocabulary_than_the_teacher_may_be_distilled(folder: Path, tmp_path: Path) -> None:
    """Sequence-level distillation goes through text; only energies need one vocabulary."""
    words = toy.vocabulary(folder)
    lines = (folder / "train.tsv").read_text(encoding="utf-8").split("\n")[1:]
    other = SentencePieceVocabulary.train([*lines, "zzz yyy"], 200, model_type="word")
    assert other.fingerprint != words.fingerprint
    path = toy.save_model(tmp_path, "masked-toy", other)
    trainable = toy.make("distilled", toy.config("distilled", folder, model={"init": str(path)}))
    assert trainable.text.vocabulary.fingerprint == other.fingerprint


def test_a_non_autoregressive_teacher_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="not autoregressive"):
        toy.make("distilled", toy.config("distilled", folder, teacher=str(folder / "masked-toy")))


def test_each_part_is_distilled_behind_its_prefix_and_keeps_it(folder: Path, teacher, tmp_path: Path) -> None:
    own = read_corpus(data_of(folder, rows=8))
    first, second = (f"{own.source[row].split()[0]} " for row in (0, 1))  # words that the teacher knows
    part = {"path": str(folder / "dev.tsv"), "source": "source", "prefix": second}
    data = data_of(folder, rows=8, prefix=first, also=[part], max_source_tokens=7)
    found = pseudo_corpus(teacher, "a", data, beam=2)
    assert [found.prefix, *(part.prefix for part in found.also)] == [first, second] and found.max_source_tokens == 7
    assert len({found.path, found.also[0].path, pseudo_corpus(teacher, "a", data_of(folder, rows=8), beam=2).path}) == 3
    text = read_corpus(data, need_target=False)
    translations = Translator(teacher, DecodingOptions(beam=2)).translate(text.inputs)
    pairs = zip(text.source, text.inputs, translations, strict=True)
    wanted = [(source, given, best) for source, given, [(best, _), *_] in pairs if best]
    pseudo = read_corpus(found)
    assert list(zip(pseudo.source, pseudo.inputs, pseudo.target or [], strict=True)) == wanted
