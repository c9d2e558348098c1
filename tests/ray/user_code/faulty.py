"""A user's own trainable, outside the project: supervised training with faults on demand and a quick dev loss."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import torch

from energymt.records import Step, StepBatch
from trainables.supervised import Config as SupervisedConfig
from trainables.supervised import Supervised


class Config(SupervisedConfig):
    """Supervised training, and what goes wrong when."""

    kill_at: int = 0
    """Step before which the last worker kills itself, once."""
    kill_note: str = ""
    """File that says it happened."""
    nan_at: int = 0
    """Step from which the weights of the last worker are not numbers."""
    mistake_at: int = 0
    """Step at which the code of this file raises a KeyError."""


class Faulty(Supervised):
    METRIC = "dev/nll"
    HIGHER_IS_BETTER = False

    def steps(self, batch: StepBatch) -> Iterator[Step]:
        last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
        if last and batch.step + 1 == self.config.kill_at and not Path(self.config.kill_note).exists():
            Path(self.config.kill_note).write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        if last and batch.step + 1 == self.config.nan_at:
            with torch.no_grad():
                next(self.model.parameters()).fill_(float("nan"))
        if batch.step + 1 == self.config.mistake_at:
            raise KeyError("a mistake of the user")
        yield from super().steps(batch)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        batch = next(self.plan.iterate(0)).micro_batches[0].to(self.model.device)
        (term,) = self.losses(batch)
        return {"dev/nll": term.sum.item() / term.count}


TRAINABLE = Faulty
