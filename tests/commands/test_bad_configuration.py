"""Keys, values and files of a configuration that cannot be: exit code 2 (3 for a device), the key and what would do."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands.conftest import TEACHER
from tests.terminal import Done, quick

Train = Callable[..., Done]

VALUES = {
    "optimizer.learning_rate=-1e-3": ["'optimizer.learning_rate'", "-0.001", "greater than 0"],
    "optimizer.learning_rate=0": ["'optimizer.learning_rate'", "greater than 0"],
    "optimizer.learning_rate=.inf": ["'optimizer.learning_rate'", "finite"],
    "optimizer.betas=[0.9, 1.5]": ["'optimizer.betas.1'", "1.5", "less than 1"],
    "optimizer.schedule=cosine": ["'optimizer.schedule'", "'cosine'", "'inverse_sqrt'"],
    "optimizer.warmup_steps=-1": ["'optimizer.warmup_steps'", "-1"],
    "steps=0": ["'steps'", "0", "greater than 0"],
    "steps=many": ["'steps'", "'many'", "integer"],
    "steps=1.5": ["'steps'", "1.5", "integer"],
    "seed=-1": ["'seed'", "-1"],
    "seed=99999999999999999999": ["'seed'"],
    "label_smoothing=1": ["'label_smoothing'", "less than 1"],
    "tokens_per_step=0": ["'tokens_per_step'"],
    "precision=fp16": ["'precision'", "'fp16'", "'bf16'"],
    "device=gpu": ["'device'", "'gpu'", "'cuda'"],
    "train.format=csv": ["'train.format'", "'csv'", "'jsonl'"],
    "train.rows=0": ["'train.rows'", "0"],
    "vocabulary.size=0": ["'vocabulary.size'"],
    "model.variant=transformer-tiny": ["'transformer-tiny'", "transformer-toy"],
    "model.changes={heads: 3, width: 16}": ["'heads'", "transformer-toy", "divide the width"],
    "model.changes={widht: 16}": ["'widht'", "did you mean 'width'?"],
    "model.changes={dropout: 2}": ["'dropout'", "less than 1"],
    "model.variant=masked-toy": ["autoregressive", "'masked-toy'", "energymt train masked"],
}


@pytest.mark.parametrize("setting, parts", VALUES.items(), ids=list(VALUES))
def test_an_impossible_value_is_named_with_what_would_do(setting: str, parts: list[str], train: Train) -> None:
    train(setting).refuses(2, *parts)


def test_a_value_of_the_file_is_named_with_the_file(train: Train, bare: Path) -> None:
    file = bare / "teacher.yaml"
    file.write_text(file.read_text("utf-8").replace("steps: 48", "steps: none"), "utf-8")
    train().refuses(2, "'steps'", "teacher.yaml:", "'none'")


def test_an_unknown_key_and_the_nearest_one(train: Train) -> None:
    train("stepps=3").refuses(2, "'stepps'", "did you mean 'steps'?")
    train("optimizer.learning_rat=3").refuses(2, "'optimizer.learning_rat'", "did you mean 'learning_rate'?")
    train("zzzzzz=3").refuses(2, "'zzzzzz'", "known keys are", "tokens_per_step")
    train("train.also=[{path: a, targe: b}]").refuses(2, "'train.also.0.targe'", "did you mean 'target'?")
    train("train.also=[{source: b}]").refuses(2, "'train.also.0.path'", "is missing")


def test_a_setting_that_is_none(train: Train) -> None:
    train("steps").refuses(2, "'steps'", "write key=value")
    train("=3").refuses(2, "'=3'", "write key=value")
    train("steps.more=3").refuses(2, "'steps.more=3'", "single value")


def test_sizes_that_no_vocabulary_has(train: Train) -> None:
    train("vocabulary.size=3").refuses(4, "3 pieces", "raise vocabulary.size")
    train("vocabulary={size: 9, model_type: unigram}").refuses(4, "9 pieces", "raise vocabulary.size")


def test_a_device_that_is_not_there(train: Train) -> None:
    train("device=cuda", CUDA_VISIBLE_DEVICES="").refuses(3, "cuda", "no CUDA device", "auto or cpu")


YAML = {
    "steps: [1,\nfoo: 2": ["teacher.yaml:2 is not YAML", "correct"],
    "steps: 'one\n": ["is not YAML"],
    "- steps\n": ["teacher.yaml must hold keys and values", "list"],
    "just words": ["teacher.yaml must hold keys and values", "str"],
    "": ["'train' is missing", "teacher.yaml"],
    "train: {path: x.tsv}\n": ["'dev' is missing", "teacher.yaml", "--set"],
}


@pytest.mark.parametrize("text, parts", YAML.items(), ids=range(len(YAML)))
def test_a_file_that_holds_no_configuration(text: str, parts: list[str], train: Train, bare: Path) -> None:
    (bare / "teacher.yaml").write_text(text, "utf-8")
    train().refuses(2, *parts)


def test_a_file_that_is_not_text_or_not_there(train: Train, bare: Path) -> None:
    (bare / "teacher.yaml").write_bytes(b"steps: \xff\n")
    train().refuses(2, "teacher.yaml is not UTF-8", "convert")
    (bare / "teacher.yaml").unlink()
    train().refuses(2, "No configuration file at teacher.yaml", "--config")


@pytest.mark.parametrize(
    "name, parts",
    [
        ("supervized", ["'supervized'", "supervised", "dotted path"]),
        ("nobodys.method", ["'nobodys.method'", "supervised"]),
        ("os.path", ["os.path is no trainable", "Config", "TRAINABLE"]),
    ],
)
def test_an_unknown_trainable(name: str, parts: list[str], bare: Path) -> None:
    quick("train", name, "-c", "teacher.yaml", folder=bare).refuses(2, *parts)
    quick("config", "keys", name, folder=bare).refuses(2, *parts)
    assert not (bare / "runs").exists()


@pytest.mark.parametrize(
    "setting, parts",
    [
        ("feed=SY", ["'feed'", "'SY'", "'SX', 'STL', 'SG', 'ST' or 'GX'"]),
        ("score=st", ["'score'", "'st'", "'ST'"]),
        ("target_lengths=oracle", ["'target_lengths'", "'oracle'", "'reference'"]),
        ("length_weight=-1", ["'length_weight'"]),
        ("model.variant=transformer-toy", ["non-autoregressive", "masked-*"]),
    ],
)
def test_impossible_values_of_engine(setting: str, parts: list[str], place: Path) -> None:
    command = ("train", "engine", "-c", "student.yaml", "--set", f"teacher={TEACHER}", "--tracking", "none")
    quick(*command, "--set", setting, folder=place).refuses(2, *parts)


def test_a_search_space_or_cluster_file_that_is_not_there(bare: Path) -> None:
    quick("sweep", "toy_operator", "--dry-run", folder=bare).refuses(2, "'toy_operator'", "toy_operators")
    quick("cluster", "check", "nowhere.yaml", folder=bare).refuses(2, "nowhere.yaml")
    (bare / "cluster.yaml").write_text("provider: [\n", "utf-8")
    quick("cluster", "check", folder=bare).refuses(2, "cluster.yaml", "is not YAML")
