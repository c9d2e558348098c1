"""Ctrl-C and SIGTERM: exit code 130, a checkpoint behind the current step, and the same command goes on."""

import re
import signal
import subprocess

import pytest

from tests.faults.conftest import STEPS, World, same
from tests.terminal import end, start

pytestmark = pytest.mark.faults
FIRST = "Stopping behind the current step and writing a checkpoint; interrupt again to stop at once."


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """The lines of stderr up to the one that holds a text."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def test_ctrl_c_ends_behind_the_step_with_a_checkpoint(world: World, undisturbed: World) -> None:
    arguments = ("train", "methods.trouble", "-c", "student.yaml", "--name", "run", "--tracking", "none")
    process = start(*arguments, folder=world.folder)
    read_until(process, f"step     15/{STEPS}")
    process.send_signal(signal.SIGINT)
    done = end(process)
    assert done.code == 130
    assert FIRST in done.err and "Traceback" not in done.err
    stopped = re.search(rf"Stopped at step (\d+) of {STEPS}; the same command goes on from there\.\n$", done.err)
    assert stopped and world.checkpoints()[-1] == f"last-{int(stopped[1]):08d}"
    assert not (world.run() / "model").exists()
    again = world.train()
    assert again.code == 0 and same(world.weights(), undisturbed.weights())


def test_sigterm_is_answered_in_the_same_way(world: World, undisturbed: World) -> None:
    command = world.begin()
    command.wait_until(f"step     15/{STEPS}")
    command.signal(signal.SIGTERM)
    done = command.end()
    assert done.code == 130 and FIRST in done.err and "Stopped at step" in done.err
    assert world.train().code == 0 and same(world.weights(), undisturbed.weights())


@pytest.mark.parametrize("first, second", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
def test_the_second_signal_ends_at_once(first: int, second: int, world: World, undisturbed: World) -> None:
    command = world.begin(TROUBLE="sleep@25")
    command.wait_until("asleep")
    command.signal(first)
    command.wait_until(FIRST)
    command.signal(second)
    done = command.end()
    done.ended_by(130, "Interrupted", "kept")
    assert "Stopped at step" not in done.err
    assert world.checkpoints() == ["last-00000010", "last-00000020"]
    assert world.train().code == 0 and same(world.weights(), undisturbed.weights())


def test_ctrl_c_before_the_first_step(world: World) -> None:
    process = start("train", "methods.trouble", "-c", "student.yaml", "--name", "run", folder=world.folder)
    process.send_signal(signal.SIGINT)  # most likely while modules are imported
    done = end(process)
    assert done.code in (130, -signal.SIGINT)
    assert world.train().code == 0


def test_a_tracked_run_is_marked_as_killed_and_then_as_finished(world: World) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{world.folder / 'runs' / 'mlflow.db'}"

    def status() -> str:
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        (run,) = client.search_runs([client.get_experiment_by_name("energymt").experiment_id])
        return str(run.info.status)

    command = world.begin(tracked=True)
    command.wait_until(f"step     15/{STEPS}")
    command.signal(signal.SIGINT)
    assert command.end().code == 130 and status() == "KILLED"
    command = world.begin(tracked=True, TROUBLE=f"sleep@{STEPS}")
    command.wait_until("asleep")
    for _ in range(2):
        command.signal(signal.SIGINT)
        command.wait_until(FIRST)
    assert command.end().code == 130 and status() == "KILLED"
    assert world.train(tracked=True).code == 0 and status() == "FINISHED"


def test_ctrl_c_in_a_translation_keeps_the_lines_so_far(undisturbed: World) -> None:
    process = start("translate", "runs/run/model", "--iterations", "1", folder=undisturbed.folder)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("zive veze\n" * 16)
    process.stdin.flush()
    lines = [process.stdout.readline() for _ in range(16)]
    process.send_signal(signal.SIGINT)
    done = end(process)
    assert len(set(lines)) == 1 and lines[0].strip() and done.out == ""
    done.refuses(130, "Interrupted")
