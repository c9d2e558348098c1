"""A recogniser by maximum likelihood: the loss is the model's own NLL, dev WER chooses, a run can be resumed."""

import json
from pathlib import Path

import pytest
import torch

from energymt.checkpoints import Checkpoints, Progress
from energymt.decoding.transcribe import Transcriber
from energymt.decoding.translate import DecodingOptions
from energymt.energies import AutoregressiveEnergy
from energymt.errors import ConfigurationError, DataError
from energymt.metrics.speech import character_errors, word_errors
from energymt.models import load_translator
from energymt.optimisation import make_optimizer
from energymt.plan import describe
from energymt.records import StepBatch
from energymt.runs import check_same_config, start
from energymt.training import fit
from tests import sounds, toy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sounds.world(tmp_path_factory.mktemp("sounds"))


def made(folder: Path, **changes):
    trainable = sounds.make(sounds.config(folder, **changes))
    trainable.model.eval()
    return trainable


@torch.no_grad()
def test_without_smoothing_the_loss_is_the_nll_of_the_transcripts(folder: Path) -> None:
    trainable = made(folder, label_smoothing=0.0)
    batch = trainable.train.batch(range(7))
    (step,) = trainable.steps(StepBatch(0, 0, (batch,)))
    (term,) = step.losses(batch)
    nll_B = AutoregressiveEnergy(trainable.model).discrete(batch.source, batch.target_BT, batch.target_mask_BT)
    assert term.sum.item() == pytest.approx(nll_B.sum().item(), rel=1e-5)
    assert term.count == step.counts(batch)["nll"] == int(trainable.train.target_lengths[:7].sum()) + 7
    assert (term.name, term.weight, step.terms) == ("nll", 1.0, ("nll",))


def test_one_batch_is_as_good_as_many(folder: Path) -> None:
    """The same sentences in one micro-batch, or one by one: the same step."""
    found = []
    for cuts in ([range(6)], [[row] for row in range(6)]):
        trainable = made(folder)
        (report,) = toy.train(trainable, [StepBatch(0, 0, tuple(trainable.train.batch(chosen) for chosen in cuts))])
        found.append((report["train/nll"], report["train/gradient_norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_it_learns(tmp_path: Path) -> None:
    folder = sounds.world(tmp_path, train=40)
    trainable = made(
        folder,
        model={"variant": "whisper-toy", "changes": {**sounds.SMALL, "width": 32, "feedforward": 64}},
        vocabulary={"size": 20, "model_type": "word"},
        steps=120,
        optimizer={"learning_rate": 0.01, "warmup_steps": 10},
    )
    before, batches = trainable.evaluate()["dev/wer"], trainable.plan.iterate()
    reports = toy.train(trainable, [next(batches) for _ in range(120)])
    trainable.model.eval()
    assert reports[-1]["train/nll"] < 0.7 * reports[0]["train/nll"]
    assert trainable.evaluate()["dev/wer"] < min(70.0, before)


def test_dev_values_are_those_of_greedy_transcripts(folder: Path) -> None:
    trainable = made(folder)
    values = trainable.evaluate()
    transcriber = Transcriber(trainable.model, DecodingOptions(beam=1, tokens_per_batch=1))
    found = [candidates[0][0] for candidates in transcriber.transcribe(trainable.dev.clips)]
    assert values["dev/wer"] == pytest.approx(word_errors(found, trainable.references).total())
    assert values["dev/cer"] == pytest.approx(character_errors(found, trainable.references).total())
    kinds = sum(values[f"dev/{kind}"] for kind in ("substitutions", "insertions", "deletions"))
    assert kinds == pytest.approx(values["dev/wer"])


def test_the_lowest_error_rate_is_kept(folder: Path, tmp_path: Path) -> None:
    """The loop, from the first step to a model whose error rate is the best of the run."""
    trainable = made(folder, steps=6, evaluate_every=1)
    said: list[float] = []
    result = fit(trainable, toy.fabric(), tmp_path, lambda step, values: said.append(values.get("dev/wer", 1e9)))
    assert trainable.METRIC == "dev/wer" and not trainable.HIGHER_IS_BETTER
    assert result.progress.best == min(said) == pytest.approx(result.metrics["dev/wer"])


def test_a_checkpoint_holds_what_training_changes(folder: Path, tmp_path: Path) -> None:
    trainable, again = made(folder), made(folder)
    toy.train(trainable, [next(trainable.plan.iterate())])
    optimizer = make_optimizer(trainable.model, trainable.config.optimizer)
    Checkpoints(tmp_path).save(trainable.model, optimizer, Progress(step=1))
    progress, _ = Checkpoints(tmp_path).resume(again.model, make_optimizer(again.model, again.config.optimizer))
    assert progress.step == 1
    pairs = zip(again.model.parameters(), trainable.model.parameters(), strict=True)
    assert all(torch.equal(left, right) for left, right in pairs)


def test_a_plan_tells_of_sound(folder: Path) -> None:
    shown = describe("speech", sounds.config(folder, train={"path": str(folder / "train.npz"), "text": "text"}), 1)
    assert "training sound 24 recordings, 0.0 hours" in shown and "dev sound      6 recordings" in shown
    assert "within limits  24 pairs (0 are too long or empty)" in shown
    assert "model          speech" in shown and "dev/wer (lower is better)" in shown


def test_what_is_too_long_is_left_out(tmp_path: Path) -> None:
    folder = sounds.world(tmp_path)
    texts = [*sounds.sentences(5), " ".join(["low"] * 7)]  # more than a second
    sounds.write(folder / "train.npz", texts)
    _, trainable = start("speech", sounds.config(folder))
    assert (len(trainable.plan.encoded), trainable.plan.encoded.dropped) == (5, 1)
    sounds.write(folder / "dev.npz", texts[-1:])
    with pytest.raises(DataError, match=r"dev\.npz fits the model, which takes 1 seconds"):
        sounds.make(sounds.config(folder))


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"model": {"variant": "transformer-toy"}}, "transformer-toy reads text"),
        ({"train": {"path": "train.npz"}}, "column of their transcripts"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes: dict, part: str, folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigurationError, match=part):
        made(folder, **changes)


def test_an_imported_whisper_goes_on_learning(tmp_path: Path) -> None:
    from energymt.models.speech import SpeechTransformer

    folder = sounds.world(tmp_path)
    whisper = SpeechTransformer.from_checkpoint(sounds.whisper(tmp_path / "whisper"), "en")
    whisper.save_pretrained(tmp_path / "imported")
    trainable = made(folder, model={"init": str(tmp_path / "imported")})
    report = toy.train(trainable, [next(trainable.plan.iterate())])[0]
    assert report["train/gradient_norm"] > 0
    trainable.model.save_pretrained(tmp_path / "trained")
    manifest = json.loads((tmp_path / "trained" / "translator.json").read_text("utf-8"))
    assert manifest["config"]["prefix_ids"] == list(whisper.prefix_ids)
    assert load_translator(tmp_path / "trained").features.states == 50


def test_a_run_keeps_its_configuration(folder: Path, tmp_path: Path) -> None:
    import yaml

    (tmp_path / "checkpoints").mkdir()
    config = sounds.config(folder, dev={"path": "dev.npz", "text": "text", "only": {"snr": ["clean", 5]}})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")), "utf-8")
    check_same_config(tmp_path, config)
    with pytest.raises(ConfigurationError, match="another dev"):
        check_same_config(tmp_path, sounds.config(folder))
