"""Logits up to a size of vocabulary, above it what they are made from."""

import pytest
import torch

from energymt import losses, teacher_forcing
from energymt.models.transformer import TransformerTranslator, start_tokens
from energymt.records import Batch, Projection
from energymt.teacher_forcing import dense_if_small, negative_log_likelihood, teacher_forced
from tests import tiny

IDS, MASK = torch.tensor([[8, 9, 0], [7, 6, 5]]), torch.tensor([[True, True, False], [True, True, True]])
SOURCES = [[6, 7], [9]]


def said(model: torch.nn.Module) -> torch.Tensor | Projection:
    return teacher_forced(model, model.encode(tiny.source_of(SOURCES, model.vocabulary)), IDS, MASK)


@pytest.mark.parametrize("family", tiny.TEACHERS)
@torch.no_grad()
def test_the_size_of_the_vocabulary_decides(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.teacher(family)
    dense = model.decode(model.encode(tiny.source_of(SOURCES, model.vocabulary)), IDS, MASK)
    monkeypatch.setattr(teacher_forcing, "LARGE", model.vocabulary.size)
    assert torch.equal(said(model), dense)
    monkeypatch.setattr(teacher_forcing, "LARGE", model.vocabulary.size - 1)
    projection = said(model)
    assert isinstance(projection, Projection)
    torch.testing.assert_close(projection.logits(), dense, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_network_that_alone_knows_its_logits_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    network, vocabulary, code = tiny.network("bart")
    network.lm_head.register_forward_hook(lambda module, args, output: 2.0 * output)
    model = TransformerTranslator(network, vocabulary, start_tokens(network, code)).eval()
    dense = said(model)
    monkeypatch.setattr(teacher_forcing, "LARGE", 0)
    assert torch.equal(said(model), dense)


@pytest.mark.parametrize("family", tiny.TEACHERS)
def test_a_loss_is_the_same_with_and_without_logits(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.teacher(family)
    batch = Batch(torch.arange(2), tiny.source_of(SOURCES, model.vocabulary), IDS, MASK)
    asked, own = [], losses.log_probs_projected
    monkeypatch.setattr(losses, "log_probs_projected", lambda *args: asked.append(1) or own(*args))
    found = {}
    for large in (model.vocabulary.size, model.vocabulary.size - 1):
        monkeypatch.setattr(teacher_forcing, "LARGE_FOR_LOSS", large)
        model.zero_grad()
        loss = negative_log_likelihood(model, batch, 0.1)
        loss.backward()
        found[len(asked)] = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    assert list(found) == [0, 1]
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)


def test_a_projection_is_made_dense_where_it_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    projection = Projection(torch.randn(2, 3, 4), torch.randn(9, 4), torch.randn(9))
    assert torch.equal(dense_if_small(projection), projection.logits())
    monkeypatch.setattr(teacher_forcing, "LARGE", 8)
    assert dense_if_small(projection) is projection
