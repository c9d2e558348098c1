"""A pool in numbers: as metrics of Ray, which Prometheus reads, and as metrics of an MLflow run."""

from __future__ import annotations

from typing import Any

from energymt.pool.fleet import SERVING

WORDS = {
    "version": "Version of the energy that is served.",
    "serving": "Replicas that serve.",
    "restarts": "Replicas that were replaced since the supervisor started.",
    "callers": "Callers with a lease.",
    "requests": "Requests that the present replicas have answered.",
    "sentences": "Sentences that they have scored.",
    "flagged": "Of them, sentences that could not be scored.",
    "refused": "Requests that they have refused.",
    "queue": "Sentences that wait.",
    "fill": "Share of a batch's token budget that was used, mean over replicas.",
    "wait_p50_ms": "Median milliseconds in the queue, of the slowest replica.",
    "wait_p95_ms": "95th percentile of the same.",
    "answer_p50_ms": "Median milliseconds from arrival to answer, of the slowest replica.",
    "answer_p95_ms": "95th percentile of the same.",
}


def numbers(status: dict[str, Any]) -> dict[str, float]:
    """What `Supervisor.status` says, as one number for each of `WORDS`."""
    rows = status["replicas"]

    def total(key: str) -> float:
        return float(sum(row.get(key, 0) for row in rows))

    def slowest(key: str) -> float:
        return 1e3 * max((row.get(key, 0.0) for row in rows), default=0.0)

    return {
        "version": float(status["version"]),
        "serving": float(sum(row["state"] in SERVING for row in rows)),
        "restarts": total("restarts"),
        "callers": float(len(status["leases"])),
        "requests": total("served"),
        "sentences": total("sentences"),
        "flagged": total("flagged"),
        "refused": total("refused"),
        "queue": total("queued"),
        "fill": total("fill") / max(1, len(rows)),
        "wait_p50_ms": slowest("wait_p50"),
        "wait_p95_ms": slowest("wait_p95"),
        "answer_p50_ms": slowest("latency_p50"),
        "answer_p95_ms": slowest("latency_p95"),
    }


class Gauges:
    """The numbers of a pool as metrics of Ray, `energymt_pool_queue` and so on, tagged with the pool's name."""

    def __init__(self, pool: str) -> None:
        from ray.util.metrics import Gauge

        self.gauges = {
            name: Gauge(f"energymt_pool_{name}", description=text, tag_keys=("pool",)) for name, text in WORDS.items()
        }
        for gauge in self.gauges.values():
            gauge.set_default_tags({"pool": pool})

    def set(self, values: dict[str, float]) -> None:
        """Publish."""
        for name, value in values.items():
            self.gauges[name].set(value)
