"""`lifecycle.up` for a pool that is up: it is the same, or it is refused, and it is never ended."""

from typing import Any

import pytest

from energymt.errors import ConfigurationError, EnergyUnavailable, ResourceError
from energymt.pool import lifecycle
from energymt.pool.settings import PoolConfig

CONFIG = PoolConfig(estimator="tests.faults.pool_estimators:braked", replicas=2)


class Standing:
    """A pool that is up: what its supervisor says, and whether it was ended."""

    def __init__(self) -> None:
        self.states, self.gave_up, self.ended = ["healthy", "healthy"], False, False

    def status(self, name: str) -> dict[str, Any]:
        rows = [{"number": number, "state": state} for number, state in enumerate(self.states)]
        settings = CONFIG.model_dump(mode="json")
        found = {"estimator": CONFIG.estimator, "settings": settings, "replicas": rows}
        return {**found, "gave_up": self.gave_up, "trouble": "no room" if self.gave_up else ""}

    def down(self, name: str) -> int:
        self.ended = True
        return 0


@pytest.fixture
def standing(monkeypatch: pytest.MonkeyPatch) -> Standing:
    found = Standing()
    monkeypatch.setattr(lifecycle.actors, "find", lambda name: found)
    monkeypatch.setattr(lifecycle, "status", found.status)
    monkeypatch.setattr(lifecycle, "down", found.down)
    return found


def test_the_same_settings_find_it_up(standing: Standing) -> None:
    assert len(lifecycle.up("default", CONFIG)["replicas"]) == 2
    standing.states = ["suspect", "healthy"]
    assert lifecycle.up("default", CONFIG)["replicas"][0]["state"] == "suspect"


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("estimator", "tests.faults.pool_estimators:trapped", "estimator is .*:braked and not .*:trapped"),
        ("learns", "head", "learns is None and not head"),
        ("precision", "bf16", "precision is fp32 and not bf16"),
        ("replicas", 1, "replicas is 2 and not 1"),
        ("replicas", 4, "replicas is 2 and not 4"),
    ],
)
def test_other_settings_are_refused(key: str, value: Any, words: str, standing: Standing) -> None:
    with pytest.raises(ConfigurationError, match=rf"default is up with other settings \({words}\): .*--name"):
        lifecycle.up("default", PoolConfig(**{**CONFIG.model_dump(), key: value}), wait=0.0)
    assert not standing.ended


@pytest.mark.parametrize("gave_up, reason", [(True, "no room"), (False, "too slow")])
def test_one_that_does_not_recover_stays(gave_up: bool, reason: str, standing: Standing) -> None:
    standing.states, standing.gave_up = ["healthy", "dead"], gave_up
    with pytest.raises(EnergyUnavailable, match=rf"up already and not all its replicas serve \({reason}\)"):
        lifecycle.up("default", CONFIG, wait=0.0)
    assert not standing.ended


def test_an_interrupted_command_ends_nothing_that_was_up(standing: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    standing.states = ["healthy", "restarting"]
    monkeypatch.setattr(lifecycle.time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lifecycle.up("default", CONFIG)
    assert not standing.ended


@pytest.mark.parametrize(("most", "said"), [(4, True), (3, False)])
def test_a_cluster_that_may_grow_is_no_obstacle(
    most: int, said: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the first replicas must find room; of more than there is room for a line tells."""
    monkeypatch.setattr(lifecycle.actors, "find", lambda name: None)
    monkeypatch.setattr(lifecycle.ray, "cluster_resources", lambda: {"CPU": 3.0})
    monkeypatch.setattr(lifecycle.ray, "available_resources", lambda: {"CPU": 3.0})

    def taken(*given: Any, **more: Any) -> Any:
        raise ResourceError("it took the room")

    monkeypatch.setattr(lifecycle.ray.util, "placement_group", taken)
    with pytest.raises(ResourceError, match="it took the room"):
        lifecycle.up("default", CONFIG.model_copy(update={"most_replicas": most}))
    assert ("most_replicas is 4, and the cluster has no room" in caplog.text) == said
    with pytest.raises(ResourceError, match=r"needs 4 CPUs \(4 replicas of 1 CPUs and 0 GPUs\), and the cluster has 3"):
        lifecycle.up("default", CONFIG.model_copy(update={"replicas": 4}))
