"""ENGINE: the loss is the teacher's energy of the fully masked pass, the teacher stays as it was, dev is discrete."""

from functools import partial
from pathlib import Path

import pytest
import torch

from energymt.data.batching import collate
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.energies import AutoregressiveEnergy
from energymt.errors import ConfigurationError
from energymt.losses import cross_entropy
from energymt.models import load_translator, make_translator
from energymt.operators import Noise
from energymt.optimisation import make_optimizer
from energymt.records import Prediction, StepBatch
from tests import toy
from trainables.masked import partial_mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.world(tmp_path_factory.mktemp("world"))


made = partial(toy.ready, "engine")


def terms_of(trainable, batch, number: int = 4):
    (step,) = trainable.steps(StepBatch(number, 0, (batch,)))
    return step, {term.name: term for term in step.losses(batch)}


@torch.no_grad()
@pytest.mark.parametrize("teacher", ["recurrent-toy", "transformer-toy"])
@pytest.mark.parametrize("student", ["masked-toy", "tagger-toy"])
@pytest.mark.parametrize("feed, score", [("SX", "ST"), ("GX", "SG")])
def test_the_loss_is_the_energy_of_the_fully_masked_pass(teacher, student, feed, score, folder: Path) -> None:
    trainable = made(
        folder, teacher=str(folder / teacher), model={"init": str(folder / student)}, feed=feed, score=score
    )
    batch = collate(trainable.text.train, range(5))
    step, terms = terms_of(trainable, batch)
    wanted = wanted_length = 0.0
    energy = AutoregressiveEnergy(load_translator(folder / teacher), feed, score)
    for b in range(5):
        alone = collate(trainable.text.train, [b])
        tokens = torch.full_like(alone.target_BT, trainable.text.vocabulary.mask_id)
        memory = trainable.model.encode(alone.source)
        logits_BTV = trainable.model.predict(memory, tokens, alone.target_mask_BT)
        noise = Noise(trainable.config.seed, 4, alone.sentence_ids_B)
        wanted += energy(alone.source, Prediction(logits_BTV, alone.target_mask_BT, noise=noise)).item()
        wanted_length -= memory.length_logp_BL[0, tokens.shape[1]].item()
    assert terms["energy"].sum.item() == pytest.approx(wanted, rel=1e-4)
    assert terms["length"].sum.item() == pytest.approx(wanted_length, rel=1e-5)
    assert step.counts(batch) == {"energy": 5.0, "length": 5.0}
    assert terms.keys() == set(step.terms) == {"energy", "length"}
    assert (terms["energy"].weight, terms["energy"].count) == (1.0, 5.0)


@torch.no_grad()
def test_masked_cross_entropy_joins_only_where_it_has_weight(folder: Path) -> None:
    trainable = made(folder, masked_weight=0.2, length_weight=0.7)
    batch = collate(trainable.text.train, range(5))
    step, terms = terms_of(trainable, batch)
    hidden_BT = partial_mask(batch.target_mask_BT, Noise(trainable.config.seed, 4, batch.sentence_ids_B))
    tokens_BT = batch.target_BT.masked_fill(hidden_BT, trainable.text.vocabulary.mask_id)
    logits_BTV = trainable.model.predict(trainable.model.encode(batch.source), tokens_BT, batch.target_mask_BT)
    wanted = cross_entropy(logits_BTV, batch.target_BT, hidden_BT)
    assert terms["masked"].sum.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert (terms["masked"].weight, terms["length"].weight) == (0.2, 0.7)
    assert set(step.terms) == terms.keys() == {"energy", "length", "masked"}
    assert step.counts(batch).keys() == terms.keys()
    for name, term in terms.items():
        assert term.count == step.counts(batch)[name]


def test_the_teacher_is_neither_trained_nor_given_buffers(folder: Path) -> None:
    trainable = made(folder, steps=4, feed="SX", score="SX")
    teacher = trainable.energy.teacher
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    student = toy.weights(trainable)
    batches = trainable.plan.iterate()
    trainable.model.train()
    toy.train(trainable, [next(batches) for _ in range(4)])
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(weight.grad is None and not weight.requires_grad for weight in teacher.parameters())
    assert not teacher.training
    optimised = make_optimizer(trainable.model, trainable.config.optimizer).param_groups
    theirs = {id(weight) for weight in teacher.parameters()}
    assert not any(id(weight) in theirs for group in optimised for weight in group["params"])
    assert not torch.equal(student["embedding.weight"], trainable.model.embedding.weight)


@pytest.mark.parametrize("feed, score", [("SX", "SX"), ("SX", "ST"), ("ST", "ST")])
def test_the_energy_falls(feed: str, score: str, folder: Path) -> None:
    trainable = made(folder, feed=feed, score=score, steps=30, optimizer={"learning_rate": 0.02, "warmup_steps": 1})
    before = trainable.evaluate()
    batches = trainable.plan.iterate()
    toy.train(trainable, [next(batches) for _ in range(30)])
    trainable.model.eval()
    after = trainable.evaluate()
    assert after["dev/energy"] < before["dev/energy"] - 1.0
    assert after["dev/energy_relaxed"] < before["dev/energy_relaxed"] - 1.0


@torch.no_grad()
def test_dev_is_measured_on_argmax_tokens_at_oracle_lengths(folder: Path) -> None:
    trainable = made(folder, feed="SX", score="SX")
    values = trainable.evaluate()
    assert trainable.METRIC == "dev/energy" and not trainable.HIGHER_IS_BETTER
    discrete, relaxed = [], []
    for i in range(len(trainable.text.dev)):
        batch = collate(trainable.text.dev, [i])
        mask_BT = batch.target_mask_BT
        logits_BTV = trainable.model.predict(
            trainable.model.encode(batch.source), trainable.model.unseen(mask_BT), mask_BT
        )
        prediction = Prediction(logits_BTV, mask_BT)
        relaxed.append(trainable.energy(batch.source, prediction).item())
        discrete.append(trainable.energy(batch.source, prediction.argmax()).item())
    sentences = len(trainable.text.dev)
    assert values["dev/energy"] == pytest.approx(sum(discrete) / sentences, rel=1e-4)
    assert values["dev/energy_relaxed"] == pytest.approx(sum(relaxed) / sentences, rel=1e-4)
    assert values["dev/energy_gap"] == pytest.approx((sum(discrete) - sum(relaxed)) / sentences, rel=1e-3)
    assert "dev/bleu" in values


def test_a_warm_start_has_the_weights_of_the_baseline_and_a_cold_one_has_not(folder: Path) -> None:
    baseline = load_translator(folder / "masked-toy").state_dict()
    warm = made(folder)
    assert all(torch.equal(baseline[name], tensor) for name, tensor in warm.model.state_dict().items())
    cold = made(folder, model={"variant": "masked-toy", "changes": toy.SMALL["masked-toy"]})
    assert not torch.equal(baseline["embedding.weight"], cold.model.state_dict()["embedding.weight"])
    assert cold.text.vocabulary.fingerprint == warm.energy.teacher.vocabulary.fingerprint


def test_lengths_come_from_the_teacher_or_the_references(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ENERGYMT_RUNS", str(tmp_path))
    reference = made(folder, target_lengths="reference")
    assert not list(tmp_path.iterdir())
    taught = made(folder, target_lengths="teacher")
    assert list(tmp_path.glob("pseudo/*/provenance.json"))

    def targets(trainable):
        data = trainable.text.train
        return {tuple(s): tuple(t) for s, t in zip(data.source_ids, data.target_ids, strict=True)}

    theirs, ours = targets(taught), targets(reference)
    assert theirs.keys() <= ours.keys() and len(theirs) > 10
    assert any(len(theirs[source]) != len(ours[source]) for source in theirs)


@pytest.mark.parametrize("where", ["model", "vocabulary"])
def test_a_student_of_another_vocabulary_is_refused(where: str, folder: Path, tmp_path: Path) -> None:
    other = SentencePieceVocabulary.train(["one two three four five six"] * 9, 20, model_type="word")
    toy.save_model(tmp_path, "masked-toy", other)
    settings = {"model": {"init": str(tmp_path / "masked-toy")}}
    if where == "vocabulary":  # the text is encoded as the teacher wants it, and the student is still another
        settings["vocabulary"] = {"path": str(folder / "recurrent-toy")}
    with pytest.raises(ConfigurationError, match="different vocabularies"):
        made(folder, **settings)


def test_teachers_and_students_of_the_wrong_kind_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="not autoregressive"):
        made(folder, teacher=str(folder / "masked-toy"))
    with pytest.raises(ConfigurationError, match="non-autoregressive"):
        made(folder, model={"init": str(folder / "recurrent-toy")})


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("part, short", [("dev", "student"), ("train", "teacher"), ("dev", "teacher")])
def test_text_that_does_not_fit_into_every_network_is_refused(part, short, side, folder: Path, tmp_path: Path) -> None:
    """The dev energy is that of whole references, and the teacher reads all that the student says."""
    words = toy.vocabulary(folder)
    variant, longest = {"teacher": ("transformer-toy", 12), "student": ("masked-toy", 11)}[short]  # one is for <s>
    make_translator(variant, words, **toy.SMALL[variant], longest=longest).save(tmp_path / short)
    word = (folder / "dev.tsv").read_text("utf-8").split()[2]
    text = {"source": word, "target": word, side: " ".join([word] * 20)}
    (tmp_path / "long.tsv").write_text("\n".join(["source\ttarget", "\t".join(text.values())]) + "\n", "utf-8")
    settings = {part: {"path": str(tmp_path / "long.tsv"), "source": "source", "target": "target"}}
    settings |= {"teacher": str(tmp_path / short)} if short == "teacher" else {"model": {"init": str(tmp_path / short)}}
    key, room = rf"{part}\.max_{side}_tokens", {"source": 11, "target": 12}[side]
    who = f"the teacher {tmp_path / short}" if short == "teacher" else "the model"
    said = rf"{key} is 250 .*long\.tsv.* has a {side} of 21 tokens .*{who} takes {room}: lower {key} to {room}\."
    with pytest.raises(ConfigurationError, match=said):
        made(folder, **settings)
