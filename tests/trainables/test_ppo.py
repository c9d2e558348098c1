"""PPO: clipped steps on the samples of one batch, divergence from the start, a value head that stays behind."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from energymt import runs
from energymt.data.batching import collate
from energymt.models import load_translator
from energymt.policy import group_advantage
from energymt.records import Batch, StepBatch, Term
from energymt.training import fit
from tests import toy
from trainables.ppo import Ppo, Rollout

STEP, SENTENCES, SAMPLES = 3, 4, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.scored_world(tmp_path_factory.mktemp("world"))


def made(folder: Path, double: bool = True, **changes: Any) -> Ppo:
    trainable = toy.make("ppo", toy.config("ppo", folder, samples=SAMPLES, **changes), double)
    trainable.model.eval()
    return trainable


def batch_of(trainable: Ppo) -> Batch:
    return collate(trainable.text.train, range(SENTENCES))


def shaken(trainable: Ppo) -> None:
    """Move the translator away from the one that drew the samples."""
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for weight in trainable.model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draw, dtype=weight.dtype))


def named(terms: list[Term]) -> dict[str, Term]:
    return {term.name: term for term in terms}


def begun(trainable: Ppo) -> tuple[dict[str, Term], Rollout]:
    """The terms of the first inner step, and what it leaves for the others."""
    rollouts: list[Rollout] = []
    found = trainable.first_losses(batch_of(trainable), STEP, rollouts)
    assert isinstance(found, list)
    return named(found), rollouts[0]


def gradient(trainable: Ppo, loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
    weights = [weight for weight in trainable.model.parameters() if weight.requires_grad]
    return torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)


def log_probs(model: Any, rollout: Rollout) -> list[torch.Tensor]:
    """log p of each token that was drawn, sample by sample."""
    samples, batch, words = rollout.drawn.samples, rollout.drawn.batch, model.vocabulary
    found = []
    for row, source_row in enumerate(samples.rows_R.tolist()):
        ids = samples.ids_RT[row][samples.mask_RT[row]][None]
        source = batch.source.select(torch.tensor([source_row]))
        logits_UV = model.decode(model.encode(source), ids, torch.ones_like(ids).bool())[0]
        logits_UV[:, list(words.never_ids)] = -torch.inf
        said = [*ids[0].tolist(), *([words.eos_id] if samples.ended_R[row] else [])]
        found.append(logits_UV.log_softmax(-1)[range(len(said)), said])
    return found


def test_the_first_inner_step_is_the_policy_gradient(folder: Path) -> None:
    trainable = made(folder)
    terms, rollout = begun(trainable)
    advantage_R = group_advantage(rollout.reward_R.view(-1, SAMPLES)).flatten()
    policy = -sum(a * logp.sum() for a, logp in zip(advantage_R, log_probs(trainable.model, rollout), strict=True))
    for ours, theirs in zip(gradient(trainable, terms["surrogate"].sum), gradient(trainable, policy), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert advantage_R.abs().max() > 0.5
    assert terms["clipped"].sum.item() == 0.0
    assert terms["kl"].sum.item() == pytest.approx(0.0, abs=1e-9), "the translator is the start"


def test_later_inner_steps_are_clipped_against_the_first(folder: Path) -> None:
    trainable = made(folder, clip=0.1)
    _, rollout = begun(trainable)
    old = [logp.detach() for logp in log_probs(trainable.model, rollout)]
    start = [logp.detach() for logp in log_probs(trainable.start, rollout)]
    shaken(trainable)
    terms, now = named(trainable.losses(rollout, trainable.say(rollout.drawn))), log_probs(trainable.model, rollout)
    advantage_R = group_advantage(rollout.reward_R.view(-1, SAMPLES)).flatten().tolist()
    surrogate = kl = 0.0
    held = 0
    for a, logp, before, first in zip(advantage_R, now, old, start, strict=True):
        for token in range(len(logp)):
            ratio = (logp[token] - before[token]).exp().item()
            clipped = min(max(ratio, 0.9), 1.1)
            surrogate -= min(ratio * a, clipped * a)
            held += clipped * a < ratio * a
            apart = (first[token] - logp[token]).item()
            kl += torch.tensor(apart).double().exp().item() - 1 - apart
    tokens = sum(map(len, now))
    assert terms["surrogate"].sum.item() == pytest.approx(surrogate, rel=1e-6)
    assert terms["kl"].sum.item() == pytest.approx(kl, rel=1e-5)
    assert 0 < held < tokens
    assert terms["clipped"].sum.item() / terms["clipped"].count == pytest.approx(held / tokens)
    weights = {name: term.weight for name, term in terms.items()}
    assert weights == {"surrogate": 1.0, "kl": 0.05, "clipped": 0.0, "reward": 0.0}
    assert terms["reward"].sum.item() == pytest.approx(rollout.reward_R.sum().item())


def test_a_value_head_is_what_advantages_are_taken_against(folder: Path) -> None:
    """With λ = 1 and no discount an advantage is the sentence's reward less the value of the place."""
    trainable = made(folder, advantage="value", trace=1.0)
    with torch.no_grad():
        trainable.model.heads["value"].bias.fill_(0.25)
    terms, rollout = begun(trainable)
    wanted = value = 0.0
    for reward, logp in zip(rollout.reward_R.tolist(), log_probs(trainable.model, rollout), strict=True):
        wanted -= (reward - 0.25) * len(logp)
        value += 0.5 * (reward - 0.25) ** 2 * len(logp)
    assert terms["surrogate"].sum.item() == pytest.approx(wanted, rel=1e-5)
    assert terms["value"].sum.item() == pytest.approx(value, rel=1e-5)
    assert terms["value"].weight == 0.1
    assert trainable.terms == tuple(terms)


def test_a_batch_gives_its_inner_steps_on_one_set_of_samples(folder: Path) -> None:
    trainable = made(folder, double=False, inner_steps=3)
    drawn: list[int] = []
    draw = trainable.draw
    trainable.draw = lambda batch, step: (drawn.append(step), draw(batch, step))[1]  # type: ignore[method-assign]
    batch = next(trainable.plan.iterate())
    reports = toy.train(trainable, [batch])
    assert len(reports) == 3 and len(drawn) == len(batch.unlabelled)
    assert len({report["train/reward"] for report in reports}) == 1
    assert ["train/draw_s" in report for report in reports] == [True, False, False]  # means are those of a batch
    assert reports[0]["train/kl"] == pytest.approx(0.0, abs=1e-6)
    assert 0 < reports[1]["train/kl"] < reports[2]["train/kl"]


def test_the_value_head_is_in_checkpoints_and_not_in_the_model(folder: Path, tmp_path: Path) -> None:
    trainable = made(folder, double=False, advantage="value", steps=4)
    result = fit(trainable, toy.fabric(), tmp_path / "checkpoints", lambda step, values: None)
    for kind in ("kept", "last"):
        newest = max((tmp_path / "checkpoints").glob(f"{kind}-*"))
        weights = safetensors.torch.load_file(newest / "weights.safetensors")
        assert {"heads.value.weight", "heads.value.bias"} <= weights.keys()
    assert weights["heads.value.weight"].abs().max() > 0
    runs.save_model(trainable, result, tmp_path, "ppo")
    saved = safetensors.torch.load_file(tmp_path / "model" / "model.safetensors")
    assert saved and not any(name.startswith("heads") for name in saved)
    alone = load_translator(tmp_path / "model")
    batch = batch_of(trainable)
    trainable.model.eval()
    with torch.no_grad():
        logits, wanted = (
            model.decode(model.encode(batch.source), batch.target_BT, batch.target_mask_BT)
            for model in (alone, trainable.model)
        )
    torch.testing.assert_close(logits, wanted)


def test_nothing_unlabelled_falls_to_a_worker(folder: Path) -> None:
    trainable = made(folder, double=False)
    batch = batch_of(trainable)
    reports = toy.train(trainable, [StepBatch(0, 0, (batch,), ())])
    assert len(reports) == 2 and all("train/surrogate" not in report for report in reports)
