"""One of two training processes: `python -m tests.workers WORLD OUT`, with the rank in the environment."""

import json
import sys
from pathlib import Path

import safetensors.torch
from lightning.fabric import Fabric

from energymt.training import fit
from tests import toy
from tests.test_optimisation import CUT, WORKERS, exact, mixed, steps_of, with_dropout
from tests.toy import METHODS


def main(world: Path, out: Path) -> None:
    """Train every method on this process's share of each step; leave weights and reports."""
    fabric = Fabric(accelerator="cpu", devices=WORKERS, strategy="ddp", precision="32-true")
    fabric.launch()
    rank = fabric.global_rank
    assert fabric.world_size == WORKERS

    def leave(name: str, trainable) -> None:
        safetensors.torch.save_file(toy.weights(trainable), out / f"{name}-{rank}.safetensors")

    for name in METHODS:
        trainable = exact(name, world)
        reports = toy.train(trainable, steps_of(trainable, CUT, rank, WORKERS), fabric)
        leave(name, trainable)
        (out / f"{name}-{rank}.json").write_text(json.dumps(reports))
    trainable = mixed(world)
    reports = toy.train(trainable, steps_of(trainable, CUT, rank, WORKERS), fabric)
    (out / f"mixture-{rank}.json").write_text(json.dumps(reports))
    leave("mixture", trainable)
    trainable = exact("masked", world, vocabulary={"path": str(world / "masked-toy")}, model=with_dropout())
    toy.train(trainable, steps_of(trainable, CUT, rank, WORKERS), fabric)
    leave("dropout", trainable)
    trainable = exact("supervised", world)
    result = fit(trainable, fabric, out / "checkpoints", lambda step, values: None)
    leave("fit", trainable)
    (out / f"fit-{rank}.json").write_text(json.dumps([result.progress.kept, result.progress.best_step]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
