"""A client that many threads share."""

import threading
from collections.abc import Iterator

import pytest

from tests.pool.callers import (
    Pool,
    answers,
    caller,
    send,
)


@pytest.fixture
def many_switches() -> Iterator[None]:
    """Threads take turns as often as they can."""
    import sys

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_many_threads_share_a_client(many_switches: None) -> None:
    pool = Pool(answers(0.0), answers(0.0), answers(0.0))
    client, errors, found = caller(pool), [], []

    def work() -> None:
        try:
            for _ in range(30):
                tickets = [send(client, sentences) for sentences in (1, 2)]
                found.extend(ticket.result().id for ticket in tickets)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(found) == len(set(found)) == 6 * 30 * 2
    assert not client.in_flight()
