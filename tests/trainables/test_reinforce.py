"""REINFORCE: −(s − b) log p of samples, and what b is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from energymt.data.batching import collate
from energymt.decoding.sampling import SAMPLE_STREAM, sample
from energymt.models.estimator_folder import load_estimator
from energymt.models.scoring import score_lines
from energymt.operators import Noise
from energymt.records import Batch
from tests import toy
from trainables.reinforce import Reinforce

STEP, SENTENCES, SAMPLES = 3, 4, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.scored_world(tmp_path_factory.mktemp("world"))


def made(folder: Path, **changes: Any) -> Reinforce:
    settings = {"samples": SAMPLES, "top_p": 0.9, "temperature": 1.3, **changes}
    trainable = toy.make("reinforce", toy.config("reinforce", folder, **settings), double=True)
    trainable.model.eval()
    return trainable


def batch_of(trainable: Reinforce) -> Batch:
    return collate(trainable.text.train, range(SENTENCES))


def plain(trainable: Reinforce, folder: Path) -> tuple[list[list[float]], list[list[torch.Tensor]]]:
    """Score of the text and log-probability of each sample of each sentence, one by one."""
    config, model, words = trainable.config, trainable.model, trainable.text.vocabulary
    estimator = load_estimator(folder / "estimator")
    scores, logps = [], []
    for b in range(SENTENCES):
        batch = collate(trainable.text.train, [b])
        noise = Noise(config.seed, STEP, batch.sentence_ids_B, SAMPLE_STREAM)
        drawn = sample(model, batch.source, noise, SAMPLES, max_length=6, temperature=1.3, top_p=0.9)
        ids = [ids_T[mask_T].tolist() for ids_T, mask_T in zip(drawn.ids_RT, drawn.mask_RT, strict=True)]
        source = words.decode(batch.source.ids_BS[0].tolist())
        scores.append(list(score_lines(estimator, [source] * SAMPLES, [words.decode(row) for row in ids])))
        logps.append([])
        for row, ended in zip(ids, drawn.ended_R.tolist(), strict=True):
            target = torch.tensor([row])
            logits_UV = model.decode(model.encode(batch.source), target, torch.ones_like(target).bool())[0]
            logits_UV[:, list(words.never_ids)] = -torch.inf
            logp_UV = logits_UV.log_softmax(-1)
            said = [*row, words.eos_id] if ended else row
            logps[-1].append(torch.stack([logp_UV[place, token] for place, token in enumerate(said)]).sum())
    return scores, logps


def gradient(trainable: Reinforce, loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
    weights = [weight for weight in trainable.model.parameters() if weight.requires_grad]
    return torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("baseline", ["leave-one-out", "running"])
def test_the_loss_is_the_sum_over_samples(baseline: str, scale: float, folder: Path) -> None:
    trainable = made(folder, baseline=baseline, reward_scale=scale)
    trainable.running = -0.4
    terms = {term.name: term for term in trainable.losses(batch_of(trainable), STEP)}
    scores, logps = plain(trainable, folder)
    wanted = torch.zeros((), dtype=torch.float64)
    for row, ours in zip(scores, logps, strict=True):
        for k, (score, logp) in enumerate(zip(row, ours, strict=True)):
            others = [other for place, other in enumerate(row) if place != k]
            b = sum(others) / len(others) if baseline == "leave-one-out" else -0.4
            wanted = wanted - scale * (score - b) * logp
    # Text is scored in single precision there.
    assert terms["reinforce"].sum.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert terms["reward"].sum.item() == pytest.approx(sum(map(sum, scores)), rel=1e-5)
    assert (terms["reward"].weight, terms["reinforce"].weight) == (0.0, 1.0)
    count = float(SENTENCES * SAMPLES)
    assert {term.count for term in terms.values()} == {count}
    assert trainable.counts(batch_of(trainable)) == {"reinforce": count, "reward": count}
    ours, theirs = gradient(trainable, terms["reinforce"].sum), gradient(trainable, wanted)
    assert max(grad.abs().max() for grad in theirs) > 0.1
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def test_the_running_mean_is_that_of_the_steps_before(folder: Path) -> None:
    trainable = made(folder, baseline="running", decay=0.5)
    batches = trainable.plan.iterate()
    reports = toy.train(trainable, [next(batches) for _ in range(3)])
    rewards = [report["train/reward"] for report in reports]
    assert reports[0]["train/norm_unlabelled"] == 0.0, "nothing to compare with"
    assert all(report["train/norm_unlabelled"] > 0 for report in reports[1:])
    assert trainable.running == pytest.approx(0.5 * (0.5 * rewards[0] + 0.5 * rewards[1]) + 0.5 * rewards[2])


def test_samples_without_a_score_have_no_part_in_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainable = made(folder)
    begin = trainable.energy.begin_text

    def broken(*arguments: Any) -> Any:
        ask = begin(*arguments)

        def answer() -> torch.Tensor:
            energy_R = ask().clone()
            energy_R[:SAMPLES] = float("nan")
            return energy_R

        return answer

    whole = {term.name: term.sum.item() for term in trainable.losses(batch_of(trainable), STEP)}
    monkeypatch.setattr(trainable.energy, "begin_text", broken)
    terms = {term.name: term.sum for term in trainable.losses(batch_of(trainable), STEP)}
    assert torch.isfinite(terms["reinforce"]) and terms["reinforce"].item() != whole["reinforce"]
    assert all(torch.isfinite(grad).all() for grad in gradient(trainable, terms["reinforce"]))
    assert trainable.times()["unscored"] == SAMPLES
    scored = [sum(row) for row in plain(trainable, folder)[0][1:]]  # their mean stands for what has none
    assert terms["reward"].item() == pytest.approx(sum(scored) * SENTENCES / (SENTENCES - 1), rel=1e-6)


def test_a_step_without_unlabelled_sources_is_one_of_the_cross_entropy(folder: Path) -> None:
    trainable = made(folder, baseline="running")
    batches = trainable.plan.iterate()
    first, second = next(batches), replace(next(batches), unlabelled=())
    reports = toy.train(trainable, [first, second])
    assert "train/reinforce" not in reports[1] and reports[1]["train/norm_labelled"] > 0
    assert trainable.running == reports[0]["train/reward"]
