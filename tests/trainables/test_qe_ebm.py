"""QE-EBM: the loss is the score of relaxed samples; the estimator learns gold from samples; no logits are dense."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from energymt import teacher_forcing
from energymt.data.batching import collate
from energymt.decoding.sampling import SAMPLE_STREAM, sample
from energymt.errors import ConfigurationError
from energymt.models.estimator_folder import load_estimator
from energymt.models.scoring import score_lines
from energymt.operators import Noise
from energymt.records import Batch, SoftTarget, StepBatch
from tests import toy
from trainables import qe_ebm

STEP, SENTENCES = 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.scored_world(tmp_path_factory.mktemp("world"))


def made(folder: Path, double: bool = True, **changes: Any) -> qe_ebm.QeEbm:
    trainable = toy.make("qe_ebm", toy.config("qe_ebm", folder, **changes), double)
    trainable.model.eval()
    return trainable


def energies(trainable: qe_ebm.QeEbm, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """The unlabelled term of a micro-batch, and its gradient."""
    (term,) = trainable.losses(batch, STEP)
    assert (term.name, term.count) == ("energy", len(batch) * trainable.config.samples)
    return term.sum.item(), gradient(trainable, term.sum)


def gradient(trainable: qe_ebm.QeEbm, loss: Tensor) -> dict[str, Tensor]:
    named = {name: weight for name, weight in trainable.model.named_parameters() if weight.requires_grad}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, found, strict=True))


def plain(trainable: qe_ebm.QeEbm, b: int) -> tuple[Tensor, int]:
    """The summed energy of one sentence's samples by the definition of straight-through, dense and sample by sample."""
    config, model, words = trainable.config, trainable.model, trainable.text.vocabulary
    batch = collate(trainable.text.train, [b])
    noise = Noise(config.seed, STEP, batch.sentence_ids_B, SAMPLE_STREAM)
    drawn = sample(model, batch.source, noise, config.samples, max_length=config.longest_sample)
    total = torch.zeros((), dtype=torch.float64)
    tokens = 0
    for ids_T, mask_T in zip(drawn.ids_RT, drawn.mask_RT, strict=True):
        ids_1T = ids_T[mask_T][None]
        tokens += ids_1T.shape[1]
        real_1T = torch.ones_like(ids_1T, dtype=torch.bool)
        logits_TV = model.decode(model.encode(batch.source), ids_1T, real_1T)[0, :-1]
        allowed_V = torch.ones(words.size, dtype=torch.bool)
        allowed_V[[*words.never_ids, words.eos_id]] = False
        probs_TV = logits_TV.masked_fill(~allowed_V, -torch.inf).softmax(-1)
        hard_T = ids_1T[0] if trainable.options.straight_through == "sampled" else probs_TV.argmax(-1)
        weights_TV = probs_TV
        if trainable.options.feed == "ST":
            weights_TV = one_hot(hard_T, words.size) + probs_TV - probs_TV.detach()
        target = SoftTarget(None, (weights_TV @ trainable.energy.table_VD)[None], real_1T)
        source = trainable.energy.bridge.source(batch.source)
        total = total - trainable.quality.estimator(source, target).sum()
    return total, tokens


@pytest.mark.parametrize(
    "changes",
    [{}, {"straight_through": "argmax"}, {"feed": "SX"}, {"samples": 3, "longest_sample": 3}],
    ids=["sampled", "argmax", "softmax", "more"],
)
@pytest.mark.parametrize("translator", ["transformer-toy", "recurrent-toy"])
def test_the_loss_is_the_score_of_relaxed_samples(translator: str, changes: dict[str, Any], folder: Path) -> None:
    trainable = made(folder, model={"init": str(folder / translator)}, **changes)
    value, grads = energies(trainable, collate(trainable.text.train, range(SENTENCES)))
    alone = [plain(trainable, b) for b in range(SENTENCES)]
    assert sum(tokens for _, tokens in alone) > SENTENCES * trainable.config.samples, "the samples say something"
    wanted = torch.stack([energy for energy, _ in alone]).sum()
    assert value == pytest.approx(wanted.item(), rel=1e-9)
    theirs = gradient(trainable, wanted)
    assert max(grad.abs().max() for grad in theirs.values()) > 1e-3
    for name, grad in grads.items():
        torch.testing.assert_close(grad, theirs[name], rtol=1e-6, atol=1e-10, msg=name)


@pytest.mark.parametrize("feed", ["ST", "SX", "SG"])
@pytest.mark.parametrize("translator", ["transformer-toy", "recurrent-toy"])
def test_without_dense_logits_the_gradient_is_the_same(
    translator: str, feed: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainable = made(folder, model={"init": str(folder / translator)}, feed=feed)
    batch = collate(trainable.text.train, range(SENTENCES))
    value, grads = energies(trainable, batch)
    drawn = trainable.draw(batch, STEP)
    monkeypatch.setattr(teacher_forcing, "LARGE", 0)
    trainable.losses(batch, STEP)  # a translator compares `decode_projection` with `decode` once
    monkeypatch.setattr(trainable.model, "decode", None)
    monkeypatch.setattr(trainable, "draw", lambda batch, step: drawn)  # which reads logits [R, V], a step at a time
    made_of: list[tuple[int, ...]] = []
    size = trainable.text.vocabulary.size
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (made_of.append(tuple(x.shape)), x)[1], lambda x: x):
        (term,) = trainable.losses(batch, STEP)
    rows, length = drawn.ids_RT.shape
    assert not any(len(shape) > 1 and shape[-1] == size and shape[-2] in (length, rows * length) for shape in made_of)
    assert term.sum.item() == pytest.approx(value, rel=1e-6)
    for name, grad in gradient(trainable, term.sum).items():
        torch.testing.assert_close(grad, grads[name], rtol=1e-5, atol=1e-8, msg=name)


def test_the_end_learns_by_reinforce_on_its_decisions_alone(folder: Path) -> None:
    trainable = made(folder, ending="reinforce", samples=3)
    batch = collate(trainable.text.train, range(SENTENCES))
    energy, ending = trainable.losses(batch, STEP)
    assert (energy.name, ending.name, ending.count) == ("energy", "ending", 3.0 * SENTENCES)
    assert trainable.counts(batch) == {"energy": 3.0 * SENTENCES, "ending": 3.0 * SENTENCES}
    without, _ = energies(made(folder, samples=3), batch)
    assert energy.sum.item() == pytest.approx(without, rel=1e-12)
    model, eos_id = trainable.model, trainable.text.vocabulary.eos_id
    drawn = trainable.draw(batch, STEP)
    scores_R = -trainable.energy.begin(
        batch.source.select(drawn.samples.rows_R),
        trainable.prediction(
            model.decode(model.encode(batch.source).select(drawn.samples.rows_R), drawn.ids_RT, drawn.mask_RT), drawn
        ),
    )()
    wanted = torch.zeros((), dtype=torch.float64)
    for row, (ids_T, mask_T) in enumerate(zip(drawn.ids_RT, drawn.mask_RT, strict=True)):
        ids_1T, group = ids_T[mask_T][None], row // 3 * 3
        others = [scores_R[other].item() for other in range(group, group + 3) if other != row]
        source = batch.source.select(torch.tensor([row // 3]))
        logits_UV = model.decode(model.encode(source), ids_1T, torch.ones_like(ids_1T, dtype=torch.bool))[0]
        never = [token for token in trainable.text.vocabulary.never_ids if token < logits_UV.shape[1]]
        end_U = logits_UV.index_fill(1, torch.tensor(never), -torch.inf).softmax(-1)[:, eos_id]
        logp = (1 - end_U[:-1]).log().sum()
        if drawn.samples.ended_R[row]:
            logp = logp + end_U[-1].log()
        wanted = wanted - (scores_R[row].item() - sum(others) / 2) * logp
    assert ending.sum.item() == pytest.approx(wanted.item(), rel=1e-4)
    found, theirs = gradient(trainable, ending.sum), gradient(trainable, wanted)
    assert max(grad.abs().max() for grad in theirs.values()) > 1e-4
    for name, grad in found.items():
        torch.testing.assert_close(grad, theirs[name], rtol=1e-3, atol=1e-7, msg=name)


def test_the_end_needs_samples_to_compare_with(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="set samples to 2 or more"):
        made(folder, ending="reinforce", samples=1)


def test_labelled_pairs_have_their_cross_entropy(folder: Path) -> None:
    trainable = made(folder, label_smoothing=0.0)
    batch = collate(trainable.text.train, range(SENTENCES))
    (term,) = trainable.labelled_losses(batch)
    wanted = 0.0
    for b in range(SENTENCES):
        alone = collate(trainable.text.train, [b])
        model = trainable.model
        logp_UV = model.decode(model.encode(alone.source), alone.target_BT, alone.target_mask_BT)[0].log_softmax(-1)
        target = [*alone.target_BT[0].tolist(), trainable.text.vocabulary.eos_id]
        wanted -= sum(logp_UV[place, token].item() for place, token in enumerate(target))
    assert term.sum.item() == pytest.approx(wanted, rel=1e-9)
    assert term.count == float(batch.target_mask_BT.sum() + SENTENCES)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_gradient_of_a_step_is_the_weighted_sum_of_both(weight: float, folder: Path) -> None:
    balance = {"kind": "constant", "weight": weight, "ramp": 0.0}
    trainable = made(folder, balance=balance, optimizer={"learning_rate": 1e-9, "clip_norm": 1e9})
    batch = collate(trainable.text.train, range(SENTENCES))
    (labelled,) = trainable.labelled_losses(batch)
    (energy,) = trainable.losses(batch, STEP)
    wanted = gradient(trainable, labelled.sum / labelled.count + weight * energy.sum / energy.count)
    toy.train(trainable, [StepBatch(STEP, 0, (batch,), (batch,))])
    for name, parameter in trainable.model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-6, atol=1e-9, msg=name)


# ------------------------------------------------------------------------------------------------------------- dynamic


@pytest.mark.parametrize(
    "learns, form, rate", [("head", "ranking", 0.02), ("lora", "ranking", 0.02), ("all", "binary", 0.004)]
)
def test_dynamic_raises_gold_above_samples(learns: str, form: str, rate: float, folder: Path, tmp_path: Path) -> None:
    dynamic = {"learns": learns, "form": form, "sentences": 8, "rate": rate}
    few = {"unlabelled_tokens_per_step": 8, "optimizer": {"learning_rate": 1e-5}}
    trainable = made(folder, double=False, dynamic=dynamic, steps=30, **few)
    estimator = trainable.quality.estimator
    before = {name: weight.clone() for name, weight in estimator.state_dict().items()}
    batches = trainable.plan.iterate()
    reports = toy.train(trainable, [next(batches) for _ in range(30)])
    margins = [report["train/lesson/margin"] for report in reports]
    assert sum(margins[-8:]) / 8 > sum(margins[:8]) / 8 + 0.15, margins
    changed = {name for name, weight in estimator.state_dict().items() if not torch.equal(weight, before[name])}
    assert any(name.startswith("head.") for name in changed)
    assert any(name.startswith("encoder.") for name in changed) == (learns != "head")
    assert not any("word_embeddings" in name for name in changed)
    assert all(weight.grad is None and not weight.requires_grad for weight in estimator.parameters())
    values = trainable.evaluate()
    assert values["dev/drift"] > 0.1 and values["dev/quality"] != values["dev/quality_frozen"]
    trainable.leave_estimator(tmp_path / "taught")
    taught = load_estimator(tmp_path / "taught")
    assert not any("lora" in name for name in taught.state_dict())
    texts = (["a b", "c"], ["b a", "d"])
    assert score_lines(taught, *texts) == pytest.approx(list(trainable.quality.score(*texts)), abs=1e-5)
    assert values["dev/quality_frozen"] == pytest.approx(made(folder, double=False).evaluate()["dev/quality"], abs=0.05)


def test_when_the_estimator_learns(folder: Path) -> None:
    trainable = made(folder, double=False, dynamic={"warmup_steps": 2, "every": 2, "sentences": 2}, steps=6)
    batches = trainable.plan.iterate()
    reports = toy.train(trainable, [next(batches) for _ in range(6)])
    assert ["train/lesson/loss" in report for report in reports] == [False, False, True, False, True, False]
    assert trainable.quality.pupil.learner.version == 2


def test_the_estimator_answers_when_it_has_had_its_lesson(folder: Path) -> None:
    """Also where no source of the step waits for its answer."""
    trainable = made(folder, double=False, dynamic={"sentences": 2})
    own, told = trainable.quality.pupil.learn, list[str]()

    def learn(*given: Any) -> Any:
        learnt = own(*given)
        told.append("begins")
        return lambda: (told.append("learnt"), learnt())[1]

    def begin(*given: Any) -> Any:
        told.append("asked")
        return asked(*given)

    asked, trainable.energy.begin = trainable.energy.begin, begin
    trainable.quality.pupil.learn = learn
    draw = trainable.draw
    trainable.draw = lambda batch, step: (told.append("drawn"), draw(batch, step))[1]
    batches = trainable.plan.iterate()
    (report,) = toy.train(trainable, [next(batches)])
    assert told[:4] == ["begins", "drawn", "learnt", "asked"] and told.count("learnt") == 1
    assert report["train/lesson_s"] > 0 and "train/lesson/margin" in report
    told.clear()
    (report,) = toy.train(trainable, [replace(next(batches), unlabelled=())])
    assert told == ["begins", "learnt"] and "train/lesson/margin" in report


def test_static_has_no_lessons(folder: Path, tmp_path: Path) -> None:
    trainable = made(folder, double=False)
    assert trainable.quality.pupil is None
    trainable.leave_estimator(tmp_path / "taught")
    assert not list(tmp_path.iterdir())
    (report,) = toy.train(trainable, [next(trainable.plan.iterate())])
    assert not any("lesson" in name for name in report)
    assert "dev/drift" not in trainable.evaluate()


def test_several_workers_need_one_estimator_between_them(folder: Path) -> None:
    trainable = made(folder, double=False, dynamic={})
    batch = next(trainable.plan.iterate(world=2))
    with pytest.raises(ConfigurationError, match=r"2 workers teach .*`energymt pool up ESTIMATOR --set learns=head`"):
        list(trainable.steps(batch))
