"""The table of `energymt pool status` on a narrow terminal, and what a user is told to type."""

import io

import pytest
from rich.console import Console

from energymt.pool import naming, table

ROW = {
    "number": 12,
    "state": "restarting",
    "version": 1234,
    "served": 123456,
    "flagged": 0,
    "queued": 4096,
    "fill": 1.0,
}
TIMES = {"wait_p50": 0.25, "wait_p95": 1.25, "latency_p50": 0.5, "latency_p95": 2.5, "restarts": 3}


def test_the_table_fits_a_terminal_of_80_columns() -> None:
    status = {"name": "judge", "estimator": "kiwi", "version": 1234, "seconds": 3.0, "leases": [], "trouble": ""}
    out = io.StringIO()
    Console(file=out, width=80).print(table.render({**status, "replicas": [ROW | TIMES]}))
    shown = out.getvalue()
    assert "…" not in shown
    assert all(name in shown for name in table.COLUMNS)
    assert "12 restarting 1234 123456 0 4096 100 % 250/1250 500/2500 3" in " ".join(shown.split())


@pytest.mark.parametrize("pool, wanted", [("default", "`energymt pool down`"), ("a", "`energymt pool down --name a`")])
def test_the_name_of_a_pool_is_told_with_the_command(pool: str, wanted: str) -> None:
    assert naming.command("down", pool) == wanted
    assert naming.missing(pool, []).startswith(f"There is no energy pool {pool} in this Ray: start it by")
    assert "(up: b, c)" in naming.missing(pool, ["b", "c"])
