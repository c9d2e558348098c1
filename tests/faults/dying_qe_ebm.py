"""QE-EBM whose second worker dies once, at the beginning of a step."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

from energymt.records import Mixture, StepBatch
from trainables import qe_ebm


class Config(qe_ebm.Config):
    """As QE-EBM."""

    kill_at: int
    """Step, from 0."""
    kill_note: str
    """File that says it was done."""


class Dying(qe_ebm.QeEbm):
    def steps(self, batch: StepBatch) -> Iterator[Mixture]:
        note, settings = Path(self.config.kill_note), self.config
        if batch.step == settings.kill_at and batch.rank == batch.world - 1 and not note.exists():
            note.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield from super().steps(batch)


TRAINABLE = Dying
