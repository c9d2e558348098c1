"""Text that a pool scores has the scores that it has here."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence

import pytest

from energymt.errors import DataError
from energymt.models.estimator import QualityEstimator
from energymt.models.scoring import score_lines
from energymt.pool import estimator as pooled_estimator
from energymt.pool.client import Client
from energymt.pool.estimator import LINES, PooledEstimator
from energymt.pool.server import Server
from tests import estimators
from tests.pool.pools import Threads, replica

SOURCES = [*estimators.SOURCES, estimators.LONG, "", "ein Buch .", "ein <pad> Buch ."]
TRANSLATIONS = [*estimators.TRANSLATIONS, "a book .", "a book .", estimators.LONG, "a <pad> book ."]
Starter = Callable[[QualityEstimator, int], PooledEstimator]


@pytest.fixture
def pooled() -> Iterator[Starter]:
    """A client of replicas that run until the test ends."""
    running: list[Threads] = []

    def begin(model: QualityEstimator, replicas: int = 1) -> PooledEstimator:
        running.append(Threads([replica(Server(model, f"replica-{n}"), n) for n in range(replicas)]))
        return PooledEstimator(Client(running[-1], deadline=120.0), model.table_VD, model.vocabulary)

    yield begin
    for threads in running:
        threads.close()


@pytest.mark.parametrize("kind", estimators.ENERGIES)
def test_pooled_scores_are_local_ones(kind: str, pooled: Starter) -> None:
    model = estimators.estimator(kind)
    wanted = score_lines(model, SOURCES, TRANSLATIONS)
    assert max(wanted) - min(wanted) > 0.05
    assert pooled(model, 1).score_lines(SOURCES, TRANSLATIONS) == pytest.approx(wanted, abs=1e-5)


def test_many_lines_come_back_in_their_order(pooled: Starter, monkeypatch: pytest.MonkeyPatch) -> None:
    """More requests than are in flight at once, on several replicas; none asks for a gradient."""
    monkeypatch.setattr(pooled_estimator, "IN_FLIGHT", 3)
    count = 7 * LINES + 3
    sources = [SOURCES[i % len(SOURCES)] for i in range(count)]
    texts = [TRANSLATIONS[i * 7 % len(TRANSLATIONS)] for i in range(count)]
    model = estimators.estimator("kiwi")
    client = pooled(model, 2)
    assert client.score_lines(sources, texts) == pytest.approx(score_lines(model, sources, texts), abs=1e-5)
    sent = client.client.transport.sent
    assert [len(request.source) for _, request in sent] == [LINES] * 7 + [3]
    assert not any(request.gradient for _, request in sent)
    assert {number for number, _ in sent} == {0, 1}


@pytest.mark.parametrize("sources, texts", [([], []), ([""], [""]), (["", ""], ["", ""])])
def test_nothing_to_read(sources: Sequence[str], texts: Sequence[str], pooled: Starter) -> None:
    model = estimators.estimator("kiwi")
    wanted = score_lines(model, sources, texts) if sources else []
    assert pooled(model, 1).score_lines(sources, texts) == pytest.approx(wanted, abs=1e-5)


def test_lines_that_are_not_aligned(pooled: Starter) -> None:
    with pytest.raises(DataError, match="There are 2 sources and 1 translations: align them"):
        pooled(estimators.estimator("kiwi"), 1).score_lines(["a", "b"], ["a"])


def test_a_line_that_cannot_be_scored_is_nan(pooled: Starter, caplog: pytest.LogCaptureFixture) -> None:
    model = estimators.estimator("kiwi")
    words = model.vocabulary
    broken = set(words.encode("Wiese")) - {
        token for text in ("ein Buch .", "a book .", "a dog") for token in words.encode(text)
    }
    model.encoder.get_input_embeddings().weight.data[sorted(broken)] = math.nan
    with caplog.at_level(logging.WARNING):
        found = pooled(model, 1).score_lines(["ein Buch .", "Wiese"], ["a book .", "a dog"])
    assert math.isfinite(found[0]) and math.isnan(found[1])
    assert "could not score sentence" in caplog.text
