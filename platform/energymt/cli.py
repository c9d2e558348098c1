"""The command line: assembles the commands and turns errors into one sentence and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from energymt.commands import data, environment, estimation, models, perturbation, pool, speech, training, translation
from energymt.errors import INTERRUPTED, EnergymtError, StorageError

# Older versions of Typer take this class from Click, newer ones have their own: both go by the error that they share.
UsageError: Any = typer.BadParameter.__base__


class Commands(TyperGroup):
    """All commands. Ctrl-C and a closed pipe are answered here: Typer would end without a word, or with code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; returns its exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            return _say("Interrupted; what was written so far is kept.", INTERRUPTED)
        except BrokenPipeError:
            # The reader of our output has gone (`energymt translate ... | head`): nothing is wrong.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


app = typer.Typer(
    name="energymt",
    cls=Commands,
    help="Train machine translators by following the gradient of an energy.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (
    *(training.COMMANDS, translation.COMMANDS, perturbation.COMMANDS, speech.COMMANDS),
    *(estimation.COMMANDS, environment.COMMANDS),
):
    for command in commands:
        app.command()(command)
app.add_typer(data.app, name="data", help="Judge translations, keep good pairs, find neighbours.")
app.add_typer(models.app, name="models", help="Import, average, export and publish models.")
app.add_typer(pool.app, name="pool", help="The energy pool: actors that serve scores and gradients.")
app.add_typer(environment.config_app, name="config", help="Show what a trainable can be told.")
app.add_typer(environment.cluster_app, name="cluster", help="Check cluster files.")


def main() -> None:
    """Entry point of the console script."""
    # The torchmetrics that unbabel-comet pins warns about setuptools at every start; a user can do nothing about it.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    try:
        sys.path.append(os.getcwd())  # a user's own trainable or search space, by its dotted path
        code = app(standalone_mode=False)
    except EnergymtError as error:
        code = _say(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = _say("Interrupted; what was written so far is kept.", INTERRUPTED)
    except UsageError as error:
        code = _misused(error)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        code = _say(
            f"{where}{error.strerror or error}; check the path, its rights and the disk.", StorageError.exit_code
        )
    sys.exit(code if isinstance(code, int) else 0)


def _misused(error: Any) -> int:
    command = error.ctx.command_path if error.ctx is not None else "energymt"
    sentence = error.format_message().strip()
    if not sentence:  # no command at all: the help stands there already
        return 2
    return _say(f"{sentence}{'' if sentence[-1] in '.?' else '.'} See `{command} --help`.", 2)


def _say(sentence: str, code: int) -> int:
    print(f"energymt: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
