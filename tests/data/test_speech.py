"""Recordings with their transcripts: archives, indices, tables of files; features, batches; strings of digits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from pydantic import ValidationError

from energymt.data.audio import Clip, read_archive
from energymt.data.batching import StepPlan
from energymt.data.digits import CLEAN, archive_of, make_digits, parts_of
from energymt.data.speech import LogMel, SpeechDataConfig, encode_speech, read_speech
from energymt.errors import ConfigurationError, DataError
from tests import sounds

TEXTS = ["low high", "mid", "top low mid"]
INDEX = "clip\tword\tsplit\n0\tlow high\ttrain\n1\tmid\ttest\n2\ttop low mid\ttrain\n"


@pytest.fixture
def archive(tmp_path: Path) -> str:
    (tmp_path / "index.tsv").write_text(INDEX, "utf-8")
    return str(sounds.write(tmp_path / "three.npz", TEXTS, snr=np.array([0.0, 5.5, 20.0])))


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A TSV of files of several kinds and rates, in a folder beside it."""
    (tmp_path / "files").mkdir()
    lines = ["file\tsaid\tpart\n"]
    for text, (suffix, rate) in zip(TEXTS, ((".wav", 8000), (".flac", 22050), (".wav", 16000)), strict=True):
        name = f"files/{len(lines)}{suffix}"
        soundfile.write(tmp_path / name, sounds.wave(text, rate), rate)
        lines.append(f"{name}\t{text}\t{rate}\n")
    (tmp_path / "table.tsv").write_text("".join(lines), "utf-8")
    return str(tmp_path / "table.tsv")


def test_an_archive_holds_its_transcripts(archive: str) -> None:
    corpus = read_speech(SpeechDataConfig(path=archive, text="text"))
    assert corpus.text == TEXTS and corpus.columns["snr"] == ["0.0", "5.5", "20.0"]
    assert corpus.seconds == pytest.approx(6 * sounds.SECONDS)


def test_an_index_names_what_is_read(archive: str, tmp_path: Path) -> None:
    config = {"path": archive, "index": str(tmp_path / "index.tsv"), "text": "word"}
    assert read_speech(SpeechDataConfig(**config)).text == TEXTS
    corpus = read_speech(SpeechDataConfig(**config, only={"split": "train"}))
    assert corpus.text == [TEXTS[0], TEXTS[2]] and corpus.clips[1].place.endswith("clip 2")
    assert read_speech(SpeechDataConfig(**config, only={"snr": [5.5, 20.0], "split": "train"})).text == [TEXTS[2]]
    assert read_speech(SpeechDataConfig(**config, only={"split": "train"}, rows=1)).text == [TEXTS[0]]


def test_a_table_names_files_beside_it(table: str) -> None:
    corpus = read_speech(SpeechDataConfig(path=table, audio="file", text="said"))
    assert corpus.text == TEXTS and [clip.rate for clip in corpus.clips] == [8000, 22050, 16000]
    assert read_speech(SpeechDataConfig(path=table, audio="file"), need_text=False).text is None
    assert len(read_speech(SpeechDataConfig(path=table, audio="file", text="said", only={"part": 16000}))) == 1


def test_keys_that_do_not_go_together(archive: str, table: str) -> None:
    for config, part in (
        ({"path": archive}, "name the column of their transcripts"),
        ({"path": archive, "text": "text", "audio": "file"}, "drop audio"),
        ({"path": table, "text": "said"}, "column of audio files"),
        ({"path": table, "text": "said", "audio": "file", "index": table}, "drop index"),
    ):
        with pytest.raises(ConfigurationError, match=part):
            read_speech(SpeechDataConfig(**config))
    with pytest.raises(ValidationError):
        SpeechDataConfig(path=archive, transcript="text")


def test_columns_and_rows_that_are_not_there(archive: str, table: str) -> None:
    for config, part in (
        ({"path": archive, "text": "texd"}, "did you mean 'text'"),
        ({"path": archive, "text": "text", "only": {"split": "a"}}, "no column 'split'"),
        ({"path": archive, "text": "text", "only": {"snr": 7}}, "no recording with snr 7"),
        ({"path": table, "text": "said", "audio": "flie"}, "did you mean 'file'"),
    ):
        with pytest.raises(DataError, match=part):
            read_speech(SpeechDataConfig(**config))


@pytest.mark.parametrize(
    "lines, part",
    [
        (INDEX + "3\tlow\ttrain\n", r"index\.tsv:5 describes no recording.* 3 clips and its index 4"),
        (INDEX.rpartition("2\t")[0], r"clip 2 has no transcript.* 3 clips.* 2 lines"),
        (INDEX.replace("\tmid\t", "\t \t"), r"index\.tsv:3: column 'word' is empty"),
        ("clip\tword\tsplit\n", "clip 0 has no transcript"),
    ],
)
def test_recordings_and_transcripts_belong_together(lines: str, part: str, archive: str, tmp_path: Path) -> None:
    (tmp_path / "index.tsv").write_text(lines, "utf-8")
    with pytest.raises(DataError, match=part):
        read_speech(SpeechDataConfig(path=archive, index=str(tmp_path / "index.tsv"), text="word"))


@pytest.mark.parametrize(
    "line, part",
    [
        ("files/9.wav\tlow\t1\n", r"9\.wav does not exist"),
        ("\tlow\t1\n", r"table\.tsv:5: column 'file' is empty"),
        ("files/1.wav\t\t1\n", r"table\.tsv:5: column 'said' is empty"),
        ("files/1.wav\tlow\n", r"table\.tsv:5 has 2 columns"),
    ],
)
def test_lines_of_a_table_that_lack_something(line: str, part: str, table: str) -> None:
    with Path(table).open("a") as file:
        file.write(line)
    with pytest.raises(DataError, match=part):
        read_speech(SpeechDataConfig(path=table, audio="file", text="said"))


# ------------------------------------------------------------------------------------------------ features and batches


def test_features_fill_the_window_and_the_mask_tells_the_sound() -> None:
    features = LogMel.of(12, 1)
    assert (features.rate, features.seconds, features.states) == (16000, 1.0, 50)
    sound = features(sounds.clips(["low", "low mid high"]))
    assert sound.features_BMF.shape == (2, 12, 100) and sound.features_BMF.dtype == torch.float32
    assert sound.mask_BS.sum(1).tolist() == [8, 23]  # 0.15 and 0.45 seconds, rounded up
    silent = sound.features_BMF[0, :, 40:]
    assert torch.equal(silent, silent[:, :1].expand_as(silent)) and sound.features_BMF[0, :, :10].std() > 0.1


def test_features_do_not_depend_on_the_batch() -> None:
    features, found = LogMel.of(12, 1), sounds.clips(sounds.sentences(5))
    together = features(found)
    for row, clip in enumerate(found):
        alone = features([clip])
        assert torch.equal(alone.features_BMF[0], together.features_BMF[row])
        assert torch.equal(alone.mask_BS[0], together.mask_BS[row])


def test_a_recording_fits_up_to_the_last_sample() -> None:
    features = LogMel.of(12, 1)
    for samples, fits in ((8000, True), (8001, False)):
        clip = Clip("clip", 8000, samples, np.zeros(samples, np.float32) + 0.1)
        assert features.fits(clip) is fits
        assert features([clip]).mask_BS.all()


def test_rows_and_limits_of_sound() -> None:
    sound = LogMel.of(12, 1)(sounds.clips(["low", "low mid high"]))
    chosen = sound.select(torch.tensor([1, 1, 0])).to(torch.device("cpu"))
    assert len(chosen) == 3 and torch.equal(chosen.features_BMF[0], sound.features_BMF[1])
    assert chosen.limits_B.tolist() == [21, 21, 14]


def test_what_the_model_cannot_take_is_left_out_and_counted(tmp_path: Path) -> None:
    texts = ["low mid", " ".join(["low"] * 7), "mid", "high high high", "top"]  # the second takes 1.05 seconds
    corpus = read_speech(SpeechDataConfig(path=str(sounds.write(tmp_path / "a.npz", texts)), text="text"))
    words, features = sounds.vocabulary(), LogMel.of(12, 1)
    encoded = encode_speech(corpus, words, features, 2)
    assert (encoded.rows.tolist(), encoded.dropped, len(encoded)) == ([0, 2, 4], 2, 3)
    assert encoded.source_lengths.tolist() == [50, 50, 50] and encoded.target_lengths.tolist() == [2, 1, 1]
    batch = encoded.batch([2, 0])
    assert batch.sentence_ids_B.tolist() == [4, 0] and batch.target_mask_BT.tolist() == [[True, False], [True, True]]
    assert words.decode(batch.target_BT[1].tolist()) == "low mid"
    assert torch.equal(batch.source.features_BMF[0], features([corpus.clips[4]]).features_BMF[0])
    with pytest.raises(DataError, match="takes 1 seconds and 0 tokens"):
        encode_speech(corpus, words, features, 0)


def test_recordings_without_transcripts_have_empty_targets(tmp_path: Path) -> None:
    texts = ["low mid", " ".join(["low"] * 7), "mid", "high"]  # the second takes 1.05 seconds
    path = str(sounds.write(tmp_path / "a.npz", texts, text=None))
    corpus = read_speech(SpeechDataConfig(path=path), need_text=False)
    assert corpus.text is None and len(corpus) == 4
    encoded = encode_speech(corpus, sounds.vocabulary(), LogMel.of(12, 1), 2)
    assert (encoded.rows.tolist(), encoded.dropped) == ([0, 2, 3], 1)
    assert encoded.target_lengths.tolist() == [0, 0, 0]
    batch = encoded.batch([2, 0])
    assert batch.sentence_ids_B.tolist() == [3, 0] and batch.target_mask_BT.shape == (2, 0)
    plan = StepPlan(encoded, 100, 50, seed=1)
    assert sorted(row for step in plan.epoch(0) for micro in step for row in micro) == [0, 1, 2]
    told = replace(corpus, text=["low", "low", "", "mid"])
    assert encode_speech(told, sounds.vocabulary(), LogMel.of(12, 1)).rows.tolist() == [0, 3]


def test_steps_of_sound_are_cut_as_those_of_text(tmp_path: Path) -> None:
    path = sounds.write(tmp_path / "a.npz", sounds.sentences(30))
    corpus = read_speech(SpeechDataConfig(path=str(path), text="text"))
    plan = StepPlan(encode_speech(corpus, sounds.vocabulary(), LogMel.of(12, 1)), 24, 200, seed=1)
    steps = plan.epoch(0)
    assert sorted(row for step in steps for micro in step for row in micro) == list(range(30))
    assert max(len(micro) for step in steps for micro in step) == 4  # 200 positions of 50 states
    (first,), (again,) = ([next(plan.iterate(3))] for _ in range(2))
    assert first.sentence_ids == again.sentence_ids
    halves = [next(plan.iterate(3, rank=rank, world=2)) for rank in range(2)]
    assert sum(len(half.micro_batches) for half in halves) == len(first.micro_batches)


# --------------------------------------------------------------------------------------------------- strings of digits


@pytest.fixture
def singles(tmp_path: Path):
    """Two speakers, three words, six takes of each, the last two for the test."""
    said = [(who, word, take) for who in "ab" for word in ("low", "mid", "top") for take in range(6)]
    lines = [f"{who}\t0\t{word}\t{take}\t{'test' if take > 3 else 'train'}\n" for who, word, take in said]
    (tmp_path / "index.tsv").write_text("speaker\tdigit\tword\ttake\tsplit\n" + "".join(lines), "utf-8")
    path = sounds.write(tmp_path / "singles.npz", [word for _, word, _ in said])
    return read_speech(SpeechDataConfig(path=str(path), index=str(tmp_path / "index.tsv"), text="word"))


COUNTS = {"train": 30, "dev": 8, "test": 8}


@pytest.mark.parametrize("parts", [("train", "dev", "test"), ("train", "dev", "test", "proxy")])
def test_no_recording_stands_in_two_parts(parts: tuple[str, ...], singles) -> None:
    pools = parts_of(singles, seed=1, parts=parts)
    assert tuple(pools) == parts
    used = {part: {row for rows in pool.values() for row in rows} for part, pool in pools.items()}
    assert sorted(row for rows in used.values() for row in rows) == list(range(len(singles)))
    assert {singles.columns["split"][row] for row in used["test"]} == {"test"}
    takes = {part: {singles.columns["take"][row] for row in rows} for part, rows in used.items()}
    assert [len(takes[part]) for part in parts] == ([1, 2, 2, 1] if "proxy" in parts else [2, 2, 2])
    assert not takes["train"] & (takes["dev"] | takes.get("proxy", set()))
    for pool in pools.values():
        for (speaker, word), rows in pool.items():
            assert {(singles.columns["speaker"][row], singles.text[row]) for row in rows} == {(speaker, word)}


def test_strings_are_a_function_of_the_seed(singles) -> None:
    made = [archive_of(make_digits(singles, COUNTS, [CLEAN, "5"], seed)["dev"], 8000) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_strings_fit_the_window_and_say_what_they_say(singles, tmp_path: Path) -> None:
    made = make_digits(singles, COUNTS, [CLEAN, "10"], seed=3)
    assert {part: len(found) for part, found in made.items()} == COUNTS
    for found in made.values():
        assert {len(string.text.split()) for string in found} <= set(range(1, 6))
        assert [string.snr for string in found[:4]] == [CLEAN, "10", CLEAN, "10"]
        for string in found:
            words = len(string.text.split())
            assert words * sounds.SECONDS + 0.1 <= len(string.wave) / sounds.RATE <= 4.0
            assert np.abs(string.wave).max() <= 1.0
    (tmp_path / "strings.npz").write_bytes(archive_of(made["train"], sounds.RATE))
    corpus = read_speech(SpeechDataConfig(path=str(tmp_path / "strings.npz"), text="text", only={"snr": "10"}))
    assert corpus.text == [string.text for string in made["train"][1::2]] and len(corpus.columns["speaker"]) == 15
    np.testing.assert_allclose(corpus.clips[0].wave(sounds.RATE), made["train"][1].wave, atol=1e-4)


def test_strings_of_a_proxy_leave_dev_and_test_as_they_are(singles) -> None:
    plain, beside = (make_digits(singles, counts, [CLEAN], seed=2) for counts in (COUNTS, COUNTS | {"proxy": 9}))
    assert len(beside["proxy"]) == 9
    for part in ("dev", "test"):
        assert archive_of(plain[part], sounds.RATE) == archive_of(beside[part], sounds.RATE)
    assert archive_of(plain["train"], sounds.RATE) != archive_of(beside["train"], sounds.RATE)
    singles.columns["split"] = ["train" if take in "013" else "test" for take in singles.columns["take"]]
    assert len(make_digits(singles, COUNTS, [CLEAN], seed=2)) == 3
    with pytest.raises(DataError, match="has 3 takes in its train split; 4 are the least"):
        make_digits(singles, COUNTS | {"proxy": 9}, [CLEAN], seed=2)


@pytest.mark.parametrize("decibels", [0.0, 20.0])
def test_noise_has_its_ratio_to_the_speech(decibels: float, singles) -> None:
    clean, noisy = (make_digits(singles, COUNTS, [noise], seed=4)["test"][0] for noise in (CLEAN, f"{decibels:g}"))
    assert clean.text == noisy.text  # what is said does not depend on the noise
    spoken = clean.wave[clean.wave != 0]
    gain = (noisy.wave @ clean.wave) / (clean.wave @ clean.wave)  # where the sum was louder than full scale
    noise = noisy.wave / gain - clean.wave
    assert 10 * np.log10(np.mean(spoken**2) / np.mean(noise**2)) == pytest.approx(decibels, abs=0.5)


def test_noises_and_singles_that_will_not_do(singles) -> None:
    for noise in ("loud", "nan"):
        with pytest.raises(ConfigurationError, match=f"decibels, and not '{noise}'"):
            make_digits(singles, COUNTS, [noise], seed=1)
    singles.columns["split"][0] = "dev"
    with pytest.raises(DataError, match="clip 0 is of the split 'dev'"):
        make_digits(singles, COUNTS, [CLEAN], seed=1)
    for row, (who, split) in enumerate(zip(singles.columns["speaker"], singles.columns["split"], strict=True)):
        if (who, split, singles.text[row]) == ("b", "test", "mid"):
            singles.columns["speaker"][row] = "a"
    singles.columns["split"][0] = "train"
    with pytest.raises(DataError, match="no 'mid' of b for test"):
        make_digits(singles, COUNTS, [CLEAN], seed=1)


def test_real_digits(data_folder: Path) -> None:
    folder = data_folder / "speech"
    config = SpeechDataConfig(
        path=str(folder / "fsdd.npz"), index=str(folder / "fsdd_index.tsv"), text="word", only={"split": "test"}
    )
    corpus = read_speech(config)
    assert len(corpus) == 300 and set(corpus.columns["take"]) == set("01234")
    assert corpus.text[:5] == ["zero"] * 5 and corpus.clips[0].samples == 2384
    assert read_archive(folder / "fsdd.npz").clips[7].rate == 8000
