"""The table of `energymt pool status`."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = ("#", "state", "version", "requests", "flagged", "queue", "fill", "wait ms", "answer ms", "restarts")


def render(status: dict[str, Any]) -> Table:
    """What `Supervisor.status` found; times are medians and 95th percentiles of the last requests."""
    leases = ", ".join(f"{lease['label']} ({lease['seconds']:.0f} s)" for lease in status["leases"]) or "none"
    trouble = f"\n{status['trouble']}" if status["trouble"] else ""
    table = Table(
        title=f"energy pool {status['name']}: {status['estimator']}, version {status['version']}",
        caption=f"up for {status['seconds']:.0f} s; callers: {leases}{trouble}",
        title_justify="left",
        caption_justify="left",
        box=None,
        padding=(0, 1, 0, 0),
    )
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    for row in status["replicas"]:
        counts = [row.get(key, 0) for key in ("version", "served", "flagged", "queued")]
        table.add_row(
            str(row["number"]),
            row["state"],
            *map(str, counts),
            f"{100 * row.get('fill', 0.0):.0f} %",
            f"{1e3 * row['wait_p50']:.0f}/{1e3 * row['wait_p95']:.0f}",
            f"{1e3 * row['latency_p50']:.0f}/{1e3 * row['latency_p95']:.0f}",
            str(row["restarts"]),
        )
    return table


def show(status: dict[str, Any]) -> None:
    """Print it once."""
    Console().print(render(status))
