"""Help for every command, and one sentence for a command that is misused."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from energymt.cli import app
from energymt.runs import trainable_names
from tests.terminal import quick


def below(group: Any, words: list[str]) -> dict[str, Any]:
    """A group and everything in it, by the words that call it."""
    found = {" ".join(words): group}
    for name, command in getattr(group, "commands", {}).items():
        found |= below(command, [*words, name])
    return found


COMMANDS = below(typer.main.get_command(app), [])


@pytest.mark.parametrize("words", COMMANDS)
def test_help_says_what_a_command_does(words: str, tmp_path: Path) -> None:
    done = quick(*words.split(), "--help", folder=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert done.out.strip().startswith(" ".join(["Usage: energymt", words]).strip())
    first = (COMMANDS[words].help or "").split("\n")[0]
    assert first.endswith(".") and first in done.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [words for words, command in COMMANDS.items() if not hasattr(command, "commands")])
def test_every_argument_and_option_is_explained(words: str) -> None:
    assert [parameter.name for parameter in COMMANDS[words].params if not parameter.help] == []


def test_the_commands_are_those_of_the_handbook() -> None:
    wanted = {"demo", "train", "sweep", "translate", "score", "evaluate", "ui", "doctor"}
    wanted |= {"models import", "models average", "models export", "models push"}
    wanted |= {"config show", "config keys", "config variants", "cluster check"}
    assert wanted <= set(COMMANDS)


def test_the_help_of_train_names_every_trainable() -> None:
    shown = COMMANDS["train"].params[0].help
    assert sorted(re.findall(r"\w+", shown.removeprefix("A name (").split(")")[0])) == trainable_names()


@pytest.mark.parametrize("words", ["", "models", "config"])
def test_no_command_is_answered_by_help(words: str, tmp_path: Path) -> None:
    done = quick(*words.split(), folder=tmp_path)
    assert done.code == 2
    assert "Usage: energymt" in done.out + done.err and "energymt: " not in done.out + done.err


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ("trian", ["'trian'", "'train'", "energymt --help"]),
        ("train", ["trainable", "energymt train --help"]),
        ("train supervised --nope", ["--nope", "energymt train --help"]),
        ("train supervised --workers 0", ["--workers", "greater than or equal to 1"]),
        ("train supervised --workers two", ["--workers", "integer"]),
        ("translate model --engine tensorrt", ["--engine", "'tensorrt'", "ctranslate2"]),
        ("score model --source a.txt", ["--target", "energymt score --help"]),
        ("models average", ["models", "energymt models average --help"]),
        ("cluster chek", ["'chek'", "'check'"]),
    ],
)
def test_a_misused_command_is_one_sentence(arguments: str, parts: list[str], tmp_path: Path) -> None:
    quick(*arguments.split(), folder=tmp_path).refuses(2, *parts)
