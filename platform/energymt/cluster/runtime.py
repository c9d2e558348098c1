"""How Ray is started or joined: the one place that builds the arguments of `ray.init` and the runtime environment."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from pathlib import Path
from typing import Any

from energymt.errors import ResourceError
from energymt.storage import cache_root, runs_root
from energymt.tracking import tracking_uri

LOCAL = "local"
OBJECT_STORE_BYTES = 500_000_000  # Ray would take 30 % of the memory; records and batches of text are small
# A hung worker is found and a group that does not start is given up in minutes, not after ten or never.
TIMEOUTS = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "2",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "300",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1800",
}
# Relative paths of a configuration mean the folder that the command was started in, also in a worker.
STAY = {"RAY_CHDIR_TO_TRIAL_DIR": "0"}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
# What does not belong into the copy of the checkout that workers on other machines get; a leading / is the checkout.
EXCLUDES = ["/.git", "/.venv*", "/runs", "/docs", "/tests", "/benchmarks", "**/__pycache__", "*.db"]
PASSED_ON = ("ENERGYMT_DATA", "HF_HOME", "HF_HUB_OFFLINE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION")


def start(address: str | None = None, **overrides: Any) -> None:
    """Start a Ray on this machine, or join the one at `address` (default: the variable RAY_ADDRESS, else local).

    Does nothing when this process is connected already. Raises ResourceError when the cluster does not answer.
    """
    prepare_environment(address)
    import ray

    if ray.is_initialized():
        return
    _read_environment_again()
    arguments = init_arguments(address) | overrides
    if arguments["address"] == LOCAL or arguments["address"].startswith("127."):
        _keep_to_loopback()
    if arguments["address"] != LOCAL:
        _check_reachable(arguments["address"])
    try:
        ray.init(**arguments)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ResourceError(
            f"Ray at {arguments['address']} cannot be used ({' '.join(str(error).split())[:300]}): "
            "is the cluster up, and is its token in ~/.ray/auth_token?"
        ) from error


def prepare_environment(address: str | None = None) -> None:
    """Set what Ray reads from the environment, token authentication included; what the user set stays."""
    for name, value in {**TIMEOUTS, **QUIET, **STAY, "RAY_AUTH_MODE": "token"}.items():
        os.environ.setdefault(name, value)
    if is_local(address):
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # read when Ray is imported: loopback alone
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine away
        _ensure_token()


def is_local(address: str | None = None) -> bool:
    """Whether `start` would make a Ray of its own on this machine."""
    return (address or os.environ.get("RAY_ADDRESS") or LOCAL) == LOCAL


def init_arguments(address: str | None = None) -> dict[str, Any]:
    """The arguments of `ray.init`: a local Ray on loopback without a dashboard, or an address to join."""
    arguments: dict[str, Any] = {
        "address": address or os.environ.get("RAY_ADDRESS") or LOCAL,
        "runtime_env": runtime_environment(local=is_local(address)),
        "log_to_driver": False,
        "logging_level": logging.WARNING,
    }
    if is_local(address):
        arguments |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    return arguments


def runtime_environment(*, local: bool) -> dict[str, Any]:
    """What workers start with.

    Local workers import from where the driver does. On a cluster, a driver in a checkout ships it; an installed
    package ships nothing, and the nodes must have it installed.
    """
    variables = {"ENERGYMT_RUNS": str(runs_root()), "ENERGYMT_CACHE": str(cache_root()), **STAY}
    variables["MLFLOW_TRACKING_URI"] = tracking_uri()
    variables |= {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    checkout = find_checkout()
    if local:
        places = [str(checkout / "platform"), str(checkout)] if checkout else []
        inherited = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep) if place]
        path = list(dict.fromkeys([*places, *inherited, str(Path.cwd())]))
        return {"env_vars": variables | {"PYTHONPATH": os.pathsep.join(path)} | _loopback_interface()}
    if checkout is None:
        return {"env_vars": variables}
    return {
        "working_dir": str(checkout),
        "excludes": EXCLUDES,
        "env_vars": variables | {"PYTHONPATH": "platform"},
    }


def find_checkout() -> Path | None:
    """The repository that this code was imported from; None for an installed package."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "pyproject.toml").is_file() and (root / "platform" / "energymt").is_dir() else None


def _loopback_interface() -> dict[str, str]:
    """The workers of one machine talk over loopback (Linux names it lo)."""
    return {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}


def _check_reachable(address: str) -> None:
    """Ray itself would try for most of a minute."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ResourceError(
            f"Ray at {address} does not answer ({error}): is the cluster up, and RAY_ADDRESS right?"
        ) from error


def _keep_to_loopback() -> None:
    """Make a local Ray listen on 127.0.0.1 alone, and be joined there, not at the machine's own address.

    The switch is read when Ray is imported, which may be long ago.
    """
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False


def _read_environment_again() -> None:
    """Ray's core reads the authentication mode once, when it is imported: by a search space, perhaps, long ago."""
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _ensure_token() -> None:
    """Make a token that only this user can read, if there is none (Ray would write one that all can read)."""
    if os.environ["RAY_AUTH_MODE"] != "token" or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        return
    path = Path.home() / ".ray" / "auth_token"
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
    except FileExistsError:
        return
    except OSError:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # no home to write to: this process and its workers only
