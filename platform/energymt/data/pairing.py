"""Labelled and unlabelled batches side by side, in one plan of steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from energymt.data.batching import EncodedCorpus, StepPlan, collate
from energymt.noise import Noise
from energymt.records import StepBatch

NEIGHBOUR_STREAM = 5  # of the noise


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
        labelled: pairs; its seed is that of the draw, too.
        unlabelled: sources.
        neighbours_NK: for each row of the labelled corpus, the rows of its nearest sources in the unlabelled corpus.
        share: of a step's sentences whose neighbours are taken, one for each.
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
            places = self._beside(batch)
            cut = [places[first : first + self.most] for first in range(0, len(places), self.most)]
            yield replace(batch, unlabelled=tuple(collate(self.unlabelled, part) for part in cut[rank::world]))

    def _beside(self, batch: StepBatch) -> list[int]:
        """One neighbour of each sentence that is drawn, another one in each epoch; none twice, and of like length.

        Over the whole step, alike for all workers: a source that stood in two micro-batches would have the same
        samples in both.
        """
        ids_N = torch.tensor(sorted(batch.sentence_ids), dtype=torch.long)
        draw_N = Noise(self.labelled.seed, batch.step, ids_N, NEIGHBOUR_STREAM).uniform(1, 0, 1).flatten()
        drawn = ids_N[draw_N.argsort(stable=True)[: max(1, round(self.share * len(ids_N)))]].numpy()
        chosen = self.neighbours_NK[drawn, batch.epoch % self.neighbours_NK.shape[1]]
        # A source that is too long for the translator is not among the encoded ones.
        places = {self._place[int(row)] for row in chosen if int(row) in self._place}
        return sorted(places, key=lambda place: (len(self.unlabelled.source_ids[place]), place))
