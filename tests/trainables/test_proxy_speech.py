"""A proxy that listens: it learns what a frozen recogniser's transcripts are worth, and knows that errors are bad."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from energymt.decoding.transcribe import Transcriber
from energymt.decoding.translate import DecodingOptions
from energymt.errors import ConfigurationError
from energymt.folders import weights_fingerprint
from energymt.metrics.estimation import pearson
from energymt.metrics.speech import word_errors
from energymt.models import load_translator
from energymt.models.proxy import load_proxy
from energymt.models.speech import SpeechTransformer
from energymt.plan import describe
from tests import proxies, sounds, tiny, toy
from trainables.proxy import ProxyTraining


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings with an easy label beside them, the share of low tones, and a recogniser."""
    folder = sounds.world(tmp_path_factory.mktemp("sounds"), train=60, dev=16)
    for name, count, seed in (("train", 60, 1), ("dev", 16, 2)):
        texts = sounds.sentences(count, seed=seed)
        shares = [100 * text.split().count("low") / len(text.split()) for text in texts]
        sounds.write(folder / f"{name}.npz", texts, easy=np.array(shares))
    return folder


@pytest.fixture(autouse=True)
def runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGYMT_RUNS", str(folder / "runs"))


def run(folder: Path, out: Path, stop_at: int | None = None, **changes: Any) -> tuple[ProxyTraining, Any, list[Any]]:
    """One call of `fit`: the trainable, the result and all that was reported."""
    trainable = proxies.listening(folder, **changes)
    return trainable, *toy.fitted(trainable, out, stop_at)


def test_its_labels_are_the_errors_of_each_transcript(folder: Path) -> None:
    trainable = proxies.listening(folder)
    model = load_translator(folder / "model")
    assert isinstance(model, SpeechTransformer)
    texts = sounds.sentences(16, seed=2)
    heard = Transcriber(model, DecodingOptions(beam=1)).transcribe(sounds.clips(texts))
    alone = [word_errors([best[0]], [text]).total() for [best], text in zip(heard, texts, strict=True)]
    encoded, labels_N = trainable.held_out["dev"]
    assert labels_N.tolist() == pytest.approx(alone) and len(encoded) == 16
    assert len(set(alone)) > 2


@pytest.mark.parametrize("lower", [False, True])
def test_it_learns_an_easy_label_and_serves(lower: bool, folder: Path, tmp_path: Path) -> None:
    before = {name: weight.clone() for name, weight in load_translator(folder / "model").state_dict().items()}
    changes = {"metric": "column:easy", "lower_is_better": lower, "steps": 40, "evaluate_every": 20}
    trainable, result, reports = run(folder, tmp_path / "run", tokens_per_step=1000, **changes)
    assert result.metrics["dev/pearson"] > 0.5
    losses = [values["train/loss"] for _, values in reports if "train/loss" in values]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    after = trainable.translator.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    trainable.model.save_pretrained(tmp_path / "proxy")
    served = load_proxy(tmp_path / "proxy")
    served.require_fit(weights_fingerprint(folder / "model"), sounds.SMALL["width"], "it")
    assert served.config.higher_is_better is not lower
    encoded, labels_N = trainable.held_out["dev"]
    memory = trainable.states(encoded.batch(range(16)))
    with torch.no_grad():
        merit_N = served.merit(memory.states_BSD, memory.mask_BS).double().numpy()
    assert pearson(merit_N, labels_N.numpy()) * (-1 if lower else 1) > 0.5


@pytest.mark.parametrize("metric", ["wer", "cer"])
def test_fewer_errors_are_better(metric: str, folder: Path) -> None:
    trainable = proxies.listening(folder, metric=metric)
    assert not trainable.model.config.higher_is_better and trainable.model.config.metric == metric
    batches = trainable.plan.iterate()
    reports = toy.train(trainable, [next(batches) for _ in range(3)])
    assert all(-1 <= report["train/loss"] <= 1 and report["train/gradient_norm"] > 0 for report in reports)
    assert -1 <= trainable.evaluate()["dev/pearson"] <= 1
    memory = trainable.states(trainable.plan.encoded.batch([0, 1]))
    trainable.model.scale.fill_(2.0)
    predicted_B = trainable.model.predict(memory.states_BSD, memory.mask_BS)
    assert torch.equal(trainable.model.merit(memory.states_BSD, memory.mask_BS), -predicted_B)


def test_silence_behind_a_recording_is_not_read(folder: Path) -> None:
    """Whisper encodes a whole window; the proxy reads the states of the recording."""
    trainable = proxies.listening(folder)
    memory = trainable.states(trainable.plan.encoded.batch([0, 1, 2]))
    assert memory.mask_BS.shape == (3, 50) and not memory.mask_BS.all()
    changed_BSD = memory.states_BSD.masked_fill(~memory.mask_BS.unsqueeze(-1), 7.0)
    trainable.model.eval()
    assert torch.equal(trainable.model(changed_BSD, memory.mask_BS), trainable.model(memory.states_BSD, memory.mask_BS))


def test_recordings_that_are_too_long_keep_the_labels_in_step(folder: Path, tmp_path: Path) -> None:
    texts = ["low", " ".join(["low"] * 7), "mid", "top top"]  # the second takes 1.05 seconds
    sounds.write(tmp_path / "a.npz", texts, easy=np.array([1.0, 2.0, 3.0, 4.0]))
    data = {"path": str(tmp_path / "a.npz")}
    trainable = proxies.listening(folder, metric="column:easy", train=data, dev=data)
    assert trainable.plan.encoded.dropped == 1
    found = {}
    for step in trainable.plan.epoch(0):
        for chosen in step:
            batch = trainable.plan.encoded.batch(chosen)
            lengths_B = batch.source.mask_BS.sum(1).tolist()
            found |= dict(zip(trainable.labels_N[batch.sentence_ids_B].tolist(), lengths_B, strict=True))
    assert found.keys() == {1.0, 3.0, 4.0} and found[4.0] > found[3.0] == found[1.0]


def test_other_recordings_are_reported_beside_dev(folder: Path) -> None:
    other = {"path": str(folder / "train.npz"), "text": "text", "rows": 12}
    values = proxies.listening(folder, transfer={"other": other}).evaluate()
    assert values.keys() == {"dev/pearson", "dev/spearman", "dev/error", "dev/pearson_other", "dev/spearman_other"}
    assert values["dev/pearson"] == proxies.listening(folder).evaluate()["dev/pearson"] != values["dev/pearson_other"]


def left(out: Path) -> dict[str, torch.Tensor]:
    newest = max(out.glob("last-*"))
    files = sorted(newest.glob("*.safetensors"))
    return {f"{file.name}.{k}": v for file in files for k, v in safetensors.torch.load_file(file).items()}


def test_a_resumed_run_is_the_undisturbed_one(folder: Path, tmp_path: Path) -> None:
    _, wanted, reports = run(folder, tmp_path / "whole")
    before = []
    for at in (1, 4):  # before and behind the first calibration
        _, first, some = run(folder, tmp_path / "cut", stop_at=at)
        assert first.interrupted and first.progress.step == at
        before += some
    _, result, after = run(folder, tmp_path / "cut")
    assert before + after == reports and result.metrics == wanted.metrics
    theirs, own = left(tmp_path / "cut"), left(tmp_path / "whole")
    assert theirs.keys() == own.keys() and all(torch.equal(theirs[name], own[name]) for name in own)


def test_a_plan_says_what_would_be_heard(folder: Path) -> None:
    shown = describe("proxy_speech", proxies.listening(folder).config, 1)
    assert "training sound 60 recordings" in shown and "dev/pearson (higher is better)" in shown
    assert "made first     wer of 60 greedy transcripts of" in shown
    silent = {name: {"path": str(folder / f"{name}.npz")} for name in ("train", "dev")}
    shown = describe("proxy_speech", proxies.listening(folder, metric="column:easy", **silent).config, 1)
    assert "dev sound      16 recordings" in shown and "made first" not in shown


def test_readers_and_hearers_send_to_each_other(folder: Path, tmp_path: Path) -> None:
    tiny.scratch(sounds.vocabulary()).save_pretrained(tmp_path / "reader")
    with pytest.raises(ConfigurationError, match="reader reads text: train its proxy by `energymt train proxy`"):
        proxies.listening(folder, translator=str(tmp_path / "reader"))
    world = toy.world(tmp_path / "world")
    settings = toy.config("proxy", world, translator=str(folder / "model"))
    with pytest.raises(ConfigurationError, match=r"model hears recordings: .*`energymt train proxy_speech`"):
        toy.make("proxy", settings)


@pytest.mark.parametrize(
    "changes, part",
    [
        ({"metric": "chrf"}, "measured by wer, cer or column:NAME"),
        ({"lower_is_better": True}, "direction of wer is known: drop lower_is_better"),
        ({"train": {"path": "train.npz"}}, "column of their transcripts in text"),
        ({"model": {"variant": "whisper-toy"}}, "drop `model`.*translator=ADDRESS"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(changes: Any, part: str, folder: Path, monkeypatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigurationError, match=part):
        proxies.listening(folder, **changes)
