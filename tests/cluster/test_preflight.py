"""How many trials fit is arithmetic, and none is an error with the numbers."""

import pytest

from energymt.cluster.preflight import concurrent_trials
from energymt.errors import ResourceError


@pytest.mark.parametrize(
    "cluster, per_trial, pool, reserve, fits",
    [
        ({"CPU": 8}, {"CPU": 2}, {}, {}, 4),
        ({"CPU": 8}, {"CPU": 3}, {}, {}, 2),
        ({"CPU": 8, "GPU": 2}, {"CPU": 1, "GPU": 1}, {}, {}, 2),
        ({"CPU": 8, "GPU": 2}, {"CPU": 1, "GPU": 0.5}, {"GPU": 1}, {}, 2),
        ({"CPU": 8, "GPU": 2}, {"CPU": 1, "GPU": 0}, {"GPU": 2}, {"CPU": 1}, 7),
        ({"CPU": 1, "GPU": 0.3}, {"GPU": 0.1}, {}, {}, 3),  # 0.3 / 0.1 is a little less than 3
    ],
)
def test_trials_that_fit(cluster, per_trial, pool, reserve, fits) -> None:
    assert concurrent_trials(cluster, per_trial, pool=pool, reserve=reserve) == fits


def test_no_trial_fits_beside_the_pool() -> None:
    with pytest.raises(ResourceError, match=r"needs 2 GPU, and of 4 .* pool holds 3 and 0 .* 1 are left") as caught:
        concurrent_trials({"CPU": 64, "GPU": 4}, {"CPU": 1, "GPU": 2}, pool={"GPU": 3})
    assert caught.value.exit_code == 3


def test_a_resource_that_the_cluster_lacks() -> None:
    with pytest.raises(ResourceError, match="needs 1 GPU, and of 0 in the cluster"):
        concurrent_trials({"CPU": 2}, {"CPU": 1, "GPU": 1})


def test_a_trial_that_asks_for_nothing() -> None:
    with pytest.raises(ResourceError, match="at least one resource"):
        concurrent_trials({"CPU": 2}, {"CPU": 0})
