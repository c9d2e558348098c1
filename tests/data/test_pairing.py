"""Labelled and unlabelled batches side by side: any start, any number of workers, and whose neighbours they are."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from energymt.data.batching import EncodedCorpus, Plan, StepPlan, collate
from energymt.data.pairing import NeighbourPlan, PairedPlan
from energymt.records import Batch, StepBatch
from tests.data.test_batching import encoded, random_lengths, same

LABELLED, UNLABELLED = encoded(random_lengths(60, 20)), encoded(random_lengths(45, 12))  # row 10 · i at place i
SHARE, K = 0.4, 3


def neighbours() -> np.ndarray:
    """K rows of UNLABELLED for each row of the labelled corpus, of which only every tenth is encoded."""
    draw = np.random.default_rng(3)
    return np.stack([10 * draw.permutation(45)[:K] for _ in range(600)])


def paired() -> PairedPlan:
    return PairedPlan(StepPlan(LABELLED, 100, 50, seed=2), StepPlan(UNLABELLED, 70, 20, seed=4))


def beside(
    share: float = SHARE, rows_NK: np.ndarray | None = None, sources: EncodedCorpus = UNLABELLED, most: int = 100
) -> NeighbourPlan:
    rows_NK = neighbours() if rows_NK is None else rows_NK
    return NeighbourPlan(StepPlan(LABELLED, 100, 50, seed=2), sources, rows_NK, share, most)


def alike(left: tuple[Batch, ...], right: tuple[Batch, ...]) -> bool:
    return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))


def interleaved(shares: list[tuple[Batch, ...]]) -> tuple[Batch, ...]:
    """What workers got in turn, as one worker has it."""
    turns = [shares[turn % len(shares)][turn // len(shares)] for turn in range(sum(map(len, shares)))]
    return tuple(turns)


plans = pytest.mark.parametrize("make", [paired, beside])


@plans
@pytest.mark.parametrize("start", [1, 7, 40])
@pytest.mark.parametrize("world", [1, 2])
def test_any_start_goes_on_as_if_never_interrupted(make: Callable[[], Plan], start: int, world: int) -> None:
    for rank in range(world):
        whole = list(islice(make().iterate(0, rank, world), start + 5))
        resumed = list(islice(make().iterate(start, rank, world), 5))
        assert len({step.epoch for step in whole}) > (start > 30)
        for one, other in zip(resumed, whole[start:], strict=True):
            assert replace(one, micro_batches=(), unlabelled=()) == replace(other, micro_batches=(), unlabelled=())
            assert alike(one.micro_batches, other.micro_batches) and alike(one.unlabelled, other.unlabelled)


@plans
def test_two_workers_together_have_what_one_has(make: Callable[[], Plan]) -> None:
    alone = islice(make().iterate(), 25)
    workers = [islice(make().iterate(0, rank, 2), 25) for rank in (0, 1)]
    for whole, *shares in zip(alone, *workers, strict=True):
        assert [(share.step, share.rank, share.world) for share in shares] == [(whole.step, r, 2) for r in (0, 1)]
        assert whole.unlabelled
        assert alike(interleaved([share.micro_batches for share in shares]), whole.micro_batches)
        assert alike(interleaved([share.unlabelled for share in shares]), whole.unlabelled)


# -------------------------------------------------------------------------------------------------- two orders of steps


def test_each_side_goes_its_own_way() -> None:
    plan = paired()
    assert (plan.encoded, plan.steps_per_epoch) == (LABELLED, plan.labelled.steps_per_epoch)
    count = 2 * plan.steps_per_epoch
    assert plan.unlabelled.steps_per_epoch != plan.steps_per_epoch
    sides = [islice(side.iterate(), count) for side in (plan.labelled, plan.unlabelled)]
    for found, labelled, unlabelled in zip(islice(plan.iterate(), count), *sides, strict=True):
        assert (found.step, found.epoch) == (labelled.step, labelled.epoch)
        assert alike(found.micro_batches, labelled.micro_batches)
        assert alike(found.unlabelled, unlabelled.micro_batches)


# ----------------------------------------------------------------------------------------------------------- neighbours


def wanted(step: StepBatch, rows_NK: np.ndarray, share: float) -> list[list[int]]:
    """Rows of the neighbours beside each micro-batch."""
    found = []
    for batch in step.micro_batches:
        taken = batch.sentence_ids_B.tolist()[: max(1, round(share * len(batch)))]
        found.append(sorted({int(rows_NK[row][step.epoch % K]) for row in taken}))
    return found


@pytest.mark.parametrize("share", [0.01, 0.4, 1.0])
def test_beside_sentences_stand_their_neighbours(share: float) -> None:
    plan, rows_NK = beside(share), neighbours()
    assert (plan.encoded, plan.steps_per_epoch) == (LABELLED, plan.labelled.steps_per_epoch)
    count = (K + 1) * plan.steps_per_epoch
    steps = list(islice(plan.iterate(), count))
    for step, labelled in zip(steps, islice(plan.labelled.iterate(), count), strict=True):
        assert alike(step.micro_batches, labelled.micro_batches)
        assert [batch.sentence_ids_B.tolist() for batch in step.unlabelled] == wanted(step, rows_NK, share)
        for batch in step.unlabelled:
            assert same(batch, collate(UNLABELLED, [row // 10 for row in batch.sentence_ids_B.tolist()]))
    assert {step.epoch for step in steps} == set(range(K + 1)), "every neighbour had its turn, the first one twice"


def test_none_stands_there_twice() -> None:
    everyone = np.full((600, K), 70)
    for step in islice(beside(1.0, everyone).iterate(), 5):
        assert [batch.sentence_ids_B.tolist() for batch in step.unlabelled] == [[70]] * len(step.micro_batches)


def test_a_neighbour_that_is_too_long_is_left_out() -> None:
    """Encoded are the rows 0, 10, 20 ...; the others were too long."""
    rows_NK = neighbours()
    short = np.arange(600) % 20 == 0
    rows_NK[~short] += 1
    kept = 0
    for step in islice(beside(1.0, rows_NK).iterate(), 20):
        expected = [[row for row in rows if row % 10 == 0] for rows in wanted(step, rows_NK, 1.0)]
        assert [batch.sentence_ids_B.tolist() for batch in step.unlabelled] == [rows for rows in expected if rows]
        kept += sum(map(len, expected))
    assert kept > 0


def test_a_step_none_of_whose_neighbours_is_left_has_no_unlabelled_part() -> None:
    step = next(beside(1.0, neighbours() + 1).iterate())
    assert step.micro_batches and step.unlabelled == ()


def test_neighbours_come_without_targets_of_their_own() -> None:
    sources = replace(UNLABELLED, target_ids=[np.zeros(0, dtype=np.int32)] * len(UNLABELLED))
    step = next(beside(sources=sources).iterate())
    assert all(batch.target_BT.shape == (len(batch), 0) for batch in step.unlabelled)
    assert all(batch.source.ids_BS.dtype == torch.int64 for batch in step.unlabelled)


def test_neighbours_are_cut_into_micro_batches_that_fit() -> None:
    whole, cut = (next(beside(1.0, most=most).iterate(3)).unlabelled for most in (100, 2))
    assert max(map(len, cut)) == 2 < max(map(len, whole))
    rows = [[row for batch in found for row in batch.sentence_ids_B.tolist()] for found in (whole, cut)]
    assert rows[0] == rows[1]
