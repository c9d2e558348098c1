"""The Ray that pools of this machine stand on: started in the background by the first `pool up`, joined by the others.

Its address stands in a state file. A Ray at RAY_ADDRESS is joined instead, and never ended from here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from energymt.cluster import runtime
from energymt.errors import EnergyUnavailable, ResourceError
from energymt.folders import write_atomically
from energymt.storage import cache_root

START_SECONDS = 120.0
END_SECONDS = 20.0
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Head:
    """A Ray head on loopback that `pool up` started."""

    address: str
    process: int
    log: str


def state_file() -> Path:
    """Where the head of this machine is written down."""
    return cache_root() / "pool" / "ray.json"


def find_head() -> Head | None:
    """The head that runs; a state file of one that does not is removed."""
    try:
        head = Head(**json.loads(state_file().read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    if _answers(head.address) and _lives(head.process):
        return head
    state_file().unlink(missing_ok=True)
    return None


def join() -> None:
    """Connect this process to the Ray of the pools.

    Raises:
        EnergyUnavailable: none runs.
    """
    if os.environ.get("RAY_ADDRESS"):
        runtime.start()
        return
    head = find_head()
    if head is None:
        raise EnergyUnavailable(
            "No energy pool is up on this machine: start one by `energymt pool up ESTIMATOR`, or set RAY_ADDRESS."
        )
    _connect(head.address)


def start_or_join(cpus: int | None = None) -> bool:
    """Connect this process to the Ray of the pools; start one on loopback if there is none. Whether one was started.

    Args:
        cpus: that a new one counts; None: the machine's.

    Raises:
        ResourceError: it does not start.
    """
    if os.environ.get("RAY_ADDRESS"):
        runtime.start()
        return False
    head = find_head()
    started = head is None
    head = head or _start(cpus)
    try:
        _connect(head.address, START_SECONDS if started else 0.0)
    except BaseException:
        if started:
            end()
        raise
    return started


def end() -> bool:
    """End the Ray that `pool up` started and this process has joined; whether there was one."""
    head = None if os.environ.get("RAY_ADDRESS") else find_head()
    if head is None:
        return False
    import ray

    ray.shutdown()
    for number in (signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + END_SECONDS
        with suppress(ProcessLookupError):
            os.killpg(head.process, number)
        while _lives(head.process) and time.monotonic() < until:
            time.sleep(0.1)
    state_file().unlink(missing_ok=True)
    return True


def _connect(address: str, patience: float = 0.0) -> None:
    """Join; a head whose port answers may not have its node yet, for which Ray itself waits half a minute."""
    until = time.monotonic() + patience
    while True:
        try:
            runtime.start(address, runtime_env=runtime.runtime_environment(local=True))
            return
        except ResourceError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.2)


def _start(cpus: int | None) -> Head:
    """A head in a session of its own, so that it outlives this terminal."""
    runtime.prepare_environment(runtime.LOCAL)
    log = state_file().with_name("ray.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
    command += [f"--node-ip-address={LOOPBACK}", "--include-dashboard=false", "--disable-usage-stats"]
    command += [f"--object-store-memory={runtime.OBJECT_STORE_BYTES}"]
    command += [] if cpus is None else [f"--num-cpus={cpus}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"},  # pools are ended before it is
        )
    head = Head(f"{LOOPBACK}:{port}", process.pid, str(log))
    until = time.monotonic() + START_SECONDS
    while not _answers(head.address):
        if process.poll() is not None or time.monotonic() > until:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise ResourceError(f"Ray did not start on this machine: see {log}.")
        time.sleep(0.1)
    write_atomically(state_file(), json.dumps(asdict(head), indent=1))
    return head


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except OSError:
        return False
    return True


def _lives(process: int) -> bool:
    with suppress(ChildProcessError):
        os.waitpid(process, os.WNOHANG)  # if it is a child of this process, it must be read out
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
