"""Labels of recordings: error rates of a recogniser's own transcripts, once for the same sound, and never useless."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from energymt.data.selection import folder_fingerprint
from energymt.data.speech import SpeechDataConfig, encode_speech
from energymt.decoding.transcribe import Transcriber
from energymt.decoding.translate import DecodingOptions
from energymt.errors import ConfigurationError, DataError
from energymt.metrics.speech import character_errors, word_errors
from energymt.models import load_translator
from energymt.models.speech import SpeechTransformer
from energymt.shards import pretending
from energymt.speech_labels import LabelledSpeech, label_recordings
from tests import sounds, tiny

TEXTS = sounds.sentences(7, seed=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    sounds.recogniser().save_pretrained(folder / "model")
    sounds.write(folder / "seven.npz", TEXTS)
    return folder


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENERGYMT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def opened(folder: Path) -> SpeechTransformer:
    model = load_translator(folder)
    assert isinstance(model, SpeechTransformer)
    return model


def label(path: Path, metric: str = "wer", model: Path | None = None, **data: Any) -> LabelledSpeech:
    place = model or path.parent / "model"
    config = SpeechDataConfig(**{"path": str(path), "text": "text", **data})
    return label_recordings(opened(place), folder_fingerprint(place), config, metric)


def transcripts(folder: Path, texts: list[str]) -> list[str]:
    transcriber = Transcriber(opened(folder / "model"), DecodingOptions(beam=1))
    return [best[0] for [best] in transcriber.transcribe(sounds.clips(texts))]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many recordings each call of a transcriber was given."""
    asked: list[int] = []
    real = Transcriber.stream

    def stream(self: Transcriber, clips: Any) -> Any:
        clips = list(clips)
        asked.append(len(clips))
        return real(self, clips)

    monkeypatch.setattr(Transcriber, "stream", stream)
    return asked


# -------------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("metric, errors", [("wer", word_errors), ("cer", character_errors)])
def test_rates_are_those_of_the_model_s_greedy_transcripts(metric: str, errors: Any, folder: Path) -> None:
    own = transcripts(folder, TEXTS)
    found = label(folder / "seven.npz", metric)
    alone = [errors([mine], [said]).total() for mine, said in zip(own, TEXTS, strict=True)]
    assert found.labels_N.tolist() == pytest.approx(alone)
    assert len(set(alone)) > 2 and found.corpus.text == TEXTS


def test_a_column_is_taken_as_it_is(folder: Path, tmp_path: Path, heard: list[int]) -> None:
    values = [0.0, 12.5, 33.0, 1.0, 2.0, 3.0, 4.0]
    path = sounds.write(tmp_path / "a.npz", TEXTS, noise=np.array(values), text=None)
    found = label(path, "column:noise", folder / "model", text=None)
    assert found.labels_N.tolist() == values and found.corpus.text is None
    for number in (0, 1):
        soundfile.write(tmp_path / f"{number}.wav", sounds.wave(TEXTS[number]), sounds.RATE)
    (tmp_path / "table.tsv").write_text("file\tjudged\n0.wav\t0.5\n1.wav\t-2\n", "utf-8")
    found = label(tmp_path / "table.tsv", "column:judged", folder / "model", text=None, audio="file")
    assert found.labels_N.tolist() == [0.5, -2.0]
    assert heard == []


# ------------------------------------------------------------------------------------------------------------ the cache


def test_the_same_sound_is_heard_once(folder: Path, tmp_path: Path, heard: list[int]) -> None:
    first = label(folder / "seven.npz")
    assert heard == [7]
    # Under another address, with other references, by another metric.
    path = sounds.write(tmp_path / "again.npz", TEXTS, text=np.array(TEXTS[::-1]))
    again = label(path, "wer", folder / "model")
    own = transcripts(folder, TEXTS)
    assert again.labels_N.tolist() == pytest.approx(
        [word_errors([mine], [said]).total() for mine, said in zip(own, TEXTS[::-1], strict=True)]
    )
    assert again.labels_N.tolist() != first.labels_N.tolist()
    label(folder / "seven.npz", "cer")
    assert heard == [7, 7], "the second seven are this test's own"


def test_other_samples_are_heard_anew(folder: Path, tmp_path: Path, heard: list[int]) -> None:
    label(folder / "seven.npz")
    samples = sounds.arrays(TEXTS)["samples"]
    samples[-1] += 1
    label(sounds.write(tmp_path / "louder.npz", TEXTS, samples=samples), model=folder / "model")
    assert heard == [7, 7]
    label(sounds.write(tmp_path / "turned.npz", TEXTS[::-1]), model=folder / "model")
    assert heard == [7, 7, 7]


def test_the_same_samples_in_other_recordings_are_heard_anew(folder: Path, tmp_path: Path, heard: list[int]) -> None:
    offsets = sounds.arrays(TEXTS)["offsets"]
    for moved in (0, 10):
        offsets[1] += moved
        changes = {"offsets": offsets, "sample_rate": np.array(16000)}  # the model's own: no sample is changed
        label(sounds.write(tmp_path / f"{moved}.npz", TEXTS, **changes), model=folder / "model")
    assert heard == [7, 7]


def test_another_model_hears_for_itself(folder: Path, tmp_path: Path, heard: list[int]) -> None:
    first = label(folder / "seven.npz")
    other = sounds.recogniser()
    tiny.shake(other, 0.6, 9)
    other.save_pretrained(tmp_path / "model")
    assert label(folder / "seven.npz", model=tmp_path / "model").labels_N.tolist() != first.labels_N.tolist()
    assert heard == [7, 7]
    plain = opened(folder / "model")
    plain.prefix_ids = (*plain.prefix_ids, 5)  # the same weights in another language
    plain.save_pretrained(tmp_path / "language")
    label(folder / "seven.npz", model=tmp_path / "language")
    assert heard == [7, 7, 7]


def test_a_dry_run_hears_nothing(folder: Path, runs: Path, heard: list[int]) -> None:
    with pretending() as notes:
        assert len(label(folder / "seven.npz").labels_N) == 7
    assert heard == [] and not runs.exists()
    assert len(notes) == 1 and notes[0].startswith("wer of 7 greedy transcripts of ")


# ------------------------------------------------------------------------------------------------- what cannot be used


def test_a_recording_that_is_too_long_keeps_its_row_and_is_left_out(folder: Path, tmp_path: Path) -> None:
    texts = [*TEXTS[:2], " ".join(["low"] * 7), *TEXTS[2:4]]  # the third takes 1.05 seconds
    path = sounds.write(tmp_path / "a.npz", texts)
    found = label(path, "wer", folder / "model")
    model = opened(folder / "model")
    encoded = encode_speech(found.corpus, model.vocabulary, model.features)
    assert (encoded.rows.tolist(), encoded.dropped, len(found.labels_N)) == ([0, 1, 3, 4], 1, 5)
    kept = label(folder / "seven.npz").labels_N[:4]
    assert found.labels_N[encoded.rows][:2].tolist() == kept[:2].tolist()


def test_labels_that_are_all_equal_are_refused(folder: Path, tmp_path: Path) -> None:
    path = sounds.write(tmp_path / "a.npz", TEXTS, snr=np.full(7, 5.0), text=np.array(["entirely"] * 7))
    with pytest.raises(DataError, match=r"All 7 labels \(column 'snr' of .*a\.npz\) are 5.*undefined"):
        label(path, "column:snr", folder / "model")
    with pytest.raises(DataError, match=r"All 1 labels \(wer of the model's transcripts of .*seven\.npz\)"):
        label(folder / "seven.npz", rows=1)


@pytest.mark.parametrize(
    "metric, kind, part",
    [
        ("chrf", ConfigurationError, "wer, cer or column:NAME, and not by 'chrf'"),
        ("column:wer", ConfigurationError, "no column 'wer' beside its recordings; there are: .*text"),
        ("column:text", DataError, "clip 0: column 'text' holds .* instead of a number"),
    ],
)
def test_a_metric_that_is_none_is_refused(metric: str, kind: type[Exception], part: str, folder: Path) -> None:
    with pytest.raises(kind, match=part):
        label(folder / "seven.npz", metric)


def test_a_rate_needs_transcripts(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="column of their transcripts in text"):
        label(folder / "seven.npz", text=None)
