"""Maximum likelihood: the loss is the model's own NLL, and the end token counts."""

from pathlib import Path

import pytest
import torch

from energymt.data.batching import collate
from energymt.energies import AutoregressiveEnergy
from energymt.errors import ConfigurationError
from energymt.records import StepBatch
from tests import toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.world(tmp_path_factory.mktemp("world"))


def made(folder: Path, **changes):
    trainable = toy.make("supervised", toy.config("supervised", folder, **changes))
    trainable.model.eval()
    return trainable


@torch.no_grad()
@pytest.mark.parametrize("variant", ["recurrent-toy", "transformer-toy"])
def test_without_smoothing_the_loss_is_the_nll_of_the_references(variant: str, folder: Path) -> None:
    trainable = made(folder, label_smoothing=0.0, model={"init": str(folder / variant)})
    batch = collate(trainable.text.train, range(7))
    (step,) = trainable.steps(StepBatch(0, 0, (batch,)))
    (term,) = step.losses(batch)
    nll_B = AutoregressiveEnergy(trainable.model).discrete(batch.source, batch.target_BT, batch.target_mask_BT)
    assert term.sum.item() == pytest.approx(nll_B.sum().item(), rel=1e-5)
    assert term.count == step.counts(batch)["nll"] == sum(len(trainable.text.train.target_ids[i]) + 1 for i in range(7))
    assert (term.name, term.weight, step.terms) == ("nll", 1.0, ("nll",))


@torch.no_grad()
def test_smoothing_spreads_mass_over_the_whole_vocabulary(folder: Path) -> None:
    smooth, plain = made(folder, label_smoothing=0.25), made(folder, label_smoothing=0.0)
    batch = collate(smooth.text.train, [3])
    target = [*batch.target_BT[0].tolist(), smooth.text.vocabulary.eos_id]
    logits_UV = smooth.model.decode(smooth.model.encode(batch.source), batch.target_BT, batch.target_mask_BT)[0]
    logp_UV = logits_UV.log_softmax(-1)
    nll = sum(-logp_UV[u, token].item() for u, token in enumerate(target))
    uniform = -logp_UV.mean(-1).sum().item()
    assert plain.losses(batch)[0].sum.item() == pytest.approx(nll, rel=1e-5)
    assert smooth.losses(batch)[0].sum.item() == pytest.approx(0.75 * nll + 0.25 * uniform, rel=1e-5)


def test_it_learns(folder: Path) -> None:
    trainable = made(folder, steps=30, optimizer={"learning_rate": 0.03, "warmup_steps": 2})
    batches = trainable.plan.iterate()
    reports = toy.train(trainable, [next(batches) for _ in range(30)])
    assert reports[-1]["train/nll"] < 0.8 * reports[0]["train/nll"]


def test_dev_values(folder: Path) -> None:
    values = made(folder).evaluate()
    assert {"dev/bleu", "dev/chrf", "dev/repetition", "dev/length_ratio"} <= values.keys()
    assert 0 <= values["dev/bleu"] <= 100


def test_a_non_autoregressive_model_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="masked-toy"):
        made(folder, model={"variant": "masked-toy"})


def test_a_model_of_another_vocabulary_than_the_text_is_refused(folder: Path, tmp_path: Path) -> None:
    other = toy.vocabulary(folder).train(["one two three four five six"] * 9, 20, model_type="word")
    toy.save_model(tmp_path, "recurrent-toy", other)
    settings = {
        "vocabulary": {"path": str(folder / "recurrent-toy")},
        "model": {"init": str(tmp_path / "recurrent-toy")},
    }
    with pytest.raises(ConfigurationError, match="different vocabularies"):
        made(folder, **settings)


def test_segmented_text_is_joined_in_output_as_the_data_says(tmp_path: Path) -> None:
    lines = ["un@@ der stand\tver@@ steh en", "be stand\tge@@ stan den"] * 4
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_text("source\ttarget\n" + "\n".join(lines) + "\n", encoding="utf-8")
    column = {"source": "source", "target": "target", "segmented": True, "joiner": "@@"}
    trainable = made(
        tmp_path,
        train={"path": str(tmp_path / "train.tsv"), **column},
        dev={"path": str(tmp_path / "dev.tsv"), **column},
        model={"variant": "recurrent-toy", "changes": toy.SMALL["recurrent-toy"]},
    )
    words = trainable.text.vocabulary
    assert words.decode(words.encode("ver@@ steh en")) == "versteh en"
