"""ENGINE with a quality estimator beside the teacher: its energy is added, and what it trains is judged and watched."""

from functools import partial
from pathlib import Path

import pytest
import torch

from energymt.data.batching import collate
from energymt.data.hub_pieces import hub_vocabulary
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.development import translate_dev
from energymt.energies import QualityEnergy, WeightedEnergy
from energymt.errors import ConfigurationError, StorageError
from energymt.models.estimator_folder import load_estimator
from energymt.models.estimator_variants import make_estimator
from energymt.models.scoring import score_lines
from energymt.operators import Noise
from energymt.records import Prediction, StepBatch
from tests import estimators, tiny, toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.world(tmp_path_factory.mktemp("world"))


made = partial(toy.ready, "engine")


def write_estimator(folder: Path, texts: list[str]) -> Path:
    """One over pieces of these texts, with random weights."""
    words = SentencePieceVocabulary.train(texts, 60)
    torch.manual_seed(4)
    sizes = {"width": 16, "feedforward": 24, "layers": 1, "heads": 2}
    model = make_estimator("estimator-toy", hub_vocabulary(words), "unified_metric", **sizes)
    tiny.shake(model, 0.3)
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def estimator(folder: Path) -> Path:
    """Of the toy language."""
    return write_estimator(folder / "estimator", (folder / "train.tsv").read_text("utf-8").split())


@pytest.mark.parametrize("student", ["masked-toy", "tagger-toy"])
@pytest.mark.parametrize("feed", ["ST", "GX"])
def test_the_loss_is_that_of_the_weighted_energy(student: str, feed: str, folder: Path, estimator: Path) -> None:
    settings = {"model": {"init": str(folder / student)}, "feed": "GX", "score": "SG"}
    trainable = made(folder, **settings, quality=str(estimator), quality_weight=3.0, quality_feed=feed, length_weight=0)
    batch = collate(trainable.text.train, range(5))
    (step,) = trainable.steps(StepBatch(4, 0, (batch,)))
    terms = {term.name: term for term in step.losses(batch)()}
    ours = weight_gradients(trainable.model, sum(term.weight * term.sum for term in terms.values()))
    quality = QualityEnergy(load_estimator(estimator), trainable.text.vocabulary, feed)
    energy = WeightedEnergy({"teacher": (1.0, trainable.energy), "quality": (3.0, quality)})
    mask_BT = batch.target_mask_BT
    logits_BTV = trainable.model.predict(trainable.model.encode(batch.source), trainable.model.unseen(mask_BT), mask_BT)
    prediction = Prediction(logits_BTV, mask_BT, noise=Noise(trainable.config.seed, 4, batch.sentence_ids_B))
    parts = energy.parts(batch.source, prediction)
    assert terms["energy"].sum.item() == pytest.approx(parts["teacher"].sum().item(), rel=1e-5)
    assert terms["quality"].sum.item() == pytest.approx(parts["quality"].sum().item(), rel=1e-5)
    wanted = weight_gradients(trainable.model, energy(batch.source, prediction).sum())
    assert wanted.keys() == ours.keys() and len(wanted) > 5
    for name, gradient in wanted.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    assert set(step.terms) == terms.keys() == step.counts(batch).keys() == {"energy", "quality", "length"}
    assert terms["quality"].count == step.counts(batch)["quality"] == 5.0


def weight_gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the weights that a loss depends on, apart from the length head, which no energy reaches."""
    model.zero_grad()
    loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    return {name: gradient for name, gradient in found.items() if "length" not in name}


def test_the_teacher_reads_while_the_estimator_is_waited_for(folder: Path, estimator: Path, monkeypatch) -> None:
    """And a sentence that could not be scored leaves the gradient of the others as it is."""
    trainable = made(folder, quality=str(estimator), masked_weight=0.5)
    happened: list[str] = []

    class Elsewhere:
        """In another process, as a pool is."""

        def submit(self, source, target):
            happened.append("asked")
            score_B = here(source, target)
            self.score_B = torch.where(torch.arange(len(score_B)) == 1, torch.full_like(score_B, torch.nan), score_B)
            return self

        def result(self):
            happened.append("waited")
            return self.score_B

    here, energy = trainable.quality_energy.estimator, trainable.energy
    trainable.quality_energy.estimator = Elsewhere()
    monkeypatch.setattr(trainable, "energy", lambda *given: happened.append("read") or energy(*given))
    trainable.energy.teacher = energy.teacher
    batch = collate(trainable.text.train, range(3))
    (step,) = trainable.steps(StepBatch(4, 0, (batch,)))
    pending = step.losses(batch)
    assert happened == ["asked", "read"]
    term = next(term for term in pending() if term.name == "quality")
    assert happened == ["asked", "read", "waited"]
    assert term.sum.isfinite() and term.count == 3.0
    gradients = weight_gradients(trainable.model, term.sum)
    assert gradients and all(gradient.isfinite().all() for gradient in gradients.values())


def test_dev_quality_is_that_of_the_text_and_the_estimator_stays(folder: Path, estimator: Path) -> None:
    settings = {"quality": str(estimator), "quality_weight": 20.0}
    trainable = made(folder, **settings, steps=20, optimizer={"learning_rate": 0.02, "warmup_steps": 1})
    weights = {name: tensor.clone() for name, tensor in trainable.quality.estimator.state_dict().items()}

    def quality() -> float:
        corpus = trainable.text.dev_corpus
        found = score_lines(
            load_estimator(estimator), corpus.source, [t for t, _ in translate_dev(trainable.model, corpus)]
        )
        return sum(found) / len(found)

    before = trainable.evaluate()
    assert before["dev/quality"] == pytest.approx(quality(), abs=1e-5)
    assert trainable.METRIC == "dev/energy"
    batches = trainable.plan.iterate()
    reports = toy.train(trainable, [next(batches) for _ in range(20)])
    trainable.model.eval()
    after = trainable.evaluate()
    assert after["dev/quality"] == pytest.approx(quality(), abs=1e-5)
    assert reports[-1]["train/quality"] < reports[0]["train/quality"] - 0.02
    assert all(torch.equal(weights[name], kept) for name, kept in trainable.quality.estimator.state_dict().items())
    trainable.close()


def judged(folder: Path, estimator: Path, **changes):
    settings = {"quality": str(estimator), "judge": str(estimators.converted("regression")), "quality_weight": 20.0}
    return made(folder, **{**settings, "optimizer": {"learning_rate": 0.02, "warmup_steps": 1}, **changes})


def test_a_judge_stands_beside_the_estimator_and_the_start_is_looked_at(
    folder: Path, estimator: Path, tmp_path: Path
) -> None:
    trainable = judged(folder, estimator)
    result, reports = toy.fitted(trainable, tmp_path)
    looks = {step: values for step, values in reports if "dev/energy" in values}
    assert list(looks) == [0, 3, 6] and looks[0]["dev/kl_to_start"] == pytest.approx(0.0, abs=1e-6)
    assert looks[6]["dev/kl_to_start"] > 1e-4 and "gaming/duplicates" in looks[6]
    corpus = trainable.text.dev_corpus
    outputs = [text for text, _ in translate_dev(trainable.model, corpus)]  # of the best model
    scores = score_lines(load_estimator(estimators.converted("regression")), corpus.source, outputs, corpus.target)
    best = looks[result.progress.best_step]
    assert best["dev/judge"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)
    trainable.close()


@pytest.mark.parametrize("choice", ["energy", "chrf", "bleu", "judge"])
def test_the_configuration_says_what_chooses_the_checkpoint(
    choice: str, folder: Path, estimator: Path, tmp_path: Path
) -> None:
    trainable = judged(folder, estimator, choose_by=choice, steps=9)
    result, reports = toy.fitted(trainable, tmp_path)
    looks = {step: values[f"dev/{choice}"] for step, values in reports if "dev/energy" in values}
    best = min(looks.values()) if choice == "energy" else max(looks.values())
    assert len(set(looks.values())) > 1 and looks[result.progress.best_step] == best
    assert (result.metric, result.higher_is_better) == (f"dev/{choice}", choice != "energy")
    trainable.close()


def test_a_judge_that_chooses_must_be_named(folder: Path, estimator: Path) -> None:
    with pytest.raises(ConfigurationError, match="choose_by is judge and no judge is named"):
        made(folder, quality=str(estimator), choose_by="judge")


def test_an_alarm_compares_with_the_start_and_ends_the_run(folder: Path, estimator: Path, tmp_path: Path) -> None:
    """Also where the run was cut in between: the first look is in its checkpoints."""
    far = {"alarms": {"kl_to_start": 1e-6, "least_chrf": 0.0}, "steps": 9}
    _, before = toy.fitted(judged(folder, estimator, **far), tmp_path, stop_at=2)
    assert [values["gaming/alarms"] for _, values in before if "gaming/alarms" in values] == [0.0]
    trainable = judged(folder, estimator, **far, stop_at_alarm=True)
    result, after = toy.fitted(trainable, tmp_path)
    assert result.progress.step == 3 and result.progress.stopped_early
    assert after[-1][1]["gaming/alarm/kl_to_start"] == 1.0
    assert trainable.monitor.history[0] == {name: before[0][1][name] for name in trainable.monitor.history[0]}


def test_what_no_estimator_trains_is_not_judged(folder: Path, estimator: Path) -> None:
    for field, value in (
        ("judge", str(estimator)),
        ("stop_at_alarm", True),
        ("alarms", {"repeated": 0.1}),
        ("quality_weight", 3.0),
    ):
        with pytest.raises(ConfigurationError, match=rf"{field} is set and quality is not: .*leave {field} out"):
            made(folder, **{field: value})


def test_an_estimator_is_no_judge_of_itself_under_another_name(
    folder: Path, estimator: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(estimator.parent)
    (link := folder / "link").symlink_to(estimator)
    for name in (str(estimator), "estimator", "./estimator", f"../{folder.name}/estimator", str(link)):
        with pytest.raises(ConfigurationError, match="what trains cannot judge"):
            made(folder, quality=str(estimator), judge=name)


def test_without_an_estimator_there_is_no_quality(folder: Path) -> None:
    trainable = made(folder)
    assert "dev/quality" not in trainable.evaluate()
    assert toy.train(trainable, [next(trainable.plan.iterate())])[0].keys().isdisjoint({"train/quality"})
    trainable.close()


def test_estimators_that_cannot_stand_beside_the_teacher_are_refused(
    folder: Path, estimator: Path, tmp_path: Path
) -> None:
    greek = write_estimator(tmp_path / "greek", ["αβγδε ζηθ", "ικλμ νξοπρ", "στυ φχψω"])
    with pytest.raises(StorageError, match="nowhere"):
        made(folder, quality=str(folder / "nowhere"))
    with pytest.raises(ConfigurationError, match="no energy"):
        made(folder, quality=str(estimators.converted("regression")))
    for name, settings in (("engine", {}), ("qe_ebm", {"model": {"init": str(folder / "transformer-toy")}})):
        with pytest.raises(ConfigurationError, match=r"knows 0 of .* 95\.0% are asked for.* lower least_coverage"):
            toy.ready(name, folder, quality=str(greek), **settings)
        toy.ready(name, folder, quality=str(greek), least_coverage=0.0, **settings).close()
    with pytest.raises(ConfigurationError, match="quality_weight"):
        made(folder, quality=str(estimator), quality_weight=0)
