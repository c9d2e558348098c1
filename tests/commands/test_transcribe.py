"""`energymt transcribe`, `data digits` and `models import` of a Whisper: order, n-best, error rates, one sentence for
whatever is wrong.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from energymt.decoding.transcribe import Transcriber
from energymt.decoding.translate import DecodingOptions
from energymt.errors import ConfigurationError
from energymt.metrics.speech import word_errors
from energymt.models import load_translator
from energymt.models.speech import SpeechTransformer
from tests import sounds
from tests.terminal import Done, quick

TEXTS = sounds.sentences(7, seed=6)
NAMES = [f"{number}.{'flac' if number % 2 else 'wav'}" for number in range(len(TEXTS))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, recordings in files, in a table and in an archive."""
    folder = tmp_path_factory.mktemp("transcribe")
    sounds.recogniser().save_pretrained(folder / "model")
    for number, (name, text) in enumerate(zip(NAMES, TEXTS, strict=True)):
        soundfile.write(folder / name, sounds.wave(text, seed=number), sounds.RATE)
    pairs = list(zip(NAMES, TEXTS, strict=True))
    lines = [f"{name}\t{text}\t{'even' if name.endswith('wav') else 'odd'}\n" for name, text in pairs]
    (folder / "table.tsv").write_text("file\ttext\tkind\n" + "".join(lines), "utf-8")
    sounds.write(folder / "all.npz", TEXTS)
    return folder


def lines(place: Path, *arguments: str) -> list[str]:
    done = quick("transcribe", "model", *arguments, folder=place)
    assert (done.code, done.err) == (0, "")
    return done.out.splitlines()


def expected(place: Path, **options: int) -> list[str]:
    """What the library says."""
    model = load_translator(place / "model")
    assert isinstance(model, SpeechTransformer)
    found = Transcriber(model, DecodingOptions(**options)).transcribe(sounds.clips(TEXTS))
    return [candidates[0][0] for candidates in found]


def test_transcripts_come_in_order_from_files_tables_and_archives(place: Path) -> None:
    wanted = expected(place, beam=2)
    assert len(set(wanted)) > 1
    assert lines(place, *NAMES, "--beam", "2") == wanted
    assert lines(place, *NAMES[::-1], "--beam", "2", "--tokens-per-batch", "1") == wanted[::-1]
    assert lines(place, "--data", "table.tsv", "--audio", "file", "--beam", "2") == wanted
    assert lines(place, "--data", "all.npz", "--beam", "2") == wanted
    chosen = lines(place, "--data", "table.tsv", "--audio", "file", "--only", "kind=odd", "--beam", "2")
    assert chosen == wanted[1::2]


def test_n_best_lists_number_text_and_score(place: Path) -> None:
    found = lines(place, *NAMES[:3], "--beam", "3", "--n-best", "3")
    parts = [re.fullmatch(r"(\d+) \|\|\| (.*) \|\|\| (-?\d+\.\d{4})", line) for line in found]
    assert [int(part[1]) for part in parts if part] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for first in range(0, 9, 3):
        scores = [float(part[3]) for part in parts[first : first + 3] if part]
        assert scores == sorted(scores, reverse=True)


def test_error_rates_stand_on_stderr(place: Path) -> None:
    arguments = ("--data", "table.tsv", "--audio", "file", "--text", "text", "--beam", "1", "--score")
    done = quick("transcribe", "model", *arguments, folder=place)
    assert done.code == 0
    found = done.out.splitlines()
    assert found == expected(place, beam=1)
    wer = word_errors(found, TEXTS).total()
    assert f"7 recordings, {sum(len(text.split()) for text in TEXTS)} words" in done.err
    assert re.search(rf"WER +{wer:.2f} %   95 % \[\d", done.err) and "CER" in done.err
    assert re.search(r"of words: substitutions .* %, insertions .* %, deletions .* %", done.err)


def test_what_is_longer_than_the_window_is_cut_with_a_warning(place: Path, tmp_path: Path) -> None:
    long = sounds.wave(" ".join(["low", "mid", "top"] * 3))  # 1.35 seconds
    soundfile.write(tmp_path / "long.wav", long, sounds.RATE)
    soundfile.write(tmp_path / "cut.wav", long[: sounds.RATE], sounds.RATE)
    done = quick("transcribe", str(place / "model"), "long.wav", "cut.wav", folder=tmp_path)
    assert done.code == 0
    assert re.search(r"long\.wav is 1\.4 seconds long and the model hears 1: the rest is not transcribed", done.err)
    assert "cut.wav" not in done.err
    first, second = done.out.splitlines()
    assert first == second


def refused(place: Path, code: int, *parts: str, arguments: tuple[str, ...]) -> Done:
    done = quick("transcribe", *arguments, folder=place)
    done.refuses(code, *parts)
    return done


@pytest.mark.parametrize(
    "arguments, code, parts",
    [
        (("model",), 2, ["either audio files, or a TSV"]),
        (("model", "0.wav", "--data", "all.npz"), 2, ["either audio files"]),
        (("model", "0.wav", "--text", "text"), 2, ["Columns are those of --data"]),
        (("model", "--data", "all.npz", "--score"), 2, ["--score", "column in --text"]),
        (("model", "--data", "all.npz", "--only", "kind"), 2, ["--only 'kind'", "column=value"]),
        (("model", "--data", "all.npz", "--beam", "2", "--n-best", "3"), 2, ["n_best is 3 and beam 2"]),
        (("model", "--data", "table.tsv"), 2, ["table.tsv", "in audio"]),
        (("model", "none.wav"), 4, ["none.wav does not exist"]),
        (("model", "table.tsv"), 4, ["table.tsv cannot be read as audio"]),
        (("model", "--data", "all.npz", "--text", "words", "--score"), 4, ["no column 'words'"]),
        (("nomodel", "0.wav"), 5, ["nomodel"]),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments: tuple[str, ...], code: int, parts: list[str], place: Path) -> None:
    assert refused(place, code, *parts, arguments=arguments).out == ""


def test_a_recording_that_is_no_sound_stops_with_its_name(place: Path, tmp_path: Path) -> None:
    wave = sounds.wave("low mid")
    soundfile.write(tmp_path / "good.wav", wave, sounds.RATE, subtype="FLOAT")
    wave[100] = np.nan
    soundfile.write(tmp_path / "bad.wav", wave, sounds.RATE, subtype="FLOAT")
    arguments = ("transcribe", str(place / "model"), "good.wav", "bad.wav", "--tokens-per-batch", "1")
    done = quick(*arguments, folder=tmp_path)
    done.refuses(4, "bad.wav holds NaN")
    assert len(done.out.splitlines()) == 1  # what was done before it is there


def test_readers_and_hearers_send_to_each_other(place: Path, tmp_path: Path) -> None:
    from tests import tiny

    tiny.scratch(sounds.vocabulary()).save_pretrained(tmp_path / "reader")
    refused(place, 2, "reads text", "energymt translate", arguments=(str(tmp_path / "reader"), "0.wav"))
    done = quick("translate", "model", folder=place, stdin="low mid\n")
    done.refuses(2, "energymt transcribe")


def test_a_model_whose_states_are_changed_is_as_good() -> None:
    """What decodes from perturbed states is any model with another `encode`."""
    import copy
    from dataclasses import replace

    model, changed = sounds.recogniser(), []
    twin = copy.copy(model)

    def encode(source):
        changed.append(len(source))
        memory = model.encode(source)
        return replace(memory, states_BSD=-memory.states_BSD)

    object.__setattr__(twin, "encode", encode)
    clips = sounds.clips(TEXTS)
    found = [best[0][0] for best in Transcriber(twin, DecodingOptions(beam=1)).transcribe(clips)]
    plain = [best[0][0] for best in Transcriber(model, DecodingOptions(beam=1)).transcribe(clips)]
    assert changed == [7] and found != plain
    with pytest.raises(ConfigurationError, match="n_best is 2 and samples 1"):
        Transcriber(model, DecodingOptions(samples=1, n_best=2))
    drawn = Transcriber(model, DecodingOptions(samples=4, n_best=4)).transcribe(clips[:2])
    assert [len(candidates) for candidates in drawn] == [4, 4]


# ------------------------------------------------------------------------------------------------ from data to a model


def test_strings_of_digits_train_a_model_that_transcribes(tmp_path: Path) -> None:
    said = [(who, word, take) for who in "ab" for word in sounds.TONES for take in range(5)]
    rows = [f"{who}\t0\t{word}\t{take}\t{'test' if take > 3 else 'train'}\n" for who, word, take in said]
    (tmp_path / "index.tsv").write_text("speaker\tdigit\tword\ttake\tsplit\n" + "".join(rows), "utf-8")
    sounds.write(tmp_path / "singles.npz", [word for _, word, _ in said])
    command = ("data", "digits", "singles.npz", "digits", "--index", "index.tsv", "--train", "20", "--dev", "4")
    done = quick(*command, "--test", "4", "--proxy", "3", "--noise", "clean", "--noise", "5", folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert re.fullmatch(
        r"digits/train\.npz holds 20 strings, .*\ndigits/dev\.npz holds 4 .*\ndigits/test\.npz holds 4 .*\n"
        r"digits/proxy\.npz holds 3 .*\n",
        done.out,
    )
    changes = "{width: 16, feedforward: 24, encoder_layers: 1, decoder_layers: 1, heads: 2, mel_bins: 12}"
    settings = [
        *("train.path=digits/train.npz", "train.text=text", "dev.path=digits/dev.npz", "dev.text=text"),
        *("vocabulary.size=20", "vocabulary.model_type=word", "model.variant=whisper-toy", f"model.changes={changes}"),
        *("steps=4", "tokens_per_step=20", "tokens_per_micro_batch=1000", "evaluate_every=2", "device=cpu"),
    ]
    sets = [part for setting in settings for part in ("--set", setting)]
    done = quick("train", "speech", *sets, "--name", "digits", "--tracking", "none", folder=tmp_path)
    assert done.code == 0 and "dev/wer" in done.err
    done = quick("transcribe", "runs/digits/model", "--data", "digits/test.npz", "--only", "snr=5", folder=tmp_path)
    assert (done.code, len(done.out.splitlines())) == (0, 2)
    done = quick("data", "digits", "singles.npz", "digits", "--index", "index.tsv", "--noise", "loud", folder=tmp_path)
    done.refuses(2, "decibels", "'loud'")
    (tmp_path / "index.tsv").write_text("word\n" + "low\n" * len(said), "utf-8")
    done = quick("data", "digits", "singles.npz", "digits", "--index", "index.tsv", folder=tmp_path)
    done.refuses(4, "index.tsv has no column 'speaker'")


def test_a_whisper_checkpoint_is_imported_and_transcribes(place: Path, tmp_path: Path) -> None:
    sounds.whisper(tmp_path / "whisper")
    done = quick("models", "import", "whisper", "model", "--source-language", "en", folder=tmp_path)
    assert (done.code, done.err) == (0, "") and "WhisperForConditionalGeneration with 334 tokens" in done.out
    done = quick("transcribe", "model", *(str(place / name) for name in NAMES[:2]), folder=tmp_path)
    assert (done.code, len(done.out.splitlines())) == (0, 2)
    languages = ("--source-language", "de", "--target-language", "en")
    quick("models", "import", "whisper", "english", *languages, folder=tmp_path)
    translator = load_translator(tmp_path / "english")
    assert [translator.vocabulary.piece(i) for i in translator.prefix_ids][1:3] == ["<|de|>", "<|translate|>"]
    for options, parts in (
        ([], ["multilingual", "'en'"]),
        (["--source-language", "eng"], ["no language 'eng'", "did you mean 'en'"]),
        (["--source-language", "en", "--target-language", "de"], ["or English, and not 'de'"]),
        (["--source-language", "en", "--source-prefix", "x"], ["hears sound"]),
    ):
        quick("models", "import", "whisper", "other", *options, folder=tmp_path).refuses(2, *parts)
