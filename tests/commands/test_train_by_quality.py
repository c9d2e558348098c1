"""`energymt train qe_ebm`, `reinforce` and `ppo`: from the command to the model, planned, and what each refuses."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from energymt.data.corpus import DataConfig, read_corpus
from energymt.data.neighbours import build_neighbours
from energymt.data.sentence_vectors import SentenceEncoder
from energymt.data.vocabulary import SentencePieceVocabulary
from tests import estimators, toy
from tests.terminal import Done, quick


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, translators, estimators, and a configuration of two steps; to read."""
    folder = toy.scored_world(tmp_path_factory.mktemp("world"))
    source = {"source": "source"}
    settings = {
        "train": {"path": "train.tsv", **source, "target": "target"},
        "dev": {"path": "dev.tsv", **source, "target": "target"},
        "unlabelled": {"path": "train.tsv", **source},
        "model": {"init": "transformer-toy"},
        "quality": "estimator",
        "judge": "judge",
        "optimizer": {"warmup_steps": 1},
        **{"samples": 2, "longest_sample": 6, "unlabelled_tokens_per_step": 48, "tokens_per_step": 64},
        **{"steps": 2, "evaluate_every": 2, "checkpoint_every": 2, "log_every": 1, "device": "cpu"},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    other = SentencePieceVocabulary.train([f"{n} {n * n} {n**3}" for n in range(300)], 30)
    toy.save_estimator(folder / "other", other)
    text = read_corpus(DataConfig(path=str(folder / "dev.tsv"), source="source"), need_target=False)
    lengths = SentenceEncoder("lengths", "f" * 64, lambda texts: np.array([[1.0, len(t)] for t in texts], np.float32))
    build_neighbours(folder / "near", text, text, lengths)
    return folder


@pytest.fixture
def folder(world: Path, tmp_path: Path) -> Path:
    """A copy, to do with as a test likes."""
    return Path(shutil.copytree(world, tmp_path / "world"))


def train(folder: Path, *settings: str, trainable: str = "qe_ebm", options: tuple[str, ...] = ()) -> Done:
    sets = [part for setting in settings for part in ("--set", setting)]
    command = ("train", trainable, "-c", "run.yaml", "--name", "run", "--tracking", "none", *sets, *options)
    return quick(*command, folder=folder, ENERGYMT_CACHE=str(folder / "cache"))


@pytest.mark.parametrize("trainable, settings", [("qe_ebm", ["dynamic.learns=head"]), ("reinforce", []), ("ppo", [])])
def test_from_the_command_to_the_model(trainable: str, settings: list[str], folder: Path) -> None:
    done = train(folder, *settings, trainable=trainable)
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (folder / "runs" / "run" / "log.jsonl").read_text("utf-8").splitlines()]
    told = {name for line in lines for name in line}
    wanted = {"dev/quality", "dev/judge", "dev/kl_to_start", "gaming/alarms", "train/gradient_ratio", "train/wait_s"}
    assert wanted <= told
    assert ("train/lesson/margin" in told) == ("dev/drift" in told) == bool(settings)
    assert quick("translate", "runs/run/model", folder=folder, stdin="va va\n").code == 0


def test_a_plan_trains_nothing(folder: Path) -> None:
    done = train(folder, options=("--dry-run",))
    assert (done.code, done.err) == (0, "")
    assert re.search(r"trainable +qe_ebm\n", done.out) and "checkpoint by  dev/chrf (higher is better)" in done.out
    assert "Nothing was trained and nothing was written." in done.out
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("trainable", toy.SCORED)
def test_its_keys_and_its_resolved_configuration(trainable: str, folder: Path) -> None:
    keys = quick("config", "keys", trainable, folder=folder)
    assert keys.code == 0
    for key in ("quality (required)", "samples (5)", "balance.kind ('ratio')", "alarms.kl_to_start (1.0)"):
        assert re.search(rf"^{re.escape(key)}: \S", keys.out, re.MULTILINE), key
    assert ("dynamic.learns (None)" in keys.out) == (trainable == "qe_ebm")
    shown = quick("config", "show", trainable, "-c", "run.yaml", "--set", "balance.kind=gradnorm", folder=folder)
    assert shown.code == 0, shown.err
    found = yaml.safe_load(shown.out)
    assert (found["quality"], found["balance"]["kind"], found["label_smoothing"]) == ("estimator", "gradnorm", 0.1)


# What is set, the exit code, and what the sentence must hold.
REFUSED = {
    "samples=0": (2, ["'samples'", "0", "greater than 0"]),
    "top_p=0": (2, ["'top_p'", "greater than 0"]),
    "temperature=0": (2, ["'temperature'", "greater than 0"]),
    "feed=XX": (2, ["'feed'", "'XX'", "'ST'"]),
    "choose_by=comet": (2, ["'choose_by'", "'comet'", "'judge'"]),
    "judge=null choose_by=judge": (2, ["choose_by is judge", "no judge is named", "set judge"]),
    "balance.kind=none": (2, ["'balance.kind'", "'gradnorm'"]),
    "balance.weight=-1": (2, ["'balance.weight'", "-1"]),
    "dynamic.learns=some": (2, ["'dynamic.learns'", "'some'", "'lora'"]),
    "alarms.kl_to_begin=1": (2, ["'alarms.kl_to_begin'", "did you mean 'kl_to_start'?"]),
    "quality=nowhere": (5, ["'nowhere' is neither a path", "check the address"]),
    "quality=transformer-toy": (5, ["transformer-toy holds no estimator", "energymt train estimator"]),
    "quality=other": (
        2,
        ["pieces of the translator's vocabulary", "95.0% are asked for", "trained on the translator's"],
    ),
    f"quality={estimators.converted('regression')}": (2, ["needs references", "is no energy", "COMET-KIWI"]),
    "judge=transformer-toy": (5, ["transformer-toy holds no estimator"]),
    "quality=pool:default": (6, ["No energy pool is up", "`energymt pool up ESTIMATOR`"]),
    "model.init=masked-toy": (2, ["'masked-toy'", "not autoregressive", "energymt train engine"]),
    "unlabelled.path=gone.tsv": (4, ["gone.tsv does not exist"]),
    "unlabelled.source=german": (4, ["train.tsv:1", "'german'"]),
    "neighbours=nowhere": (5, ["'nowhere' is neither a path", "check the address"]),
    "neighbours=estimator": (5, ["estimator"]),
    "neighbours=near": (4, ["another labelled text, 6 sentences of", "than the 40 of", "energymt data neighbours"]),
}


@pytest.mark.parametrize("settings", REFUSED, ids=[re.sub(r"=/.*", "=regression", key) for key in REFUSED])
def test_what_cannot_be_is_one_sentence(settings: str, world: Path) -> None:
    code, parts = REFUSED[settings]
    train(world, *settings.split()).refuses(code, *parts)
    assert not (world / "runs" / "run" / "checkpoints").exists()


@pytest.mark.parametrize("trainable, setting", [("reinforce", "baseline=leave-one-out"), ("ppo", "advantage=group")])
def test_one_sample_has_nothing_to_be_compared_with(trainable: str, setting: str, world: Path) -> None:
    train(world, "samples=1", setting, trainable=trainable).refuses(2, "one source", "set samples to 2 at least")


def test_an_unlabelled_text_with_an_empty_line(folder: Path) -> None:
    (folder / "more.txt").write_text("va va\n\nva\n", "utf-8")
    train(folder, "unlabelled={path: more.txt}").refuses(4, "more.txt:2 is empty", "remove")


def test_an_estimator_in_half(folder: Path) -> None:
    weights = folder / "estimator" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    train(folder).refuses(5, "estimator", "copy the whole folder again")
