"""The MLflow writer: a thread that sends the records of one run, while training goes on.

An outage costs nothing but patience: records stay in the outbox of the run folder and are sent later, once each.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

from energymt.tracking.outbox import Outbox, Record, run_id_of
from energymt.tracking.store import OUTAGE, ensure_experiment, first_line, is_active, open_client

logger = logging.getLogger(__name__)

REFUSED = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE"}  # sending it again would not help
LIMITS = {"metrics": 800, "params": 90, "tags": 90}  # below what one log_batch request may hold
POLL_SECONDS = 2.0
LONGEST_PAUSE = 30.0
OUTAGE_SECONDS = 10.0  # how long the end of a run waits for a store that does not answer


class MlflowTracker:
    """A tracker whose records reach MLflow from a background thread; `parent` is a run id or another run folder."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        run_folder: Path,
        *,
        parent: str | Path | None = None,
        flush_seconds: float = 60.0,
    ):
        self.uri, self.experiment, self.run_name, self.parent = uri, experiment, run_name, parent
        self.outbox = Outbox(run_folder, uri)
        self._flush_seconds = flush_seconds
        self._trouble = ""
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._send_all, name=f"mlflow-{run_name}", daemon=True)
        self._thread.start()

    def params(self, values: dict[str, Any]) -> None:
        """Record settings; one that differs from an earlier start of this run becomes the tag `resumed.NAME`."""
        self._append("params", {name: str(value) for name, value in values.items()})

    def metrics(self, values: dict[str, float], step: int) -> None:
        """Record numbers at an optimizer step."""
        self._append("metrics", {name: float(value) for name, value in values.items()}, step)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or folder; it is read when it is sent, so it must stay."""
        self._append("artifact", {"path": str(path.absolute()), "folder": folder})

    def tags(self, values: dict[str, str]) -> None:
        """Record tags."""
        self._append("tags", {name: str(value) for name, value in values.items()})

    def end(self, status: str) -> None:
        """Record the end of the run; `close` waits for it to be sent."""
        self._append("status", {"status": status})

    def finish(self, status: str) -> str:
        """End the run and send what waits, for at most `flush_seconds`; says what is left and why, or ''."""
        self.end(status)
        return self.close(self._flush_seconds)

    def close(self, seconds: float) -> str:
        """Send what waits, for at most `seconds`; says what is left and why, or ''."""
        self.flush(seconds)
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout=1.0)
        self.outbox.close()
        if not len(self.outbox):
            return ""
        return (
            f"{len(self.outbox)} records of run '{self.run_name}' did not reach MLflow at {self.uri} "
            f"({self._trouble or 'too slow'}); they wait in {self.outbox.path}: start the run again to send them."
        )

    def flush(self, seconds: float) -> bool:
        """Wait until nothing waits to be sent: at most `seconds`, and not long when the store does not answer."""
        begin = time.monotonic()
        self._wake.set()
        while len(self.outbox) and self._thread.is_alive():
            waited = time.monotonic() - begin
            if waited > seconds or (self._trouble and waited > OUTAGE_SECONDS):
                break
            time.sleep(0.02)
        return not len(self.outbox)

    def _append(self, kind: str, values: dict[str, Any], step: int = 0) -> None:
        self.outbox.append(kind, values, step)
        if len(self.outbox) >= LIMITS["params"] or kind != "metrics":
            self._wake.set()

    # Everything below runs in the thread.

    def _send_all(self) -> None:
        pause = POLL_SECONDS
        client: MlflowClient | None = None
        while not self._stop.is_set():
            self._wake.wait(pause)
            self._wake.clear()
            try:
                while len(self.outbox) and not self._stop.is_set():
                    client = client or self._connect()
                    for group in _groups(self.outbox.unsent()):
                        self._send(client, group)
                        self.outbox.mark_sent(group[-1].sequence)
                if not len(self.outbox):
                    self._say_recovered()
                pause = POLL_SECONDS
            except OUTAGE as error:
                client = None
                pause = min(2 * pause, LONGEST_PAUSE)
                self._say_trouble(error)

    def _say_trouble(self, error: Exception) -> None:
        if not self._trouble:
            place = self.outbox.path
            logger.warning("MLflow at %s does not answer (%s): records wait in %s.", self.uri, first_line(error), place)
        self._trouble = first_line(error)

    def _say_recovered(self) -> None:
        if self._trouble:
            logger.warning("MLflow at %s answers again: all records are sent.", self.uri)
            self._trouble = ""

    def _connect(self) -> MlflowClient:
        """A client whose run exists and is marked as running."""
        client = open_client(self.uri)
        run_id = self.outbox.run_id
        if run_id is not None and not is_active(client, run_id):
            logger.warning("MLflow run %s is gone: '%s' goes on in a new one.", run_id, self.run_name)
            run_id = self._make_run(client)
            self.outbox.use_run(run_id, resend=True)
        elif run_id is None:
            run_id = self._make_run(client)
            self.outbox.use_run(run_id)
        client.update_run(run_id, status="RUNNING")
        return client

    def _make_run(self, client: MlflowClient) -> str:
        experiment_id = ensure_experiment(client, self.uri, self.experiment)
        tags = {"energymt.folder": str(self.outbox.folder.parent), "energymt.key": self.outbox.key}
        known = client.search_runs([experiment_id], f"tags.`energymt.key` = '{self.outbox.key}'", max_results=1)
        if known:
            return str(known[0].info.run_id)
        if self.parent is not None:
            parent = run_id_of(self.parent) if isinstance(self.parent, Path) else self.parent
            if parent is None:
                raise OSError(f"the parent run in {self.parent} is not known yet")
            tags["mlflow.parentRunId"] = parent
        return str(client.create_run(experiment_id, run_name=self.run_name, tags=tags).info.run_id)

    def _send(self, client: MlflowClient, group: list[Record]) -> None:
        try:
            self._send_group(client, group)
        except mlflow.MlflowException as error:
            if error.error_code not in REFUSED:
                raise
            if len(group) > 1:
                for record in group:
                    self._send(client, [record])
            else:
                logger.warning("MLflow refuses record %d of '%s': %s", group[0].sequence, self.run_name, error)

    def _send_group(self, client: MlflowClient, group: list[Record]) -> None:
        run_id, first = str(self.outbox.run_id), group[0]
        if first.kind == "artifact":
            path = Path(first.values["path"])
            if not path.exists():
                logger.warning("%s is gone and could not be sent to MLflow.", path)
            elif path.is_dir():
                client.log_artifacts(run_id, str(path), first.values["folder"] or path.name)
            else:
                client.log_artifact(run_id, str(path), first.values["folder"] or None)
        elif first.kind == "status":
            client.set_terminated(run_id, first.values["status"], end_time=first.time)
        elif first.kind == "metrics":
            metrics = [Metric(name, value, r.time, r.step) for r in group for name, value in r.values.items()]
            client.log_batch(run_id, metrics=metrics, synchronous=True)
        elif first.kind == "params":
            self._send_params(client, run_id, {name: value for r in group for name, value in r.values.items()})
        else:
            tags = {name: value for r in group for name, value in r.values.items()}
            client.log_batch(run_id, tags=[RunTag(*item) for item in tags.items()], synchronous=True)

    def _send_params(self, client: MlflowClient, run_id: str, values: dict[str, str]) -> None:
        known = client.get_run(run_id).data.params
        params = [Param(*item) for item in values.items() if item[0] not in known]
        changed = {name: value for name, value in values.items() if name in known and known[name] != value[:6000]}
        tags = [RunTag(f"resumed.{name}", value) for name, value in changed.items()]
        client.log_batch(run_id, params=params, tags=tags, synchronous=True)


def _groups(records: list[Record]) -> Iterator[list[Record]]:
    """Neighbours of one kind, as many as fit into one request; artifacts and ends alone."""
    group: list[Record] = []
    size = 0
    for record in records:
        limit = LIMITS.get(record.kind, 0)
        if group and (record.kind != group[0].kind or size + len(record.values) > limit):
            yield group
            group, size = [], 0
        group.append(record)
        size += len(record.values)
    if group:
        yield group
