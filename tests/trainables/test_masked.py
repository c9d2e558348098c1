"""Masked cross-entropy: how many tokens are hidden, which, and that only they count."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from energymt.data.batching import collate
from energymt.errors import ConfigurationError
from energymt.operators import Noise
from energymt.records import StepBatch
from tests import toy
from trainables.masked import partial_mask


def hidden(lengths, sentence_ids, seed=1, step=2, width=None) -> torch.Tensor:
    mask_BT = torch.arange(width or max(lengths)) < torch.tensor(lengths)[:, None]
    return partial_mask(mask_BT, Noise(seed, step, torch.tensor(sentence_ids)))


# -------------------------------------------------------------------------------------------------------- partial_mask


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_the_number_of_hidden_tokens_is_uniform_from_one_to_all(length: int) -> None:
    rows = 4000
    counts = torch.bincount(hidden([length] * rows, range(rows)).sum(1), minlength=length + 1)
    assert counts[0] == 0
    expected = rows / length
    assert (counts[1:] - expected).abs().max() < 5 * expected**0.5 + 1e-6  # 5 standard errors


def test_every_token_is_hidden_as_often_as_the_next() -> None:
    rows, length = 4000, 6
    share_T = hidden([length] * rows, range(rows)).float().mean(0)
    assert (share_T - (length + 1) / (2 * length)).abs().max() < 0.04


def test_number_and_places_are_independent() -> None:
    mask_BT = hidden([6] * 6000, range(6000))
    ones_BT = mask_BT[mask_BT.sum(1) == 1]
    share_T = ones_BT.float().mean(0)
    assert len(ones_BT) > 800
    assert (share_T - 1 / 6).abs().max() < 0.07


def test_padding_is_never_hidden() -> None:
    lengths = [1, 3, 7] * 50
    mask_BT = hidden(lengths, range(150), width=9)
    outside_BT = torch.arange(9) >= torch.tensor(lengths)[:, None]
    assert not (mask_BT & outside_BT).any()
    assert (mask_BT.sum(1) >= 1).all()


def test_an_empty_sentence_has_nothing_to_hide() -> None:
    assert not hidden([0, 2], [1, 2])[0].any()


def test_a_mask_does_not_change_with_the_batch_around_it() -> None:
    whole = hidden([4, 6, 2], [10, 11, 12])
    assert torch.equal(hidden([6], [11]), whole[1:2])
    assert torch.equal(hidden([2, 4], [12, 10], width=8)[:, :6], whole[[2, 0]])


def test_a_mask_is_named_by_seed_step_and_sentence() -> None:
    first = hidden([9] * 3, [5, 5, 6])
    assert torch.equal(first, hidden([9] * 3, [5, 5, 6]))
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    assert not torch.equal(first, hidden([9] * 3, [5, 5, 6], seed=2))
    assert not torch.equal(first, hidden([9] * 3, [5, 5, 6], step=3))


# ------------------------------------------------------------------------------------------------------- the trainable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.world(tmp_path_factory.mktemp("world"))


def made(folder: Path, **changes):
    trainable = toy.make("masked", toy.config("masked", folder, **changes))
    trainable.model.eval()
    return trainable


@torch.no_grad()
def test_the_loss_is_that_of_the_hidden_tokens_given_the_others(folder: Path) -> None:
    trainable = made(folder, label_smoothing=0.0, length_weight=0.3)
    batch = collate(trainable.text.train, range(5))
    (step,) = trainable.steps(StepBatch(9, 0, (batch,)))
    nll, length = step.losses(batch)
    hidden_BT = partial_mask(batch.target_mask_BT, Noise(trainable.config.seed, 9, batch.sentence_ids_B))
    wanted = wanted_length = 0.0
    for b in range(5):  # each sentence alone
        alone = collate(trainable.text.train, [b])
        memory = trainable.model.encode(alone.source)
        target, chosen = (
            alone.target_BT[0],
            hidden_BT[b][alone.target_mask_BT.new_ones(alone.target_BT.shape[1]).nonzero()[:, 0]],
        )
        seen = torch.where(chosen, trainable.text.vocabulary.mask_id, target)
        logits_TV = trainable.model.predict(memory, seen[None], alone.target_mask_BT)[0]
        wanted += cross_entropy(logits_TV[chosen], target[chosen], reduction="sum").item()
        wanted_length -= memory.length_logp_BL[0, len(target)].item()
    assert nll.sum.item() == pytest.approx(wanted, rel=1e-5)
    assert nll.count == step.counts(batch)["nll"] == hidden_BT.sum()
    assert (nll.weight, length.weight) == (1.0, 0.3)
    assert length.sum.item() == pytest.approx(wanted_length, rel=1e-5)
    assert length.count == step.counts(batch)["length"] == 5
    assert step.terms == ("nll", "length")


def test_what_is_hidden_changes_from_step_to_step(folder: Path) -> None:
    trainable = made(folder)
    batch = collate(trainable.text.train, range(5))
    counts = set()
    for number in range(6):
        (step,) = trainable.steps(StepBatch(number, 0, (batch,)))
        counts.add(step.counts(batch)["nll"])
    assert len(counts) > 1


@torch.no_grad()
def test_all_tokens_of_a_tagger_count(folder: Path) -> None:
    trainable = made(folder, model={"init": str(folder / "tagger-toy")})
    batch = collate(trainable.text.train, range(5))
    (step,) = trainable.steps(StepBatch(0, 0, (batch,)))
    assert step.counts(batch)["nll"] == batch.target_mask_BT.sum()
    assert step.losses(batch)[0].count == batch.target_mask_BT.sum()


@torch.no_grad()
def test_smoothing_leaves_the_loss_finite(folder: Path) -> None:
    trainable = made(folder, label_smoothing=0.1)
    batch = collate(trainable.text.train, range(5))
    (step,) = trainable.steps(StepBatch(0, 0, (batch,)))
    assert all(term.sum.isfinite() for term in step.losses(batch))


@pytest.mark.parametrize("variant", ["masked-toy", "tagger-toy"])
def test_it_learns(variant: str, folder: Path) -> None:
    trainable = made(
        folder, steps=50, optimizer={"learning_rate": 0.03, "warmup_steps": 2}, model={"init": str(folder / variant)}
    )
    batches = trainable.plan.iterate()
    reports = toy.train(trainable, [next(batches) for _ in range(50)])
    for name in ("train/nll", "train/length"):
        first, last = (sum(report[name] for report in part) for part in (reports[:4], reports[-4:]))
        assert last < 0.85 * first


def test_dev_values(folder: Path) -> None:
    assert "dev/bleu" in made(folder, dev_iterations=2).evaluate()


def test_an_autoregressive_model_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="recurrent-toy"):
        made(folder, model={"variant": "recurrent-toy"})
