"""Labelled and unlabelled batches side by side, in one plan of steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from energymt.data.batching import EncodedCorpus, StepPlan, collate
from energymt.records import Batch, StepBatch


class PairedPlan:
    """A step of labelled pairs, and beside it a step of unlabelled sources, each with epochs of its own.

    Args:
        labelled: pairs.
        unlabelled: sources.
    """

    def __init__(self, labelled: StepPlan, unlabelled: StepPlan) -> None:
        self.labelled, self.unlabelled = labelled, unlabelled
        self.encoded, self.steps_per_epoch = labelled.encoded, labelled.steps_per_epoch

    def iterate(self, start_step: int = 0, rank: int = 0, world: int = 1) -> Iterator[StepBatch]:
        """See `batching.Plan`."""
        sides = (plan.iterate(start_step, rank, world) for plan in (self.labelled, self.unlabelled))
        for labelled, unlabelled in zip(*sides, strict=True):
            yield replace(labelled, unlabelled=unlabelled.micro_batches)


class NeighbourPlan:
    """A step of labelled pairs, and beside it the nearest unlabelled sources of some of its sentences (QE-EBM).

    Args:
        labelled: pairs.
        unlabelled: sources.
        neighbours_NK: for each row of the labelled corpus, the rows of its nearest sources in the unlabelled corpus.
        share: of a micro-batch's sentences whose neighbours are taken, one for each.
        most: sentences in one micro-batch of neighbours.
    """

    def __init__(
        self,
        labelled: StepPlan,
        unlabelled: EncodedCorpus,
        neighbours_NK: NDArray[np.int64],
        share: float,
        most: int,
    ) -> None:
        self.most = most
        self.labelled, self.unlabelled, self.neighbours_NK, self.share = labelled, unlabelled, neighbours_NK, share
        self.encoded, self.steps_per_epoch = labelled.encoded, labelled.steps_per_epoch
        self._place = {int(row): place for place, row in enumerate(unlabelled.rows)}

    def iterate(self, start_step: int = 0, rank: int = 0, world: int = 1) -> Iterator[StepBatch]:
        """See `batching.Plan`."""
        for batch in self.labelled.iterate(start_step, rank, world):
            found = [beside for micro in batch.micro_batches for beside in self._beside(micro, batch.epoch)]
            yield replace(batch, unlabelled=tuple(found))

    def _beside(self, batch: Batch, epoch: int) -> Iterator[Batch]:
        """One neighbour of each of the first sentences, another one in each epoch; none twice."""
        rows = batch.sentence_ids_B[: max(1, round(self.share * len(batch)))].numpy()
        chosen = self.neighbours_NK[rows, epoch % self.neighbours_NK.shape[1]]
        # A source that is too long for the translator is not among the encoded ones.
        places = sorted({self._place[int(row)] for row in chosen if int(row) in self._place})
        for first in range(0, len(places), self.most):
            yield collate(self.unlabelled, places[first : first + self.most])
