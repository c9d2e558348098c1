"""A quality estimator at work in a training, in this process: it judges, serves an energy, learns, and is resumed."""

from pathlib import Path

import pytest
import torch

from energymt.energies import QualityEnergy
from energymt.errors import ConfigurationError, DataError, StorageError
from energymt.models.learning import EstimatorLearner, Learns, Lesson, LessonOptions, select_groups
from energymt.models.scoring import score_lines
from energymt.quality import Quality, open_judge, open_original, open_quality
from tests import bridged, estimators, lessons

CPU = torch.device("cpu")
SOURCES, TRANSLATIONS, REFERENCES = estimators.SOURCES, estimators.TRANSLATIONS, estimators.REFERENCES
OPTIONS = LessonOptions(rate=1e-2)


def opened(learns: Learns | None = "head", kind: str = "kiwi") -> Quality:
    return open_quality(str(estimators.converted(kind)), CPU, learns=learns)


def lesson(seed: int) -> Lesson:
    return lessons.lesson(estimators.estimator("kiwi"), seed=seed)


def learn(quality: Quality, *seeds: int) -> list[dict[str, float]]:
    assert quality.pupil is not None
    return [quality.pupil.learn(lesson(seed), seed, 0, 1, OPTIONS)() for seed in seeds]


def scores(quality: Quality) -> list[float]:
    return list(quality.score(SOURCES, TRANSLATIONS))


def energies(quality: Quality) -> list[float]:
    words = bridged.mbart()
    energy = QualityEnergy(quality.estimator, words)
    return energy.discrete(bridged.source_of(words, SOURCES), *bridged.ids_of(words, TRANSLATIONS)).tolist()


@pytest.mark.parametrize("kind", estimators.ENERGIES)
def test_what_judges_and_what_trains_is_one_estimator(kind: str) -> None:
    quality = opened(None, kind)
    wanted = score_lines(estimators.estimator(kind), SOURCES, TRANSLATIONS)
    assert quality.pupil is None
    assert scores(quality) == pytest.approx(wanted)
    assert energies(quality) == pytest.approx([-score for score in wanted], abs=1e-5)
    quality.close()


@pytest.mark.parametrize("learns", ["head", "lora", "all"])
def test_what_it_learns_is_what_it_says_from_then_on(learns: Learns) -> None:
    quality, frozen = opened(learns), estimators.estimator("kiwi")
    before = scores(quality)
    assert before == pytest.approx(score_lines(frozen, SOURCES, TRANSLATIONS), abs=1e-6)
    reports = learn(quality, *[1] * 12)
    assert reports[-1]["loss"] < reports[0]["loss"]
    after = scores(quality)
    assert max(abs(a - b) for a, b in zip(after, before, strict=True)) > 1e-2
    assert energies(quality) == pytest.approx([-score for score in after], abs=1e-5)
    original = open_original(str(estimators.converted("kiwi")), CPU)
    assert list(original(SOURCES, TRANSLATIONS, REFERENCES)) == pytest.approx(before, abs=1e-6)


def test_a_step_is_that_of_the_learner() -> None:
    quality, learner = opened(), EstimatorLearner(estimators.estimator("kiwi"), "head")
    [report] = learn(quality, 3)
    found = learner.differentiate(lesson(3), OPTIONS.form)
    learner.prepare(1, found.gradient_P / found.count, OPTIONS, {})
    learner.activate(1)
    assert scores(quality) == pytest.approx(score_lines(learner.estimator, SOURCES, TRANSLATIONS), abs=1e-6)
    assert report["loss"] == pytest.approx(found.loss / found.count)


def test_a_lesson_without_a_sentence_is_none() -> None:
    with pytest.raises(DataError, match=r"The lesson of step 4 holds no sentence"):
        opened().pupil.learn(select_groups(lesson(1), 0, 0), 4, 0, 1, OPTIONS)


@pytest.mark.parametrize("learns", ["head", "lora"])
def test_a_resumed_one_learns_as_if_never_interrupted(learns: Learns, tmp_path: Path) -> None:
    whole, first, second = opened(learns), opened(learns), opened(learns)
    learn(whole, *range(6))
    learn(first, *range(3))
    first.pupil.save_state(tmp_path)
    second.pupil.load_state(tmp_path)
    assert scores(second) == scores(first)
    reports = learn(second, *range(3, 6))
    assert scores(second) == scores(whole)
    assert scores(first) != scores(whole)
    assert all(report["gradient_norm"] > 0 for report in reports)
    first.pupil.save_state(tmp_path)  # over the former
    opened(learns).pupil.load_state(tmp_path)


def test_the_state_of_another_estimator_is_refused(tmp_path: Path) -> None:
    (first := opened("head")).pupil.save_state(tmp_path)
    with pytest.raises(ConfigurationError, match=r"The state holds .* learnt weights and this estimator learns"):
        opened("lora").pupil.load_state(tmp_path)
    with pytest.raises(StorageError, match="nowhere"):
        first.pupil.load_state(tmp_path / "nowhere")


def test_two_workers_cannot_teach_what_each_has_for_itself() -> None:
    quality = opened()
    before = scores(quality)
    with pytest.raises(ConfigurationError, match="2 workers teach an estimator that each has for itself: serve it"):
        quality.pupil.learn(lesson(1), 0, 0, 2, OPTIONS)
    assert scores(quality) == before


@pytest.mark.parametrize("kind", ["regression", "xcomet"])
def test_a_metric_that_is_no_energy_is_refused(kind: str) -> None:
    with pytest.raises(ConfigurationError, match=r"needs references or counts error spans: .* like COMET-KIWI"):
        opened(None, kind)


@pytest.mark.parametrize("kind", estimators.KINDS)
def test_every_metric_can_judge(kind: str) -> None:
    judge, model = open_judge(str(estimators.converted(kind)), CPU), estimators.estimator(kind)
    references = REFERENCES if "ref" in model.config.parts else None
    wanted = score_lines(model, SOURCES, TRANSLATIONS, references)
    assert list(judge(SOURCES, TRANSLATIONS, REFERENCES)) == pytest.approx(wanted)
