"""An estimator that learns: gradients of a lesson, two phases of a step, states that go from copy to copy."""

import copy
from typing import Any

import pytest
import torch

from energymt.energies.contrastive import Form, contrastive_loss
from energymt.errors import ConfigurationError
from energymt.models.learning import EstimatorLearner, Learns, LessonOptions, digest, select_groups
from energymt.records import SoftTarget
from tests import estimators, lessons

OPTIONS = LessonOptions(rate=1e-2, clip=0.1, weight_decay=0.01)
LEARNS: list[Learns] = ["head", "lora", "all"]
WORDS = "encoder.embeddings.word_embeddings.weight"


def learner(learns: Learns = "head", **options: Any) -> EstimatorLearner:
    return EstimatorLearner(estimators.estimator("kiwi"), learns, **options)


def step(found: EstimatorLearner, seed: int = 1) -> str:
    """One step; the digest of the new version."""
    gradient = found.differentiate(lessons.lesson(found.estimator, seed=seed), OPTIONS.form)
    said = found.prepare(found.version + 1, gradient.gradient_P / gradient.count, OPTIONS, {"seed": seed})
    assert found.activate(found.version + 1)
    return said


def scores(found: EstimatorLearner) -> torch.Tensor:
    model = found.estimator
    with torch.no_grad():
        return model(
            estimators.source_of(model, estimators.SOURCES), estimators.target_of(model, estimators.TRANSLATIONS)
        )


@pytest.mark.parametrize("form", ["binary", "ranking"])
@pytest.mark.parametrize("budget", [1, 120, 4096])
def test_the_gradient_is_that_of_the_module_whatever_the_pieces(form, budget) -> None:
    model = estimators.estimator("kiwi").double()
    lesson = lessons.lesson(model)
    rows = torch.arange(len(lesson)).repeat_interleave(lesson.sizes_G)
    model.head.requires_grad_(True)
    target = SoftTarget(lesson.ids_CT, model.lookup(lesson.ids_CT), lesson.mask_CT)
    wanted, _ = contrastive_loss(model(lesson.source.select(rows), target), lesson.log_probs_C, lesson.sizes_G, form)
    wanted.backward()
    parts = torch.cat([p.grad.flatten() for p in model.head.parameters() if p.grad is not None])

    found = learner(budget=budget)
    gradient = found.differentiate(lessons.lesson(found.estimator), form)
    names = [name for name, p in found.parameters.items() for _ in range(p.numel())]
    head = torch.tensor([name.startswith("head.") for name in names])
    torch.testing.assert_close(gradient.gradient_P[head].double(), parts, rtol=1e-4, atol=1e-5)
    assert gradient.loss == pytest.approx(wanted.item(), rel=1e-5)
    assert gradient.totals["gold"][1] == 5 and gradient.totals["sample"][1] == len(rows) - 5


@pytest.mark.parametrize("learns", LEARNS)
def test_only_what_is_learnt_changes(learns) -> None:
    found = learner(learns)
    before = copy.deepcopy(found.estimator.state_dict())
    table = found.estimator.table_VD.clone()
    for seed in range(3):
        step(found, seed)
    changed = {name for name, tensor in found.estimator.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in found.parameters if not torch.equal(before[name], found.parameters[name])}
    assert WORDS not in changed and torch.equal(found.estimator.table_VD, table)
    kinds = {"head." if n.startswith("head.") else "mix." if n.startswith("mix.") else "encoder" for n in changed}
    assert kinds == ({"head.", "mix."} if learns == "head" else {"head.", "mix.", "encoder"})
    if learns == "lora":
        assert all("lora_" in name for name in changed if name.startswith("encoder."))


def test_adapters_change_nothing_until_they_learn() -> None:
    torch.testing.assert_close(scores(learner("lora")), scores(learner("head")), rtol=0, atol=1e-6)


@pytest.mark.parametrize("learns", LEARNS)
def test_learning_tells_gold_from_samples(learns) -> None:
    found = learner(learns)
    lesson = lessons.lesson(found.estimator)
    losses = []
    for number in range(25):
        gradient = found.differentiate(lesson, "ranking")
        losses.append(gradient.loss)
        found.prepare(number + 1, gradient.gradient_P / gradient.count, LessonOptions(rate=1e-2), {})
        found.activate(number + 1)
    assert losses[-1] < 0.8 * losses[0]


def test_nothing_changes_before_it_is_activated() -> None:
    found = learner()
    before = scores(found)
    gradient = found.differentiate(lessons.lesson(found.estimator), "binary")
    found.prepare(1, gradient.gradient_P, OPTIONS, {})
    assert torch.equal(scores(found), before) and found.version == 0
    assert not found.activate(2)
    assert found.activate(1) and found.activate(1)
    assert not torch.equal(scores(found), before) and found.version == 1


def test_a_step_is_that_of_adamw() -> None:
    found = learner()
    weights = torch.nn.Parameter(found.state.weights_P.clone())
    optimizer = torch.optim.AdamW([weights], lr=1e-2, betas=OPTIONS.betas, weight_decay=0.01)
    for number in range(3):
        gradient = found.differentiate(lessons.lesson(found.estimator, seed=number), "binary")
        mean = gradient.gradient_P / gradient.count
        weights.grad = mean * min(1.0, OPTIONS.clip / float(mean.norm()))
        optimizer.step()
        found.prepare(number + 1, mean, OPTIONS, {})
        found.activate(number + 1)
    torch.testing.assert_close(found.state.weights_P, weights.detach(), rtol=1e-5, atol=1e-6)


def test_copies_that_take_the_same_steps_are_the_same() -> None:
    one, other = learner("lora"), learner("lora")
    assert [step(one, seed) for seed in range(3)] == [step(other, seed) for seed in range(3)]
    assert digest(one.state) == digest(other.state)
    assert step(one, 7) != step(other, 8)


def test_a_state_makes_a_copy_of_a_fresh_one() -> None:
    one, other = learner("lora"), learner("lora")
    for seed in range(2):
        step(one, seed)
    other.install(one.state)
    assert (other.version, other.state.last) == (2, {"seed": 1})
    assert torch.equal(scores(one), scores(other))
    assert step(one, 5) == step(other, 5)
    other.install(other.first(9))
    assert torch.equal(scores(other), scores(learner("lora"))) and other.version == 9


def test_the_state_of_another_estimator_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"holds [\d,]+ learnt weights and this estimator learns [\d,]+"):
        learner("head").install(learner("lora").state)


def test_groups_are_cut_out_with_their_candidates() -> None:
    model = estimators.estimator("kiwi")
    lesson = lessons.lesson(model)
    part = select_groups(lesson, 1, 3)
    wanted = lessons.lesson(model, 1, 3)
    assert part.sizes_G.tolist() == wanted.sizes_G.tolist() == [2, 3]
    assert torch.equal(part.ids_CT, wanted.ids_CT) and torch.equal(part.log_probs_C, wanted.log_probs_C)


@pytest.mark.parametrize("form", ["binary", "ranking"])
@pytest.mark.parametrize("fault", ["token id 9999", "token id -1", "not finite"])
def test_a_lesson_that_cannot_be_learnt_is_refused(form: Form, fault: str) -> None:
    found = learner()
    lesson = lessons.lesson(found.estimator)
    if "9999" in fault:
        lesson.ids_CT[2, 0] = 9999
    elif "-1" in fault:
        lesson.source.ids_BS[1, 0] = -1
    else:
        lesson.log_probs_C[4] = -torch.inf
    with pytest.raises(ConfigurationError, match=f"The lesson cannot be learnt: .*{fault}"):
        found.differentiate(lesson, form)
