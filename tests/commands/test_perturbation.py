"""`energymt train proxy`, `translate --proxy --alpha` and `alpha-curve`: what they print, and what they refuse."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sacrebleu.metrics.chrf import CHRF

from energymt.decoding.perturbed import Perturbation, perturbed
from energymt.decoding.translate import DecodingOptions, Translator
from energymt.folders import weights_fingerprint
from energymt.models import load_translator
from energymt.models.gains import fit_gain
from energymt.models.proxy import load_proxy
from energymt.records import Source
from tests import estimators, proxies
from tests.commands.conftest import STUDENT, TEACHER, configuration
from tests.terminal import Done, quick

DATA = ("--data", "test.tsv", "--source", "source", "--target", "target")


@pytest.fixture(scope="module")
def made(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Proxies by name: of the teacher and of the student, and some that cannot be used."""
    folder = tmp_path_factory.mktemp("proxies")
    for name, model in (("teacher", TEACHER), ("student", STUDENT)):
        proxies.proxy(16, translator=weights_fingerprint(shared / model)).save_pretrained(folder / name)
    knows_nothing = proxies.proxy(16, translator=weights_fingerprint(shared / TEACHER))
    knows_nothing.scale.fill_(0.0)
    knows_nothing.save_pretrained(folder / "nothing")
    proxies.proxy(12, translator=weights_fingerprint(shared / TEACHER)).save_pretrained(folder / "wide")
    proxies.proxy(16).save_pretrained(folder / "stranger")
    proxies.proxy(16).save_pretrained(folder / "run" / "model")
    (folder / "empty").mkdir()
    return folder


def lines(folder: Path, name: str = "test.source") -> list[str]:
    return (folder / name).read_text("utf-8").splitlines()


def translate(folder: Path, model: str, *options: str) -> list[str]:
    done = quick("translate", model, *options, folder=folder, stdin="".join(f"{line}\n" for line in lines(folder)))
    assert (done.code, done.err) == (0, "")
    return done.out.splitlines()


def by_library(folder: Path, model: str, change: Perturbation, **options: int) -> list[str]:
    nudged = perturbed(load_translator(folder / model), change)
    return [best[0] for [best] in Translator(nudged, DecodingOptions(**options)).translate(lines(folder))]


# ------------------------------------------------------------------------------------------------------------ translate


@pytest.mark.parametrize("name, model", [("teacher", TEACHER), ("student", STUDENT)])
def test_translations_are_those_of_nudged_states(name: str, model: str, shared: Path, made: Path) -> None:
    size = ("--beam", "2", "--length-beam", "2", "--iterations", "2")
    options = {"beam": 2, "length_beam": 2, "iterations": 2}
    plain = translate(shared, model, *size)
    given = ("--proxy", str(made / name))
    assert translate(shared, model, *size, *given, "--alpha", "0") == plain
    proxy = load_proxy(made / name)
    far = translate(shared, model, *size, *given, "--alpha", "1.5")
    assert far == by_library(shared, model, Perturbation(proxy, (1.5,)), **options) != plain
    more = ("--alpha", "0.2", "--alpha", "2", "--norm", "sequence", "--alpha-steps", "2", "--trust", "0.5")
    wanted = Perturbation(proxy, (0.2, 2.0), "sequence", 2, 0.5)
    assert translate(shared, model, *size, *given, *more) == by_library(shared, model, wanted, **options)


def test_a_proxy_is_trained_and_followed(place: Path) -> None:
    settings = configuration(translator=TEACHER, proxy={"hidden": 16}, steps=24, evaluate_every=12, tokens_per_step=512)
    (place / "proxy.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    command = ("train", "proxy", "-c", "proxy.yaml", "--name", "proxy", "--tracking", "none")
    done = quick(*command, folder=place)
    assert done.code == 0, done.err
    proxy = load_proxy(place / "runs" / "proxy" / "model")
    assert (proxy.config.metric, proxy.config.width, proxy.config.higher_is_better) == ("chrf", 16, True)
    assert float(proxy.error) < 100
    given = ("--proxy", "runs/proxy/model", "--beam", "1")
    proxy.scale.clamp_(min=1.0)  # whatever it has learnt in this second, its gradient has a direction
    proxy.save_pretrained(place / "runs" / "proxy" / "model")
    found = translate(place, TEACHER, *given, "--alpha", "0.3")
    assert found == by_library(place, TEACHER, Perturbation(proxy, (0.3,)), beam=1)
    done = quick("translate", STUDENT, *given, "--alpha", "0.3", folder=place, stdin="vute mare\n")
    done.refuses(2, "other weights", "train proxy")


# ---------------------------------------------------------------------------------------------------------- alpha-curve


def curve(folder: Path, model: str, *options: str) -> Done:
    return quick("alpha-curve", model, *DATA, *options, folder=folder)


def test_a_curve_has_a_line_for_each_beam_and_alpha(shared: Path, made: Path, tmp_path: Path) -> None:
    judge = str(estimators.converted("kiwi"))
    given = ("--proxy", str(made / "teacher"))
    settings = ("--alpha", "1.5", "--alpha", "0.5", "--beam", "1", "--beam", "3", "--judge", judge)
    done = curve(shared, TEACHER, *given, *settings, "--json", str(tmp_path / "curve.json"))
    assert (done.code, done.err) == (0, "")
    header, *table = done.out.splitlines()
    assert [part in header for part in ("beam", "alpha", "bleu", "chrf", f"judge {judge}"[:44])] == [True] * 5
    places = [(1, 0.0), (1, 1.5), (1, 0.5), (3, 0.0), (3, 1.5), (3, 0.5)]
    assert [(int(line.split()[0]), float(line.split()[1])) for line in table] == places
    points = json.loads((tmp_path / "curve.json").read_text("utf-8"))
    assert [(point["beam"], point["alpha"]) for point in points] == places
    for point, line in zip(points, table, strict=True):
        beam, alpha = str(point["beam"]), str(point["alpha"])
        assert point["outputs"] == translate(shared, TEACHER, *given, "--beam", beam, "--alpha", alpha)
        assert f"{point['scores']['bleu']['value']:.2f} [" in line
    evaluated = tmp_path / "evaluated.json"
    options = (*DATA, "--beam", "3", "--judge", judge, "--json", str(evaluated))
    assert quick("evaluate", TEACHER, *options, folder=shared).code == 0
    [system] = json.loads(evaluated.read_text("utf-8"))["systems"]
    zero, far = points[3], points[4]
    assert zero["scores"]["bleu"]["value"] == pytest.approx(system["intervals"]["bleu"]["value"], abs=1e-3)
    assert zero["against_zero"] == {}
    for name in ("bleu", "chrf", f"judge {judge}"):
        difference = far["scores"][name]["value"] - zero["scores"][name]["value"]
        found = far["against_zero"][name]
        assert found["difference"] == pytest.approx(difference, abs=1e-9)
        assert found["low"] <= found["difference"] <= found["high"]
    assert any(abs(found["difference"]) > 0.01 for found in far["against_zero"].values())


def test_a_curve_of_a_student_tries_lengths_in_so_many_passes(shared: Path, made: Path, tmp_path: Path) -> None:
    given = ("--proxy", str(made / "student"), "--alpha", "1")
    found = []
    for passes in ((), ("--iterations", "10")):
        file = ("--beam", "2", "--rows", "9", "--json", str(tmp_path / "curve.json"))
        done = curve(shared, STUDENT, *given, *passes, *file)
        assert done.code == 0, done.err
        points = json.loads((tmp_path / "curve.json").read_text("utf-8"))
        wanted = translate(shared, STUDENT, "--length-beam", "2", *(passes or ("--iterations", "1")), *given)[:9]
        assert [len(points), points[1]["outputs"]] == [2, wanted]
        found.append(wanted)
    assert found[0] != found[1], "one pass, if nothing else is said"


# ------------------------------------------------------------------------------------------------------------ calibrate


def test_a_curve_notes_what_the_promises_are_worth(shared: Path, made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "teacher", tmp_path / "proxy")
    given = ("--proxy", str(tmp_path / "proxy"))
    alphas = ("--alpha", "1.5", "--alpha", "0.5")
    done = curve(shared, TEACHER, *given, *alphas, "--beam", "2", "--calibrate", "--json", str(tmp_path / "curve.json"))
    assert (done.code, done.err) == (0, "")
    points = {point["alpha"]: point["outputs"] for point in json.loads((tmp_path / "curve.json").read_text("utf-8"))}
    proxy = load_proxy(tmp_path / "proxy")
    assert set(proxy.gains) == {("relative", 1, 0.5), ("relative", 1, 1.5)}
    references = lines(shared, "test.target")
    own = [CHRF().sentence_score(text, [wanted]).score for text, wanted in zip(points[0.0], references, strict=True)]
    model, change = load_translator(shared / TEACHER), Perturbation(proxy, (0.5, 1.5))
    for number, alpha in enumerate(change.alphas):
        gain = proxy.gains["relative", 1, alpha]
        scores = [CHRF().sentence_score(t, [r]).score for t, r in zip(points[alpha], references, strict=True)]
        found = [new - old for new, old in zip(scores, own, strict=True)]
        promised = []
        for line in lines(shared):
            ids = torch.tensor([[*model.vocabulary.encode(line), model.vocabulary.eos_id]])
            with torch.no_grad():
                memory = model.encode(Source(ids, torch.ones_like(ids, dtype=torch.bool)))
            promised.append(float(change.promises(memory)[number]))
        wanted = fit_gain("relative", 1, alpha, np.array(promised), np.array(found))
        for name in ("promised", "found", "kept", "error"):
            assert getattr(gain, name) == pytest.approx(getattr(wanted, name), rel=1e-3, abs=1e-6)
        assert gain.sentences == len(references)
        assert f"{gain.promised:+.4g}" in done.out and f"{gain.kept:.1%}" in done.out
    more = ("--alpha", "0.5", "--alpha", "1.5", "--trust", "0.01")
    expected = by_library(shared, TEACHER, Perturbation(proxy, (0.5, 1.5), trust=0.01), beam=2)
    assert translate(shared, TEACHER, *given, "--beam", "2", *more) == expected


def test_calibration_that_cannot_be(shared: Path, made: Path, tmp_path: Path) -> None:
    given = ("--alpha", "1", "--calibrate")
    curve(shared, TEACHER, "--proxy", str(made / "teacher"), *given, "--beam", "1", "--beam", "2").refuses(
        2, "one --beam"
    )
    curve(shared, TEACHER, "--proxy", str(made / "teacher"), "--alpha", "0", "--calibrate").refuses(2, "another alpha")
    column = proxies.proxy(16, translator=weights_fingerprint(shared / TEACHER), metric="column:wer")
    column.save_pretrained(tmp_path / "column")
    curve(shared, TEACHER, "--proxy", str(tmp_path / "column"), *given).refuses(2, "column:wer", "not calibrated")


# ------------------------------------------------------------------------------------------------------------- refusals

REFUSED: dict[str, tuple[tuple[str, ...], int, tuple[str, ...]]] = {
    "another model's": (("stranger", "--alpha", "0.1"), 2, ("other weights", TEACHER, "train proxy")),
    "another width": (("wide", "--alpha", "0.1"), 2, ("width 12", "has 16", "train proxy")),
    "knows nothing": (("nothing", "--alpha", "0.1"), 2, ("knows nothing", "train it longer")),
    "no number": (("teacher", "--alpha", "nan"), 2, ("finite number", "nan")),
    "infinite": (("teacher", "--alpha", "inf"), 2, ("finite number", "inf")),
    "no proxy": (("empty", "--alpha", "0.1"), 5, ("empty holds no proxy", "train proxy")),
    "a run": (("run", "--alpha", "0.1"), 5, ("did you mean", "run/model")),
    "nowhere": (("none", "--alpha", "0.1"), 5, ("none does not exist",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_proxy_that_cannot_be_used_is_one_sentence(case: str, shared: Path, made: Path) -> None:
    (name, *options), code, parts = REFUSED[case]
    given = ("--proxy", str(made / name), *options)
    quick("translate", TEACHER, *given, folder=shared, stdin="vute mare\n").refuses(code, *parts)
    curve(shared, TEACHER, *given).refuses(code, *parts)


@pytest.mark.parametrize(
    "options, parts",
    [
        (("--alpha", "0.1"), ("--alpha", "name a --proxy")),
        (("--trust", "1"), ("--trust", "name a --proxy")),
        (("--norm", "unit"), ("--norm", "name a --proxy")),
        (("--alpha-steps", "2"), ("--alpha-steps", "name a --proxy")),
        (("--proxy", "PROXY"), ("--proxy needs --alpha", "alpha-curve")),
        (("--proxy", "PROXY", "--alpha", "1", "--engine", "onnx"), ("onnx engine", "drop --engine")),
    ],
)
def test_options_that_do_not_go_together(
    options: tuple[str, ...], parts: tuple[str, ...], shared: Path, made: Path
) -> None:
    given = [str(made / "teacher") if option == "PROXY" else option for option in options]
    quick("translate", TEACHER, *given, folder=shared, stdin="vute mare\n").refuses(2, *parts)


@pytest.mark.parametrize("command", ["translate", "alpha-curve"])
def test_an_alpha_that_is_no_number(command: str, shared: Path, made: Path) -> None:
    data = DATA if command == "alpha-curve" else ()
    done = quick(command, TEACHER, *data, "--proxy", str(made / "teacher"), "--alpha", "far", folder=shared)
    done.refuses(2, "--alpha", "valid number", f"{command} --help")


def test_a_curve_whose_file_has_no_folder_is_refused_before_anything_is_done(shared: Path, made: Path) -> None:
    given = ("--proxy", str(made / "teacher"), "--alpha", "1", "--json", "/no/such/curve.json")
    curve(shared, TEACHER, *given).refuses(2, "/no/such/curve.json", "make it first")


def test_labels_that_are_all_equal_end_a_training(bare: Path, shared: Path) -> None:
    shutil.copytree(shared / TEACHER, bare / "teacher")
    rows = [f"{line}\t0.5" for line in lines(bare, "dev.source")]
    (bare / "flat.tsv").write_text("\n".join(["source\twer", *rows]) + "\n", "utf-8")
    flat = {"path": "flat.tsv", "source": "source"}
    settings = configuration(translator="teacher", metric="column:wer", train=flat, dev=flat)
    (bare / "proxy.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    command = ("train", "proxy", "-c", "proxy.yaml", "--name", "proxy", "--tracking", "none")
    quick(*command, folder=bare).refuses(4, "All 12 labels", "flat.tsv", "0.5", "undefined")
