"""Samples that are drawn one step before they are learnt from, while the estimator answers elsewhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from energymt.data.batching import Plan
from energymt.records import Batch, StepBatch

T = TypeVar("T")


class Ahead(Generic[T]):
    """Draws for the micro-batches of the next step, in equal shares, whenever one of this step's waits for an answer.

    The first step behind a checkpoint draws its own, so that a run which goes on from there is the uninterrupted one.

    Args:
        draw: samples of a micro-batch of a step.
        every: steps between two checkpoints.
        steps: of the run; nothing is drawn beyond them.
    """

    def __init__(self, draw: Callable[[Batch, int], T], every: int, steps: int) -> None:
        self.draw, self.every, self.steps = draw, every, steps
        self.rest: Iterator[StepBatch] = iter(())
        self.next: StepBatch | None = None
        self.undrawn: deque[Batch] = deque()  # micro-batches of the next step
        self.share = 0  # of them, for each of this step
        self.ready: deque[T] = deque()  # of this step
        self.drawn: deque[T] = deque()  # of the next one

    def begin(self, batch: StepBatch, plan: Plan) -> None:
        """A step of this plan begins."""
        if self.next is None or self.next.step != batch.step:
            self.rest = plan.iterate(batch.step + 1, batch.rank, batch.world)
            self.drawn.clear()
        self.ready, self.drawn = self.drawn, deque()
        self.next = next(self.rest)
        alone = self.next.step % self.every == 0 or self.next.step >= self.steps
        self.undrawn = deque(() if alone else self.next.unlabelled)
        self.share = -(-len(self.undrawn) // max(1, len(batch.unlabelled)))

    def take(self) -> T | None:
        """What was drawn for the next micro-batch of this step, if anything was."""
        return self.ready.popleft() if self.ready else None

    def work(self) -> None:
        """Draw while one micro-batch of this step waits."""
        self._draw(min(self.share, len(self.undrawn)))

    def end(self) -> None:
        """Draw what is left, before the weights of this step are others.

        Which worker waits, and how often, must not say by which weights a sample is drawn.
        """
        self._draw(len(self.undrawn))

    def _draw(self, count: int) -> None:
        for _ in range(count):
            assert self.next is not None
            self.drawn.append(self.draw(self.undrawn.popleft(), self.next.step))
