"""The learning rate of each step of a run."""

import pytest

from energymt.configuration import OptimizerConfig
from energymt.optimisation import learning_rate


def rates(schedule: str, warmup: int, steps: int) -> list[float]:
    config = OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=warmup)
    return [learning_rate(config, step, steps) for step in range(steps)]


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "constant", "linear"])
def test_the_rate_rises_linearly_to_its_peak(schedule: str) -> None:
    found = rates(schedule, 4, 20)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert max(found) == 1.0
    assert all(rate > 0 for rate in found)


def test_after_the_warm_up() -> None:
    assert rates("constant", 4, 10)[4:] == [1.0] * 6
    assert rates("inverse_sqrt", 4, 100)[15] == pytest.approx(0.5)  # step 16 of 4: √(4/16)
    assert rates("inverse_sqrt", 4, 100)[63] == pytest.approx(0.25)
    assert rates("linear", 4, 8)[4:] == pytest.approx([1.0, 0.75, 0.5, 0.25])


@pytest.mark.parametrize("schedule", ["inverse_sqrt", "constant", "linear"])
def test_without_warm_up_the_first_step_has_the_peak(schedule: str) -> None:
    found = rates(schedule, 0, 9)
    assert found[0] == 1.0
    assert found == sorted(found, reverse=True)


def test_a_run_shorter_than_its_warm_up_still_learns() -> None:
    assert rates("linear", 10, 3) == pytest.approx([0.1, 0.2, 0.3])
