"""Parts of a learning step on the wire: packed, shared out among replicas, put together again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from energymt.errors import StorageError
from energymt.models.learning import EstimatorLearner, LessonOptions
from energymt.pool.lessons import (
    LearnPart,
    combine,
    from_wire,
    gradient_to_wire,
    load_state,
    pack_lesson,
    save_state,
    share_out,
    to_wire,
    unpack_lesson,
)
from tests import estimators, lessons

CPU = torch.device("cpu")


def part(first: int, last: int, number: int = 0, parts: int = 1) -> LearnPart:
    lesson = lessons.lesson(estimators.estimator("kiwi"), first, last)
    return LearnPart("run", 0, number, parts, *pack_lesson(lesson), seconds=60.0)


def test_a_lesson_comes_back_as_it_was() -> None:
    lesson = lessons.lesson(estimators.estimator("kiwi"))
    [shard] = share_out([part(0, 5)], 1, 3)
    found = unpack_lesson(shard, CPU)
    assert shard.version == 3
    assert torch.equal(found.sizes_G, lesson.sizes_G) and torch.equal(found.log_probs_C, lesson.log_probs_C)
    assert torch.equal(found.mask_CT, lesson.mask_CT)
    assert torch.equal(found.ids_CT * found.mask_CT, lesson.ids_CT * lesson.mask_CT)
    assert torch.equal(found.source.mask_BS, lesson.source.mask_BS)


@pytest.mark.parametrize("replicas", [1, 2, 3, 8])
def test_shards_add_up_to_the_step_in_whatever_order_parts_came(replicas) -> None:
    learner = EstimatorLearner(estimators.estimator("kiwi"), "head")
    whole = learner.differentiate(lessons.lesson(learner.estimator), "binary")
    shards = share_out([part(2, 5, 1, 2), part(0, 2, 0, 2)], replicas, 0)
    assert 1 <= len(shards) <= replicas
    assert np.concatenate([shard.sizes for shard in shards]).tolist() == [len(group) for group in lessons.GROUPS]
    found = [gradient_to_wire(learner.differentiate(unpack_lesson(shard, CPU), shard.form)) for shard in shards]
    mean, metrics = combine(found)
    np.testing.assert_allclose(mean, whole.gradient_P.numpy() / whole.count, rtol=1e-4, atol=1e-6)
    assert metrics["loss"] == pytest.approx(whole.loss / whole.count)
    assert metrics["gold_score"] == pytest.approx(whole.totals["gold"][0] / 5)
    assert metrics["gradient_norm"] == pytest.approx(float(np.linalg.norm(mean)))


def test_shards_are_of_like_size() -> None:
    many = [part(0, 5, number, 8) for number in range(8)]
    positions = [
        sum(shard.target.lengths) + sum(np.repeat(shard.source.lengths, shard.sizes)) for shard in share_out(many, 4, 0)
    ]
    assert len(positions) == 4 and max(positions) < 1.3 * min(positions)


def test_a_step_without_sentences_has_no_shard() -> None:
    assert share_out([], 2, 0) == []


@pytest.mark.parametrize(
    "changes, fault",
    [
        ({"part": 2, "parts": 2}, "it is part 2 of 2"),
        ({"sizes": np.array([4, 0, 2], np.int32)}, "at least one candidate"),
        ({"log_probs": np.array([0.0], np.float32)}, "candidates, and it holds"),
    ],
)
def test_damaged_parts_say_what_is_wrong(changes, fault) -> None:
    good = part(0, 3)
    assert good.fault() == ""
    assert fault in replace(good, **changes).fault()


def test_a_state_survives_the_wire_and_the_disk(tmp_path: Path) -> None:
    learner = EstimatorLearner(estimators.estimator("kiwi"), "head")
    gradient = learner.differentiate(lessons.lesson(learner.estimator), "binary")
    learner.prepare(1, gradient.gradient_P, LessonOptions(), {"run": "r", "step": 4, "metrics": {"loss": 0.5}})
    learner.activate(1)
    save_state(to_wire(learner.state), tmp_path / "state")
    found = from_wire(load_state(tmp_path / "state"))
    assert (found.version, found.last) == (1, learner.state.last)
    assert torch.equal(found.weights_P, learner.state.weights_P)
    assert found.moments.keys() == learner.state.moments.keys()
    assert all(torch.equal(tensor, learner.state.moments[name]) for name, tensor in found.moments.items())

    file = tmp_path / "state" / "learner.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"learner\.safetensors"):
        load_state(tmp_path / "state")
