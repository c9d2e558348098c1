"""Training inside Ray Train: the same `runs.train` in W workers, started again together when one of them dies."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from energymt import console, errors, runs
from energymt.cluster.worker import ATTEMPT, FAILURE, STOP, work
from energymt.configuration import TrainingConfig
from energymt.errors import EnergymtError, ResourceError
from energymt.folders import write_atomically
from energymt.outcome import Outcome
from energymt.tracking import NullTracker, Tracker
from energymt.tracking.relay import LogRelay

COLLECTIVE_SECONDS = 1800  # the others wait while the first worker evaluates
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Workers:
    """How many workers train, what each holds, and how often the group is started again."""

    count: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    max_failures: int = 3  # a worker died or raised
    max_start_failures: int = 10  # the group could not be placed in time; a node that scales up takes minutes
    max_preemptions: int = 20  # a spot node was taken away

    def each(self) -> dict[str, float]:
        """What one worker takes."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus > 0 else {})

    def together(self) -> dict[str, float]:
        """What the whole group takes from the cluster."""
        return {name: self.count * amount for name, amount in self.each().items()}


def train_on_ray(
    trainable: str,
    config: TrainingConfig,
    folder: Path,
    *,
    workers: Workers,
    tracker: Tracker | None = None,
    echo: Callable[[str], None] | None = None,
    callbacks: Sequence[Any] = (),
) -> Outcome:
    """Train `trainable` in Ray Train workers; Ray must be started, and every node must see the run folder.

    Dead workers: the group is started again, at most `workers.max_failures` times, and goes on from the checkpoint.
    Ctrl-C: the workers write a checkpoint and the outcome is `interrupted`; a second one raises KeyboardInterrupt.
    Raises the EnergymtError that a worker raised, or ResourceError when Ray gives up.
    """
    folder = folder.absolute()
    attempt = uuid.uuid4().hex[:8]
    for name in (STOP, FAILURE):
        (folder / name).unlink(missing_ok=True)
    write_atomically(folder / ATTEMPT, attempt)
    trainer = TorchTrainer(
        work,  # type: ignore[arg-type]
        train_loop_config={
            "trainable": trainable,
            "config": config.model_dump(mode="json"),
            "folder": str(folder),
            "attempt": attempt,
        },
        torch_config=TorchConfig(timeout_s=COLLECTIVE_SECONDS),
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count, use_gpu=workers.gpus > 0, resources_per_worker=workers.each()
        ),
        run_config=ray.train.RunConfig(
            # A name that was used before would silently go on with Ray's own state of that run.
            name=f"attempt-{attempt}",
            storage_path=str(folder / "ray"),
            failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                max_failures=workers.max_failures,
                controller_failure_limit=workers.max_start_failures,
                max_preemption_failures=workers.max_preemptions,
            ),
            callbacks=list(callbacks),
        ),
    )
    tracker, echo = tracker or NullTracker(), echo or _silent
    relay = LogRelay(folder / runs.LOG, tracker, lambda step, values: echo(console.line(step, config.steps, values)))
    outcome = Outcome(**_fit(trainer, folder, workers, relay, echo))
    if outcome.metrics:
        tracker.metrics(
            {f"final/{name.removeprefix('dev/')}": value for name, value in outcome.metrics.items()}, outcome.step
        )
        tracker.artifact(folder / runs.CONFIG)
    return outcome


def _fit(
    trainer: TorchTrainer, folder: Path, workers: Workers, relay: Callable[[], None], echo: Callable[[str], None]
) -> dict[str, Any]:
    """Run the trainer in a thread: Ray's own handler of Ctrl-C would kill the workers without a checkpoint."""
    ended: list[Any] = []
    over = threading.Event()  # an interrupted Thread.join would take the thread for dead

    def run() -> None:
        try:
            ended.append(trainer.fit())
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            ended.append(error)
        finally:
            over.set()

    threading.Thread(target=run, name="ray-train", daemon=True).start()
    while not over.is_set():
        try:
            over.wait(POLL_SECONDS)
            relay()
        except KeyboardInterrupt:
            if (folder / STOP).exists():
                raise
            (folder / STOP).touch()
            echo("Stopping behind the current step and writing a checkpoint; interrupt again to stop at once.")
    relay()
    if (folder / FAILURE).exists():
        failure = json.loads((folder / FAILURE).read_text(encoding="utf-8"))
        raise getattr(errors, failure["type"], EnergymtError)(failure["sentence"])
    if not ended or isinstance(ended[0], Exception):
        raise _gave_up(ended, folder, workers)
    value: dict[str, Any] = ended[0].return_value
    return value


def _gave_up(ended: list[Any], folder: Path, workers: Workers) -> ResourceError:
    if ended and isinstance(ended[0], ray.train.ControllerError):
        has = _shown(ray.cluster_resources())  # type: ignore[no-untyped-call]
        return ResourceError(
            f"{workers.count} workers of {workers.each()} could not be started on a cluster of {has}: "
            f"{_last_line(ended[0].controller_failure)}"
        )
    failures = getattr(ended[0], "worker_failures", {}) if ended else {}
    reason = "; ".join(f"worker {rank}: {_last_line(error)}" for rank, error in failures.items())
    return ResourceError(
        f"Training in {folder} ended after {workers.max_failures} new starts ({reason or 'the Ray process ended'}). "
        "Checkpoints are kept: start the same command again to go on."
    )


def _shown(resources: dict[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in resources.items() if ":" not in name and "memory" not in name}


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()[:300]}" if lines else type(error).__name__


def _silent(text: str) -> None:
    """An echo that says nothing."""
