"""The records of a run on the local disk: written at once, sent later, each sent once.

`outbox.jsonl` only grows; `state.json` says which MLflow run it belongs to and up to which sequence number it was sent.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import uuid
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from energymt.errors import StorageError
from energymt.storage import write_atomically

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One thing a run says: `kind` is params, metrics, tags, artifact or status."""

    sequence: int  # counts from 1 within a run
    kind: str
    step: int  # optimizer step
    time: int  # milliseconds since 1970
    values: dict[str, Any]


class Outbox:
    """The records of one run folder. `append` may be called from one thread while another sends."""

    def __init__(self, run_folder: Path, uri: str):
        self.folder = run_folder.absolute() / "tracking"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / "outbox.jsonl"
        self._lock = threading.Lock()
        self._last_step: dict[str, int] = {}
        self._said: dict[str, Any] = {}  # parameters and tags as last recorded
        self._state = self._read_state(uri)
        records = self._read_records()
        self._sequence = records[-1].sequence if records else 0
        for record in records:
            self._remember(record)
        self._pending = deque(record for record in records if record.sequence > self._state["sent"])
        self._file = self.path.open("a", encoding="utf-8")

    # What the sender needs to know of the MLflow run.

    @property
    def key(self) -> str:
        """Names this run folder in the store, so that a run made just before a crash is found again."""
        return str(self._state["key"])

    @property
    def run_id(self) -> str | None:
        """The MLflow run that this folder goes on in."""
        value = self._state["run_id"]
        return None if value is None else str(value)

    def use_run(self, run_id: str, *, resend: bool = False) -> None:
        """Tie the folder to an MLflow run; `resend` puts every record in line again (the old run is gone)."""
        with self._lock:
            self._state |= {"run_id": run_id} | ({"sent": 0} if resend else {})
            if resend:
                self._pending = deque(self._read_records())
        self._write_state()

    def append(self, kind: str, values: dict[str, Any], step: int = 0) -> None:
        """Record values; a metric at a step that was recorded before is dropped (a resumed run repeats steps)."""
        with self._lock:
            fresh = self._fresh(kind, values, step)
            if not fresh:
                return
            self._sequence += 1
            record = Record(self._sequence, kind, step, int(time.time() * 1000), fresh)
            self._remember(record)
            self._pending.append(record)
            try:
                self._file.write(json.dumps(asdict(record), default=str) + "\n")
                self._file.flush()
            except OSError as error:
                logger.warning("%s cannot be written (%s): records wait in memory only.", self.path, error)

    def unsent(self, limit: int = 400) -> list[Record]:
        """The oldest records that were not sent."""
        with self._lock:
            return [self._pending[index] for index in range(min(limit, len(self._pending)))]

    def __len__(self) -> int:
        """How many records wait."""
        return len(self._pending)

    def mark_sent(self, sequence: int) -> None:
        """All records up to this sequence number have arrived."""
        with self._lock:
            while self._pending and self._pending[0].sequence <= sequence:
                self._pending.popleft()
            self._state["sent"] = max(self._state["sent"], sequence)
        self._write_state()

    def close(self) -> None:
        """Close the file; waiting records stay on disk."""
        with self._lock:
            self._file.close()

    def _fresh(self, kind: str, values: dict[str, Any], step: int) -> dict[str, Any]:
        if kind == "metrics":
            return {name: value for name, value in values.items() if step > self._last_step.get(name, -1)}
        if kind in ("params", "tags"):
            return {name: value for name, value in values.items() if self._said.get(f"{kind}.{name}") != str(value)}
        return values

    def _remember(self, record: Record) -> None:
        if record.kind == "metrics":
            self._last_step |= dict.fromkeys(record.values, record.step)
        if record.kind in ("params", "tags"):
            self._said |= {f"{record.kind}.{name}": str(value) for name, value in record.values.items()}

    def _read_records(self) -> list[Record]:
        """All whole lines; a line that a killed writer left unfinished is cut off."""
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)
        records = []
        for number, line in enumerate(content[:whole].decode("utf-8", errors="replace").splitlines(), start=1):
            try:
                records.append(Record(**json.loads(line)))
            except (ValueError, TypeError):
                logger.warning("%s:%d is damaged and left out.", self.path, number)
        return records

    def _read_state(self, uri: str) -> dict[str, Any]:
        fresh = {"uri": uri, "key": uuid.uuid4().hex, "run_id": None, "sent": 0}
        path = self.folder / "state.json"
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            known = {}
        # Another store knows nothing of this run yet: it gets a run of its own and every record.
        state = known if known.get("uri") == uri and fresh.keys() <= known.keys() else fresh
        write_atomically(path, json.dumps(state))
        return dict(state)

    def _write_state(self) -> None:
        try:
            write_atomically(self.folder / "state.json", json.dumps(self._state))
        except StorageError as error:
            logger.warning("%s", error)


def run_id_of(run_folder: Path) -> str | None:
    """The MLflow run that a run folder is tied to, once it was made."""
    path = run_folder.absolute() / "tracking" / "state.json"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))["run_id"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return None if value is None else str(value)
