"""The table of `energymt pool status`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = ("replica", "state", "version", "served", "sentences", "flagged", "refused", "queue", "fill %")
TIMES = ("wait p50", "p95 ms", "answer p50", "p95 ms", "restarts")


def render(status: dict[str, Any]) -> Table:
    """What `Supervisor.status` found."""
    leases = ", ".join(f"{lease['label']} ({lease['seconds']:.0f} s)" for lease in status["leases"]) or "none"
    trouble = f"\n{status['trouble']}" if status["trouble"] else ""
    table = Table(
        title=f"energy pool {status['name']}: {status['estimator']}, version {status['version']}",
        caption=f"up for {status['seconds']:.0f} s; callers: {leases}{trouble}",
        title_justify="left",
        caption_justify="left",
    )
    for name in (*COLUMNS, *TIMES):
        table.add_column(name, justify="left" if name == "state" else "right")
    for row in status["replicas"]:
        counts = [row.get(key, 0) for key in ("version", "served", "sentences", "flagged", "refused", "queued")]
        times = [1e3 * row[key] for key in ("wait_p50", "wait_p95", "latency_p50", "latency_p95")]
        table.add_row(
            str(row["number"]),
            row["state"],
            *map(str, counts),
            f"{100 * row.get('fill', 0.0):.0f}",
            *(f"{value:.1f}" for value in times),
            str(row["restarts"]),
        )
    return table


def show(status: dict[str, Any]) -> None:
    """Print it once."""
    Console().print(render(status))
