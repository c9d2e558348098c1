"""Every example configuration and every training command of the documents: parsed, and planned without being run.

Data is made here in the layout that the examples ask for, and so are the small models that they start from.
"""

import gzip
import os
import re
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from energymt.configuration import TrainingConfig, read_config
from energymt.data.corpus import DataConfig, read_corpus, write_tsv
from energymt.data.hub_pieces import hub_vocabulary
from energymt.data.neighbours import build_neighbours
from energymt.data.sentence_vectors import SentenceEncoder
from energymt.data.toy import ToyLanguage
from energymt.data.vocabulary import SentencePieceVocabulary, Vocabulary
from energymt.folders import weights_fingerprint
from energymt.models.estimator_variants import make_estimator
from energymt.preparation import open_vocabulary
from energymt.runs import load_trainable
from tests import proxies, sounds, toy
from tests.terminal import quick

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
FILES = sorted(EXAMPLES.rglob("*.yaml"))
PAIRS = 60
PLAIN = ("multi30k", "qe_ebm", "estimators", "en-mn", "mbart50", "nap")  # runs over text that is not segmented


def commands() -> list[str]:
    """The training commands of the documents and of the comments in the examples, each once."""
    texts = [path.read_text("utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *FILES]]
    joined = "\n".join(re.sub(r"\\\n#?", " ", text) for text in texts)
    found = re.findall(r"^[#\s]*(energymt train .*--config examples/.*)$", joined, flags=re.MULTILINE)
    found += [line for script in sorted(EXAMPLES.rglob("*.sh")) for line in told(script)]
    return sorted({" ".join(shlex.split(command, comments=True)) for command in found})


def told(script: Path) -> list[str]:
    """The trainings that a script starts: it runs with an `energymt` that only writes commands down."""
    stubs = 'energymt() { echo energymt "$@"; }; python() { :; }; export -f energymt python; exec bash "$0"'
    variables = {**os.environ, "ENERGYMT_RUNS": "$ENERGYMT_RUNS", "ENERGYMT_DATA": "$ENERGYMT_DATA"}
    stubs = f"mkdir() {{ :; }}; export -f mkdir; {stubs}"
    done = subprocess.run(["bash", "-c", stubs, str(script)], env=variables, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if line.startswith("energymt train ")]


COMMANDS = commands()


def segmented(text: str) -> str:
    """Words cut into pieces of two letters that `@@` joins."""
    return " ".join("@@ ".join(re.findall("..?", word)) for word in text.split())


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """ENERGYMT_DATA and ENERGYMT_RUNS as the examples want them."""
    folder = tmp_path_factory.mktemp("examples")
    data, runs = folder / "data", folder / "runs"
    corpus = ToyLanguage(1).sentences(PAIRS, seed=2)
    assert corpus.target is not None
    pairs = list(zip(corpus.source, corpus.target, strict=True))
    (data / "multi30k").mkdir(parents=True)
    for name in ("train", "val"):
        with gzip.open(data / "multi30k" / f"{name}.tsv.gz", "wt", encoding="utf-8") as file:
            file.writelines(
                ["de\ten\tfr\tcs\n", *(f"{source}\t{target}\t{source}\t{source}\n" for source, target in pairs)]
            )
    for setting, dev, source_language in (("iwslt14", "valid", "de"), ("wmt16-ro-en", "dev", "ro")):
        (data / setting).mkdir()
        for name in ("train", dev):
            for language, lines in ((source_language, corpus.source), ("en", corpus.target)):
                text = "".join(f"{segmented(line)}\n" for line in lines)
                (data / setting / f"{name}.bpe.{language}").write_text(text, "utf-8")
    judged = [f"{source}\t{target}\t{len(source) % 7}\n" for source, target in pairs]
    (runs / "estimators").mkdir(parents=True)
    for name in ("train", "dev"):
        text = "source\ttranslation\tscore\n" + "".join(judged)
        (runs / "estimators" / f"multi30k-{name}.tsv").write_text(text, "utf-8")
        for pair in ("ro-en", "en-de"):
            (data / "mlqe-pe" / pair).mkdir(parents=True, exist_ok=True)
            with gzip.open(data / "mlqe-pe" / pair / f"{name}.tsv.gz", "wt", encoding="utf-8") as file:
                file.write(text.replace("score", "z_mean", 1))
    write_low_resource(data, runs, pairs)
    lines = [line for pair in pairs for line in pair]
    plain = SentencePieceVocabulary.train(lines, 60)
    pieces = SentencePieceVocabulary.train(map(segmented, lines), 200, segmented=True, joiner="@@")
    write_recordings(data, runs)
    for name in sorted(set(re.findall(r"ENERGYMT_RUNS\}?/([\w/-]+)/model", " ".join([*map(read, FILES), *COMMANDS])))):
        if "proxy" not in name:
            save(runs / name, plain if name.startswith(PLAIN) else pieces)
    write_chosen(data, runs)
    return {"ENERGYMT_DATA": str(data), "ENERGYMT_RUNS": str(runs)}


def read(path: Path) -> str:
    return path.read_text("utf-8")


def write_low_resource(data: Path, runs: Path, pairs: list[tuple[str, str]]) -> None:
    """EN-MN in three files, English news, judged translations of the same, and ML50's pair of files."""
    tables = {"ntrex/newstest2019": "en\tmn", "localisation/wagtail.en-mn": "en\tmn", "tatoeba/all.mn-en": "mn\ten"}
    tables |= {f"opus-100/{part}.de-en": "de\ten" for part in ("train", "dev")}
    tables |= {f"wmt-news/newstest{year}.de-en": "de\ten" for year in (2015, 2016)}
    for name, header in tables.items():
        (data / name).parent.mkdir(exist_ok=True)
        with gzip.open(data / f"{name}.tsv.gz", "wt", encoding="utf-8") as file:
            file.writelines([f"{header}\n", *(f"{source}\t{target}\n" for source, target in pairs)])
    for name in ("ntrex", "wagtail", "tatoeba"):
        text = "".join(f"{source}\t{target}\t{len(source) % 7}\n" for source, target in pairs)
        (runs / "estimators" / f"en-mn-{name}.tsv").write_text(f"source\ttranslation\tscore\n{text}", "utf-8")
    (data / "ml50" / "en-mn").mkdir(parents=True)
    for name in ("train", "valid"):
        for side, language in enumerate(("en", "mn")):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            (data / "ml50" / "en-mn" / f"{name}.{language}").write_text(text, "utf-8")


def write_chosen(data: Path, runs: Path) -> None:
    """What `energymt data filter` and `data neighbours` of examples/qe_ebm/variants.sh leave."""
    whole = DataConfig(path=str(data / "multi30k" / "train.tsv.gz"), source="de", target="en")
    labelled = read_corpus(whole.model_copy(update={"share": 0.2}))
    write_tsv(labelled, runs / "qe_ebm" / "filtered.tsv")
    letters = SentenceEncoder("letters", "f" * 64, lambda texts: np.array([[1.0, len(text)] for text in texts]))
    build_neighbours(runs / "qe_ebm" / "neighbours", labelled, read_corpus(whole), letters)
    write_tsv(read_corpus(whole), runs / "nap" / "best.tsv")
    weights = weights_fingerprint(runs / "qe_ebm" / "start-1" / "model")
    proxies.proxy(8, translator=weights).save_pretrained(runs / "nap" / "proxy-start" / "model")


def labelled_pairs(file: str, command: str) -> int:
    """How many pairs, or judged translations, a command reads: of one file or of two, or a share of them."""
    found = re.search(r"train\.share=([\d.]+)", command)
    if file.endswith("nap/t5.yaml"):  # six directions
        return 6 * PAIRS
    if "/en-mn/" in file:  # of two files, and a share is of the first
        return round(PAIRS * float(found[1]) if found else PAIRS) + PAIRS
    if "filtered.tsv" in command:
        return PAIRS // 5
    fifth = re.search(r"\bshare: 0\.2\b", read(ROOT / file))
    return round(PAIRS * (float(found[1]) if found else 0.2 if fifth else 1))


def write_recordings(data: Path, runs: Path) -> None:
    """Strings of digits in archives, and tables of FLAC files."""
    texts = sounds.sentences(PAIRS, seed=2)
    (runs / "speech" / "digits").mkdir(parents=True)
    for name in ("train", "dev", "proxy"):
        sounds.write(runs / "speech" / "digits" / f"{name}.npz", texts)
    for corpus, parts in (("librispeech", ("train-clean-100", "dev-clean")), ("ami", ("train", "dev"))):
        (data / corpus).mkdir()
        for number, text in enumerate(texts):
            soundfile.write(data / corpus / f"{number}.flac", sounds.wave(text), sounds.RATE)
        lines = [f"{number}.flac\t{text}\n" for number, text in enumerate(texts)]
        for part in parts:
            (data / corpus / f"{part}.tsv").write_text("file\ttext\n" + "".join(lines), "utf-8")


def save(run: Path, vocabulary: Vocabulary) -> None:
    """A small model of the family that the name of a run tells."""
    families = {"recurrent": "recurrent-toy", "teacher": "transformer-toy", "start": "transformer-toy"}
    families |= {"en-mn": "transformer-toy", "t5": "transformer-toy"}  # an mBART-50; of any size
    families["tagger"] = "tagger-toy"
    variant = next((variant for word, variant in families.items() if word in run.name), "masked-toy")
    run.mkdir(parents=True)
    if run.parent.name == "estimators":
        assert isinstance(vocabulary, SentencePieceVocabulary)
        make_estimator("estimator-toy", hub_vocabulary(vocabulary), "unified_metric").save_pretrained(run / "model")
        return
    if run.parent.name == "speech":
        return sounds.recogniser().save(run / "model")
    toy.save_model(run, variant, vocabulary).rename(run / "model")


def test_every_example_is_named_in_a_command() -> None:
    named = {ROOT / path for path in re.findall(r"--config (\S+)", " ".join(COMMANDS))}
    assert named == set(FILES)
    assert len(FILES) >= 14


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_documents_can_be_run(command: str, places: dict[str, str]) -> None:
    # No pool is up here: the estimator that it would serve stands in for it.
    command = re.sub(r"pool:multi30k\S*", "$ENERGYMT_RUNS/estimators/multi30k/model", command)
    for name, value in places.items():
        command = command.replace(f"${name}", value)
    _, *arguments = shlex.split(command)
    done = quick(*arguments, "--dry-run", folder=ROOT, **places)
    assert (done.code, done.err) == (0, "")
    trainable, file = arguments[1], arguments[arguments.index("--config") + 1]
    assert f"trainable      {trainable}\n" in done.out
    pairs = labelled_pairs(file, command)
    assert re.search(rf"within limits +{pairs} pairs \(0 are too long", done.out)
    families = {"supervised": "transformer|recurrent", "estimator": "estimator"}
    families |= {"speech": "speech", **dict.fromkeys(("qe_ebm", "reinforce", "ppo", "proxy_ebm"), "transformer")}
    families |= dict.fromkeys(("proxy", "proxy_speech"), "proxy")
    wanted = families.get(trainable, "masked|tagger")
    assert re.search(rf"model +({wanted}), [\d,]+ parameters", done.out)
    assert "Nothing was trained and nothing was written." in done.out
    if (
        not re.search("multi30k|qe_ebm|nap", file) and trainable == "supervised"
    ):  # the paper's size: 6 + 6 layers of width 512
        assert int(re.findall(r"([\d,]+) parameters", done.out)[0].replace(",", "")) > 40_000_000


@pytest.mark.parametrize("setting", ["multi30k", "iwslt14", "wmt16"])
def test_students_get_the_vocabulary_of_their_teacher(
    setting: str, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each makes it of the same text in the same way: `engine` refuses a pair that differs."""
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    found = {vocabulary_of(file).fingerprint for file in FILES if file.parent.name == setting and makes_its_own(file)}
    assert len(found) == 1


def config_of(file: Path) -> TrainingConfig:
    trainable = next(shlex.split(command)[2] for command in COMMANDS if f"/{file.parent.name}/{file.name}" in command)
    return read_config(load_trainable(trainable).Config, file, ["teacher=x"] if trainable == "distilled" else [])


def makes_its_own(file: Path) -> bool:
    config = config_of(file)
    return config.vocabulary.path is None and config.model.init is None and not hasattr(config, "teacher")


def vocabulary_of(file: Path) -> Vocabulary:
    config = config_of(file)
    return open_vocabulary(config, read_corpus(config.train))
