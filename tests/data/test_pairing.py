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


ONE_EACH = encoded(random_lengths(60 * K, 12))
OWN = np.stack([10 * K * (np.arange(600) // 10) + 10 * k for k in range(K)], 1)  # nobody shares a neighbour of these


def beside_own(share: float) -> NeighbourPlan:
    return beside(share, OWN, ONE_EACH)


def found(step: StepBatch) -> list[int]:
    """Rows of all sources beside a step."""
    return [row for batch in step.unlabelled for row in batch.sentence_ids_B.tolist()]


def owned(step: StepBatch, rows_NK: np.ndarray) -> set[int]:
    """The neighbours of all sentences of a step, those of its epoch."""
    return {int(rows_NK[row, step.epoch % K]) for batch in step.micro_batches for row in batch.sentence_ids_B.tolist()}


@pytest.mark.parametrize("share", [0.01, 0.4, 1.0])
def test_beside_sentences_stand_their_neighbours(share: float) -> None:
    plan = beside_own(share)
    assert (plan.encoded, plan.steps_per_epoch) == (LABELLED, plan.labelled.steps_per_epoch)
    count = (K + 1) * plan.steps_per_epoch
    steps = list(islice(plan.iterate(), count))
    for step, labelled in zip(steps, islice(plan.labelled.iterate(), count), strict=True):
        assert alike(step.micro_batches, labelled.micro_batches)
        assert len(found(step)) == max(1, round(share * sum(map(len, step.micro_batches))))
        assert set(found(step)) <= owned(step, OWN)
        for batch in step.unlabelled:
            assert same(batch, collate(ONE_EACH, [row // 10 for row in batch.sentence_ids_B.tolist()]))
    assert {step.epoch for step in steps} == set(range(K + 1)), "every neighbour had its turn, the first one twice"


def test_long_sentences_are_drawn_as_often_as_short_ones() -> None:
    plan = beside_own(0.3)
    steps = list(islice(plan.iterate(), 40 * plan.steps_per_epoch))
    often = np.bincount([row // 10 // K for step in steps for row in found(step)], minlength=60)
    order = np.argsort([len(ids) for ids in LABELLED.source_ids])
    short, long = often[order[:30]].sum(), often[order[30:]].sum()
    assert often.min() > 0 and 0.8 < long / short < 1.25


def test_the_draw_does_not_depend_on_how_a_step_is_cut() -> None:
    class Halves(StepPlan):
        def epoch(self, number: int) -> list[list[list[int]]]:
            return [
                [half for micro in step for half in (micro[1::2], micro[::2]) if half] for step in super().epoch(number)
            ]

    other = beside_own(SHARE)
    other.labelled = Halves(LABELLED, 100, 50, seed=2)
    for whole, cut in zip(islice(beside_own(SHARE).iterate(), 20), other.iterate(), strict=False):
        assert len(cut.micro_batches) > len(whole.micro_batches)
        assert found(cut) == found(whole)


def test_another_seed_and_another_step_draw_others() -> None:
    one, other = beside_own(SHARE), beside_own(SHARE)
    other.labelled.seed = 3
    first = next(one.iterate())
    drawn = [one._beside(replace(first, step=step)) for step in range(5)] + [other._beside(first)]
    assert len({tuple(places) for places in drawn}) == 6


def test_none_stands_there_twice_in_a_step() -> None:
    everyone = np.full((600, K), 70)
    for step in islice(beside(1.0, everyone).iterate(), 5):
        assert len(step.micro_batches) > 1 and found(step) == [70]
    for step in islice(beside(1.0).iterate(), 20):
        assert sorted(found(step)) == sorted(owned(step, neighbours()))


def test_a_neighbour_that_is_too_long_is_left_out() -> None:
    """Encoded are the rows 0, 10, 20 ...; the others were too long."""
    rows_NK = neighbours()
    short = np.arange(600) % 20 == 0
    rows_NK[~short] += 1
    kept = 0
    for step in islice(beside(1.0, rows_NK).iterate(), 20):
        assert sorted(found(step)) == sorted(row for row in owned(step, rows_NK) if row % 10 == 0)
        kept += len(found(step))
    assert kept > 0


def test_neighbours_of_like_length_stand_together() -> None:
    for step in islice(beside(1.0, most=2).iterate(), 10):
        lengths = [length for batch in step.unlabelled for length in batch.source.mask_BS.sum(1).tolist()]
        assert lengths == sorted(lengths)


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
