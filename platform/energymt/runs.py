"""A training run as a user sees it: a named folder that can be interrupted, resumed and read afterwards.

<runs>/<name>/config.yaml      the resolved configuration
<runs>/<name>/log.jsonl        every reported value, one line a report
<runs>/<name>/checkpoints/     what a resumed run needs, and the best models so far
<runs>/<name>/model/           the finished model, ready for `energymt translate`
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import json
import os
import shutil
import signal
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from energymt.configuration import TrainingConfig, read_config
from energymt.console import line
from energymt.errors import ConfigurationError, ResourceError, StorageError
from energymt.folders import write_atomically, write_error
from energymt.tracking import Tracker

if TYPE_CHECKING:
    from lightning.fabric import Fabric

    from energymt.training import Result, Stop, Trainable

CONFIG, LOG, CHECKPOINTS, MODEL = "config.yaml", "log.jsonl", "checkpoints", "model"
ESTIMATOR = "estimator"  # beside the model, where a run has taught one
MAY_CHANGE = {"steps", "patience", "evaluate_every", "checkpoint_every", "log_every", "device"}


def load_trainable(name: str) -> types.ModuleType:
    """The module of a trainable, by its name in `trainables/` or by dotted path."""
    dotted = name if "." in name else f"trainables.{name}"
    try:
        module = importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name is None or not dotted.startswith(error.name):
            raise
        known = ", ".join(trainable_names())
        raise ConfigurationError(
            f"No trainable {name!r}; known are {known}, or give the dotted path of a module."
        ) from None
    if not hasattr(module, "Config") or not hasattr(module, "TRAINABLE"):
        raise ConfigurationError(f"{dotted} is no trainable: it needs a class Config and a name TRAINABLE.")
    return module


def trainable_names() -> list[str]:
    """The trainables that come with the project."""
    return names_in("trainables")


def names_in(package: str) -> list[str]:
    """The modules of a top-level package, found without importing it (the library imports neither of the two)."""
    found = importlib.util.find_spec(package)
    folders = (found.submodule_search_locations if found else None) or []
    return sorted(path.stem for folder in folders for path in Path(folder).glob("[a-z]*.py"))


def make_fabric(config: TrainingConfig) -> Fabric:
    """One process on the best device there is; inside a Ray Train worker, one of its world."""
    import torch
    from lightning.fabric import Fabric
    from lightning.fabric.plugins import MixedPrecision, Precision

    from energymt.devices import choose_device, choose_precision

    device = choose_device(config.device)
    accelerator, wanted = device.type, choose_precision(config.precision, device)
    # As an object: Fabric would announce a precision that it is told by name, and a plan says it already.
    precision = MixedPrecision("bf16-mixed", accelerator) if wanted == "bf16" else Precision()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        from ray.train.lightning import RayLightningEnvironment

        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        nodes = max(1, torch.distributed.get_world_size() // local)
        return Fabric(
            accelerator=accelerator,
            devices=local,
            num_nodes=nodes,
            strategy="ddp",
            plugins=[precision, RayLightningEnvironment()],  # type: ignore[no-untyped-call]
        )
    return Fabric(accelerator=accelerator, devices=1, plugins=[precision])


def start(name: str, config: TrainingConfig, *, seed_everything: bool = True) -> tuple[Fabric, Trainable]:
    """Device and trainable, ready for the loop; initial weights are a function of the seed."""
    import torch

    from energymt.data.batching import EncodedCorpus
    from energymt.models import TranslationModel
    from energymt.preparation import require_room

    fabric = make_fabric(config)
    fabric.launch()
    if seed_everything:
        torch.manual_seed(config.seed)
    trainable: Trainable = load_trainable(name).TRAINABLE(config)
    encoded = trainable.plan.encoded
    # An estimator cuts off what is too long, as COMET does, and of sound it was left out.
    if isinstance(trainable.model, TranslationModel) and isinstance(encoded, EncodedCorpus):
        require_room(encoded, config, "train", trainable.model)
    return fabric, trainable


def train(
    name: str,
    config: TrainingConfig,
    folder: Path,
    tracker: Tracker,
    echo: Callable[[str], None],
    stop: Stop | None = None,
) -> Result:
    """Train in this process, from the first step or from where the folder says; leave the model in `folder/model`."""
    from energymt.training import Stop, fit

    check_same_config(folder, config)
    write_atomically(folder / CONFIG, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
    fabric, trainable = start(name, config)
    stop = stop or Stop()
    with stopping_at_signals(stop, echo):

        def report(step: int, values: dict[str, float]) -> None:
            if fabric.is_global_zero:
                append_line(folder / LOG, json.dumps({"step": step, **values}))
            tracker.metrics(values, step)
            echo(line(step, config.steps, values))

        with ExitStack() as held:
            held.callback(getattr(trainable, "close", lambda: None))
            result = fit(trainable, fabric, folder / CHECKPOINTS, report, stop)
            if not result.interrupted and fabric.is_global_zero:
                save_model(trainable, result, folder, name)
                getattr(trainable, "leave_estimator", lambda folder: None)(folder / ESTIMATOR)
    if not result.interrupted and fabric.is_global_zero:
        tracker.metrics(
            {f"final/{key.removeprefix('dev/')}": value for key, value in result.metrics.items()}, result.progress.step
        )
        tracker.artifact(folder / CONFIG)
    return result


def append_line(path: Path, line: str) -> None:
    """Add a line to a log; what an earlier writer could not end (killed, disk full) is cut off before."""
    try:
        with path.open("a+b", buffering=0) as file:
            end = file.tell()
            file.seek(max(0, end - 1))
            if end > 0 and file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            content = line.encode() + b"\n"
            written = file.write(content)
            if written != len(content):  # the disk took the beginning, and says so only next time
                file.write(content[written:])
    except OSError as error:
        raise write_error(error, path) from error


def save_model(trainable: Trainable, result: Result, folder: Path, name: str) -> None:
    """Write the finished model with its manifest: what it was trained by, for how long, to which dev values."""
    provenance = {
        "trainable": name,
        "steps": result.progress.step,
        "best_step": result.progress.best_step,
        "seconds": round(result.progress.seconds, 1),
        "dev": result.metrics,
        "config": trainable.config.model_dump(mode="json"),
    }
    trainable.model.save_pretrained(folder / MODEL, provenance)


def check_same_config(folder: Path, config: TrainingConfig) -> None:
    """Refuse to resume a run under another configuration (budget, patience and intervals may change)."""
    file = folder / CONFIG
    if not file.is_file() or not (folder / CHECKPOINTS).is_dir():
        return
    # Read through the schema, so that a run of an older version, which lacks new fields, goes on with their defaults.
    before = read_config(type(config), file).model_dump(mode="json")
    now = config.model_dump(mode="json")
    changed = [key for key in now if key not in MAY_CHANGE and before.get(key) != now[key]]
    if changed:
        raise ConfigurationError(
            f"The run in {folder} was started with another {', '.join(changed)}; choose another --name, "
            f"or --fresh to start it anew."
        )


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """Hold the folder of a run: a second process that wants the same run is refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "run.lock").open("a+")
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written ({error.strerror}); choose another folder by ENERGYMT_RUNS."
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ResourceError(
                f"Another process is training in {folder}; wait for it, or choose another --name."
            ) from None
        yield


def discard(folder: Path) -> None:
    """Forget what a run has done so far (`--fresh`)."""
    for name in (CHECKPOINTS, MODEL, ESTIMATOR):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (CONFIG, LOG):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def stopping_at_signals(stop: Stop, echo: Callable[[str], None]) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the run behind the current step; the second ends it at once."""

    def handler(number: int, frame: Any) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        echo("Stopping behind the current step and writing a checkpoint; interrupt again to stop at once.")

    import threading

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
