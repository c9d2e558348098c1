"""Methods that learn from log-probabilities: the same terms and gradients where logits [R, U, V] are never made."""

from pathlib import Path
from typing import Any

import pytest
import torch

from energymt import teacher_forcing
from energymt.data.batching import collate
from energymt.records import Term
from tests import tiny, toy

STEP, SENTENCES = 3, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.scored_world(tmp_path_factory.mktemp("world"))


def terms_of(name: str, trainable: Any) -> list[Term]:
    """All terms of a micro-batch."""
    batch = collate(trainable.text.train, range(SENTENCES))
    if name == "supervised":
        return trainable.losses(batch)
    unlabelled = trainable.first_losses(batch, STEP, []) if name == "ppo" else trainable.losses(batch, STEP)
    return [*unlabelled, *trainable.labelled_losses(batch)]


def gradients_of(trainable: Any, term: Term) -> dict[str, torch.Tensor]:
    named = {name: weight for name, weight in trainable.model.named_parameters() if weight.requires_grad}
    found = torch.autograd.grad(
        term.sum, list(named.values()), allow_unused=True, materialize_grads=True, retain_graph=True
    )
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("translator", ["transformer-toy", "recurrent-toy"])
@pytest.mark.parametrize(
    "name, changes", [("supervised", {}), ("reinforce", {}), ("ppo", {}), ("ppo", {"advantage": "value"})]
)
def test_terms_and_gradients_are_the_same(
    name: str, changes: dict[str, Any], translator: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = toy.config(name, folder, model={"init": str(folder / translator)}, **changes)
    trainable = toy.make(name, settings, double=True)
    tiny.shake(trainable.model.eval())  # away from the start, to which it keeps
    dense = terms_of(name, trainable)
    for limit in ("LARGE", "LARGE_FOR_LOSS"):
        monkeypatch.setattr(teacher_forcing, limit, 0)
    terms_of(name, trainable)  # a translator compares `decode_projection` with `decode` once
    for model in (trainable.model, getattr(trainable, "start", None)):
        if model is not None:
            monkeypatch.setattr(model, "decode", None)
    size, shapes = trainable.text.vocabulary.size, list[tuple[int, ...]]()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (shapes.append(tuple(x.shape)), x)[1], lambda x: x):
        terms = terms_of(name, trainable)
    assert shapes and not any(len(shape) == 3 and shape[-1] == size for shape in shapes)
    for ours, theirs in zip(terms, dense, strict=True):
        assert (ours.name, ours.count, ours.weight) == (theirs.name, theirs.count, theirs.weight)
        assert ours.sum.item() == pytest.approx(theirs.sum.item(), rel=1e-6, abs=1e-9)
        if not theirs.sum.requires_grad or not theirs.weight:
            continue
        wanted = gradients_of(trainable, theirs)
        assert max(grad.abs().max() for grad in wanted.values()) > 1e-3
        for key, grad in gradients_of(trainable, ours).items():
            torch.testing.assert_close(grad, wanted[key], rtol=1e-5, atol=1e-8, msg=key)
