"""The command line as a user has it: whole processes, what they print, and the exit code they end with.

`start` and `run` begin a new Python as a shell does. `begin` and `quick` fork one that has imported everything
already, which saves the seconds of the imports: the same entry point in a process of its own with files of its own.
"""

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPT = Path(sys.executable).with_name("energymt")
COMMAND = [str(SCRIPT)] if SCRIPT.is_file() else [sys.executable, "-m", "energymt.cli"]
PRELOADED = (
    *("energymt.cli", "energymt.launch", "energymt.plan", "energymt.training", "energymt.decoding.console"),
    *("energymt.evaluation", "energymt.tracking.registry", "energymt.tracking.mlflow", "lightning.fabric"),
    *("energymt.judging", "energymt.meta_evaluation", "trainables.estimator"),
    *("trainables.supervised", "trainables.engine", "trainables.distilled", "trainables.qe_ebm", "tests.terminal"),
)
SECONDS = 120.0

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(list(PRELOADED))


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refuses(self, code: int, *parts: str) -> None:
        """Assert that it ended with this code and one sentence on stderr, with all these parts and nothing else."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        self.ended_by(code, *parts)

    def ended_by(self, code: int, *parts: str) -> None:
        """The same for a command that has told its progress before: the sentence is the last line."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err, self.err
        sentence = self.err.splitlines()[-1]
        assert sentence.startswith("energymt: ") and sentence.endswith((".", "?", ")")), sentence
        for part in parts:
            assert part in sentence, f"{part!r} is not in: {sentence}"


def set_variables(variables: MutableMapping[str, str], folder: Path, changes: Mapping[str, str | None]) -> None:
    """Runs lie below `folder`; a change to None takes a variable away."""
    values = {"COLUMNS": "200", "ENERGYMT_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1", **changes}
    for name, value in values.items():
        variables.pop(name, None)
        if value is not None:
            variables[name] = value


def environment(folder: Path, changes: Mapping[str, str | None]) -> dict[str, str]:
    """The variables of a new process."""
    values = dict(os.environ)
    set_variables(values, folder, changes)
    return values


def start(*arguments: str, folder: Path, **changes: str | None) -> subprocess.Popen[str]:
    """A command that has just begun, in `folder`."""
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    variables = environment(folder, changes)
    return subprocess.Popen([*COMMAND, *arguments], cwd=folder, env=variables, text=True, encoding="utf-8", **pipes)


def end(process: subprocess.Popen[str], stdin: str = "") -> Done:
    """Wait for a command that has begun."""
    try:
        out, err = process.communicate(stdin, timeout=SECONDS)
    finally:
        process.kill()
    return Done(process.returncode, out, err)


def run(*arguments: str, folder: Path, stdin: str = "", **changes: str | None) -> Done:
    """A command from begin to end."""
    return end(start(*arguments, folder=folder, **changes), stdin)


class Forked:
    """A command in a forked process."""

    def __init__(
        self, arguments: Sequence[str], folder: Path, stdin: bytes, changes: Mapping[str, str | None], most: int | None
    ) -> None:
        self.scratch = tempfile.TemporaryDirectory()
        self.files = [Path(self.scratch.name) / name for name in ("in", "out", "err")]
        for file in self.files:
            file.write_bytes(stdin if file.name == "in" else b"")
        self.process = _forks.Process(target=_forked, args=(arguments, folder, changes, self.files, most))
        self.process.start()

    def wait_until(self, text: str) -> None:
        """Wait until the command has said this on stderr."""
        wait_for(lambda: text in self.files[2].read_text("utf-8"), self)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid or 0, number)

    def end(self) -> Done:
        """Wait for its end; a command that was killed has the number of the signal, negative, as its code."""
        self.process.join(SECONDS)
        hangs = self.process.is_alive()
        self.process.kill()
        self.process.join()
        out, err = (file.read_text("utf-8") for file in self.files[1:])
        self.scratch.cleanup()
        assert not hangs, f"still running after {SECONDS:.0f} s: {err}"
        return Done(int(self.process.exitcode or 0), out, err)


def begin(
    *arguments: str, folder: Path, stdin: str | bytes = "", most: int | None = None, **changes: str | None
) -> Forked:
    """A command that has just begun, forked; `most` is the size that no file of it may exceed, in bytes."""
    return Forked(arguments, folder, stdin.encode() if isinstance(stdin, str) else stdin, changes, most)


def quick(
    *arguments: str, folder: Path, stdin: str | bytes = "", most: int | None = None, **changes: str | None
) -> Done:
    """A forked command from begin to end."""
    return begin(*arguments, folder=folder, stdin=stdin, most=most, **changes).end()


def wait_for(condition: Any, command: Forked | None = None) -> None:
    """Wait until a condition holds; a command that ends before is an error."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if command is not None and not command.process.is_alive() and not condition():
            raise AssertionError(f"the command has ended: {command.end()}")
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def _forked(
    arguments: Sequence[str],
    folder: Path,
    changes: Mapping[str, str | None],
    files: Sequence[Path],
    most: int | None,
) -> None:
    os.chdir(folder)
    set_variables(os.environ, folder, changes)
    for number, file in enumerate(files):
        os.dup2(os.open(file, os.O_RDONLY if number == 0 else os.O_WRONLY), number)
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)), encoding="utf-8")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if most is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    sys.argv = ["energymt", *arguments]
    from energymt.cli import main

    main()
