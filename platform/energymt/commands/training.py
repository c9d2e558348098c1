"""`energymt train`, `sweep` and `demo`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from energymt.commands.outputs import require_place

if TYPE_CHECKING:
    from energymt.configuration import TrainingConfig

Trainable = Annotated[
    str,
    typer.Argument(
        help="A name (supervised, masked, distilled, engine, qe_ebm, reinforce, ppo, estimator, proxy, proxy_ebm, "
        "proxy_speech, speech), or the dotted path of a module."
    ),
]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file with the configuration.")]
Settings = Annotated[list[str] | None, typer.Option("--set", "-s", help="key.sub=value, over the file; repeatable.")]
Tracking = Annotated[str | None, typer.Option(help="MLflow store, or `none`. Default: sqlite in the folder of runs.")]


def train(
    trainable: Trainable,
    config: Config = None,
    settings: Settings = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; the same name goes on where it stopped.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Training processes; more than one run in Ray Train.")] = 1,
    gpus_per_worker: Annotated[float, typer.Option(min=0, help="GPUs of each Ray Train worker.")] = 0,
    ray: Annotated[bool, typer.Option("--ray", help="Use Ray Train also for one worker.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what a run of this name has done.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, print the plan, train nothing.")
    ] = False,
    experiment: Annotated[str, typer.Option(help="MLflow experiment.")] = "energymt",
    register: Annotated[str | None, typer.Option(help="Name in the model registry. Default: the trainable's.")] = None,
    tracking: Tracking = None,
) -> int:
    """Train a model; the same command again goes on where it stopped."""
    from energymt import console, runs
    from energymt.configuration import read_config
    from energymt.launch import Bookkeeping, Placement, launch
    from energymt.storage import runs_root

    module = runs.load_trainable(trainable)
    resolved: TrainingConfig = read_config(module.Config, config, settings or ())
    if dry_run:
        from energymt.plan import describe

        typer.echo(describe(trainable, resolved, workers))
        return 0
    name = name or default_name(trainable, resolved)
    folder = runs_root() / name
    placement = Placement(workers, gpus_per_worker, on_ray=ray or workers > 1)
    registered = register or f"energymt-{trainable.replace('.', '-')}"
    with runs.owned(folder), console.progress() as echo:
        if fresh:
            runs.discard(folder)
        books = Bookkeeping(tracking, experiment, name, registered)
        ending = launch(trainable, resolved, folder, placement, books, echo)
    typer.echo(ending.sentence, err=True)
    return ending.exit_code


def default_name(trainable: str, config: TrainingConfig) -> str:
    """A name that is the same for the same configuration."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return f"{trainable}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def sweep(
    space: Annotated[str, typer.Argument(help="Name in search_spaces/ or dotted path of a module.")],
    config: Config = None,
    settings: Settings = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep of this name.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print trials and resources, start nothing.")] = False,
    register: Annotated[
        str | None, typer.Option(help="Name in the model registry for the best trial's model. Default: not registered.")
    ] = None,
    tracking: Tracking = None,
) -> int:
    """Run a search space: one trial a point, nested MLflow runs, a table at the end."""
    from energymt.sweep import command

    return command(
        space,
        config=config,
        settings=settings or (),
        name=name,
        resume=resume,
        dry_run=dry_run,
        tracking=tracking,
        register=register,
    )


def demo(
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the table to this file.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of language, weights and batches.")] = 1,
    tracking: Tracking = None,
) -> int:
    """The whole story on a generated toy language, in minutes: teacher, CMLM, distilled CMLM, ENGINE."""
    from energymt.demo import run_demo

    require_place("--json", json_file)
    run_demo(seed, json_file, tracking)
    return 0


COMMANDS: list[Any] = [train, sweep, demo]
