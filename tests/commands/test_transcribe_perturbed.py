"""`energymt transcribe --proxy --alpha` and `alpha-curve` over recordings: what they print, and what they refuse."""

import json
from pathlib import Path

import pytest
import soundfile

from energymt.decoding.perturbed import Perturbation, perturbed
from energymt.decoding.transcribe import Transcriber
from energymt.decoding.translate import DecodingOptions
from energymt.folders import weights_fingerprint
from energymt.metrics.speech import character_errors, rates, word_errors
from energymt.models import load_translator
from energymt.models.proxy import load_proxy
from energymt.models.speech import SpeechTransformer
from tests import proxies, sounds, tiny
from tests.terminal import Done, quick

TEXTS = sounds.sentences(7, seed=6)
LONG = " ".join(["low", "mid", "top"] * 3)  # 1.35 seconds, of which the model hears one


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recogniser, its proxy of WER and proxies that it cannot use, recordings, and a model of text."""
    folder = tmp_path_factory.mktemp("perturbed")
    sounds.recogniser().save_pretrained(folder / "model")
    weights = weights_fingerprint(folder / "model")
    width = sounds.SMALL["width"]
    proxies.proxy(width, translator=weights, higher=False).save_pretrained(folder / "proxy")
    proxies.proxy(width).save_pretrained(folder / "stranger")
    sounds.write(folder / "all.npz", TEXTS)
    for number, text in enumerate(TEXTS):
        soundfile.write(folder / f"{number}.wav", sounds.wave(text, seed=number), sounds.RATE)
    rows = "".join(f"{number}.wav\t{text}\n" for number, text in enumerate(TEXTS))
    (folder / "table.tsv").write_text("file\ttext\n" + rows, "utf-8")
    tiny.scratch(sounds.vocabulary()).save_pretrained(folder / "reader")
    (folder / "pairs.tsv").write_text("source\ttarget\nlow mid\tmid low\n", "utf-8")
    return folder


def transcribe(place: Path, *options: str) -> list[str]:
    done = quick("transcribe", "model", "--data", "all.npz", *options, folder=place)
    assert (done.code, done.err) == (0, "")
    return done.out.splitlines()


def by_library(place: Path, change: Perturbation, beam: int) -> list[str]:
    model = load_translator(place / "model")
    assert isinstance(model, SpeechTransformer)
    found = Transcriber(perturbed(model, change), DecodingOptions(beam=beam)).transcribe(sounds.clips(TEXTS))
    return [best[0] for best, *_ in found]


# ----------------------------------------------------------------------------------------------------------- transcribe


def test_an_alpha_of_nothing_is_the_plain_output(place: Path) -> None:
    for size in (("--beam", "1"), ("--beam", "3", "--n-best", "3")):
        plain = transcribe(place, *size)
        assert transcribe(place, *size, "--proxy", "proxy", "--alpha", "0") == plain
        assert transcribe(place, *size, "--proxy", "proxy", "--alpha", "1.5") != plain


def test_transcripts_are_those_of_nudged_states(place: Path) -> None:
    proxy = load_proxy(place / "proxy")
    given = ("--beam", "2", "--proxy", "proxy")
    assert transcribe(place, *given, "--alpha", "1.5") == by_library(place, Perturbation(proxy, (1.5,)), 2)
    more = ("--alpha", "0.2", "--alpha", "2", "--norm", "sequence", "--alpha-steps", "2", "--trust", "0.5")
    assert transcribe(place, *given, *more) == by_library(place, Perturbation(proxy, (0.2, 2.0), "sequence", 2, 0.5), 2)
    backwards = transcribe(place, *given, "--alpha", "-1.5")
    assert backwards != transcribe(place, *given, "--alpha", "1.5")


def test_the_proxy_expects_fewer_errors_of_nudged_states(place: Path) -> None:
    """The sign of an error rate, from the folder of the proxy to the states."""
    proxy, model = load_proxy(place / "proxy"), load_translator(place / "model")
    assert isinstance(model, SpeechTransformer)
    memory = model.encode(model.features(sounds.clips(TEXTS)))
    nudged = Perturbation(proxy, (0.05,))(memory)
    before_B, after_B = (proxy.predict(each.states_BSD, each.mask_BS) for each in (memory, nudged))
    assert (after_B < before_B).all()
    assert (nudged.states_BSD == memory.states_BSD)[~memory.mask_BS].all(), "silence stays as it is"


# ---------------------------------------------------------------------------------------------------------- alpha-curve


def curve(place: Path, *options: str, proxy: str = "proxy") -> Done:
    return quick("alpha-curve", "model", "--proxy", proxy, *options, folder=place)


@pytest.mark.parametrize("data", [("all.npz",), ("table.tsv", "--audio", "file")], ids=["archive", "table"])
def test_a_curve_over_recordings(data: tuple[str, ...], place: Path, tmp_path: Path) -> None:
    settings = ("--text", "text", "--alpha", "1.5", "--alpha", "0.5", "--beam", "1", "--beam", "3")
    done = curve(place, "--data", *data, *settings, "--json", str(tmp_path / "curve.json"))
    assert (done.code, done.err) == (0, "")
    header, *table = done.out.splitlines()
    assert header.split() == ["beam", "alpha", "WER", "CER"]
    places = [(1, 0.0), (1, 1.5), (1, 0.5), (3, 0.0), (3, 1.5), (3, 0.5)]
    assert [(int(line.split()[0]), float(line.split()[1])) for line in table] == places
    points = json.loads((tmp_path / "curve.json").read_text("utf-8"))
    assert [(point["beam"], point["alpha"]) for point in points] == places
    for point, line in zip(points, table, strict=True):
        beam, alpha = str(point["beam"]), str(point["alpha"])
        outputs = transcribe(place, "--beam", beam, "--proxy", "proxy", "--alpha", alpha)
        assert point["outputs"] == outputs
        rates = {"WER": word_errors(outputs, TEXTS).total(), "CER": character_errors(outputs, TEXTS).total()}
        zero = points[0 if point["beam"] == 1 else 3]
        for name, rate in rates.items():
            assert point["scores"][name]["value"] == pytest.approx(rate)
            assert f" {rate:.2f} [" in line
            if point["alpha"]:
                difference = rate - zero["scores"][name]["value"]
                assert point["against_zero"][name]["difference"] == pytest.approx(difference, abs=1e-9)
                assert f"] {difference:+.2f} [" in line
        assert (point["against_zero"] == {}) == (point["alpha"] == 0)
    assert points[0]["outputs"] != points[1]["outputs"]


def test_a_curve_reads_so_many_rows(place: Path, tmp_path: Path) -> None:
    done = curve(place, "--data", "all.npz", "--text", "text", "--alpha", "1", "--rows", "3", "--json", "curve.json")
    assert (done.code, done.err) == (0, "")
    points = json.loads((place / "curve.json").read_text("utf-8"))
    assert [len(point["outputs"]) for point in points] == [3, 3]


def test_what_is_too_long_is_cut_off_and_said_once_for_all_alphas(place: Path, tmp_path: Path) -> None:
    sounds.write(tmp_path / "long.npz", [LONG, TEXTS[0]])
    settings = ("--data", str(tmp_path / "long.npz"), "--text", "text", "--alpha", "1", "--alpha", "2")
    done = curve(place, *settings)
    assert done.code == 0 and len(done.err.splitlines()) == 1 and "the rest is not transcribed" in done.err


# ------------------------------------------------------------------------------------------------------------- refusals

SOUND = ("--data", "all.npz", "--text", "text", "--alpha", "0.1")


@pytest.mark.parametrize(
    "options, code, parts",
    [
        ((*SOUND, "--source", "source"), 2, ("--text", "drop --source")),
        ((*SOUND, "--target-path", "file"), 2, ("--text", "--target-path")),
        ((*SOUND, "--judge", "judge"), 2, ("--text", "--judge")),
        (
            ("--data", "table.tsv", "--audio", "file", "--alpha", "1"),
            2,
            ("--audio", "name their transcripts in --text"),
        ),
        (("--data", "all.npz", "--index", "index.tsv", "--alpha", "1"), 2, ("--index", "--text")),
        (("--data", "all.npz", "--text", "words", "--alpha", "1"), 4, ("no column 'words'",)),
        (("--data", "pairs.tsv", "--source", "source", "--target", "target", "--alpha", "1"), 2, ("hears", "--text")),
    ],
)
def test_recordings_and_text_are_not_taken_for_each_other(
    options: tuple[str, ...], code: int, parts: tuple[str, ...], place: Path
) -> None:
    curve(place, *options).refuses(code, *parts)


def test_a_model_of_text_hears_nothing(place: Path, tmp_path: Path) -> None:
    width = load_translator(place / "reader").network.config.d_model
    weights = weights_fingerprint(place / "reader")
    proxies.proxy(width, translator=weights).save_pretrained(tmp_path / "proxy")
    done = quick("alpha-curve", "reader", "--proxy", str(tmp_path / "proxy"), *SOUND, folder=place)
    done.refuses(2, "reads text and hears nothing", "--source and --target")


def test_a_proxy_of_another_model_is_refused(place: Path) -> None:
    curve(place, *SOUND, proxy="stranger").refuses(2, "other weights", "train proxy", "translator=model")
    given = ("--data", "all.npz", "--proxy", "stranger", "--alpha", "0.1")
    quick("transcribe", "model", *given, folder=place).refuses(2, "other weights", "train proxy")


@pytest.mark.parametrize(
    "options, parts",
    [
        (("--alpha", "0.1"), ("--alpha", "name a --proxy")),
        (("--trust", "1"), ("--trust", "name a --proxy")),
        (("--proxy", "proxy"), ("--proxy needs --alpha", "alpha-curve")),
        (("--proxy", "proxy", "--alpha", "nan"), ("finite number", "nan")),
    ],
)
def test_options_that_do_not_go_together(options: tuple[str, ...], parts: tuple[str, ...], place: Path) -> None:
    done = quick("transcribe", "model", "--data", "all.npz", *options, folder=place)
    done.refuses(2, *parts)
    assert done.out == ""


def test_a_curve_of_recordings_is_calibrated_by_their_errors(place: Path, tmp_path: Path) -> None:
    weights = weights_fingerprint(place / "model")
    proxies.proxy(sounds.SMALL["width"], translator=weights, metric="wer", higher=False).save_pretrained(
        tmp_path / "wer"
    )
    given = ("--data", "all.npz", "--text", "text", "--proxy", str(tmp_path / "wer"), "--alpha", "1.5", "--calibrate")
    file = tmp_path / "curve.json"
    done = quick("alpha-curve", "model", *given, "--json", str(file), folder=place)
    assert (done.code, done.err) == (0, "")
    zero, far = (point["outputs"] for point in json.loads(file.read_text("utf-8")))
    [gain] = load_proxy(tmp_path / "wer").gains.values()
    fewer = rates(word_errors(zero, TEXTS)) - rates(word_errors(far, TEXTS))
    assert gain.found == pytest.approx(fewer.mean()) and gain.sentences == len(TEXTS)
    assert gain.promised > 0
