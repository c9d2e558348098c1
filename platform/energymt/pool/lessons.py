"""What travels when a pool learns: parts of a step from trainers, gradients from replicas, states between copies."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray

from energymt.energies.contrastive import Form
from energymt.errors import StorageError
from energymt.folders import atomic_folder, verify_manifest, write_manifest
from energymt.models.learning import LearnerState, Lesson, LessonGradient, LessonOptions
from energymt.pool.wire import Array, Ragged, padded, to_numpy
from energymt.records import Source

STATE_FILE, LAST_FILE = "learner.safetensors", "learner.json"


@dataclass(frozen=True)
class LearnPart:
    """What one of the trainers of a run gives to a step; the same (run, step, part) again is the same part."""

    run: str
    step: int
    """Of the run, from 0; each step is taken once."""
    part: int
    parts: int
    """How many make up the step."""
    source: Ragged  # G sentences
    target: Ragged  # C candidates, the gold first in each group
    sizes: NDArray[np.int32]  # [G]
    log_probs: NDArray[np.float32]  # [C]
    seconds: float
    """Until the step is given up."""
    options: LessonOptions = field(default_factory=LessonOptions)

    @property
    def key(self) -> tuple[str, int]:
        """Of the step."""
        return self.run, self.step

    def fault(self) -> str:
        """What does not add up, if anything; `Lesson.fault` says what is in it that cannot be learnt."""
        candidates = int(self.sizes.sum())
        if not 0 <= self.part < self.parts:
            return f"it is part {self.part} of {self.parts}"
        if len(self.source) != len(self.sizes) or (self.sizes < 1).any():
            return f"it has {len(self.source)} sources and {len(self.sizes)} groups of at least one candidate"
        if len(self.target) != candidates or len(self.log_probs) != candidates:
            return f"its groups have {candidates} candidates, and it holds {len(self.target)}"
        return ""


@dataclass(frozen=True)
class LearnReply:
    """A step that was taken."""

    run: str
    step: int
    version: int
    """Of the energy from now on: ask for this one."""
    metrics: dict[str, float]


@dataclass(frozen=True)
class LearnRefusal:
    """Why a step was not taken; the weights are as they were.

    The reasons: "late", its parts or replicas did not come in time; "unavailable", no replica; "leased", another run
    learns in this pool; "past", a later step was taken; "failed", it raised, as `detail` says.
    """

    reason: str
    detail: str


@dataclass(frozen=True)
class Shard:
    """What one replica differentiates."""

    version: int
    source: Ragged
    target: Ragged
    sizes: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    form: Form


@dataclass(frozen=True)
class ShardGradient:
    """What comes of it: sums."""

    gradient: Array  # [P] float32
    loss: float
    count: int
    totals: dict[str, tuple[float, int]]


@dataclass(frozen=True)
class WireState:
    """A `LearnerState` in numpy arrays."""

    version: int
    arrays: dict[str, Array]
    last: dict[str, Any]


def pack_lesson(lesson: Lesson) -> tuple[Ragged, Ragged, NDArray[np.int32], NDArray[np.float32]]:
    """Sources, targets, sizes and log-probabilities of a lesson, without padding."""
    source, target = lesson.source, lesson.ids_CT
    return (
        Ragged(to_numpy(source.ids_BS[source.mask_BS].to(torch.int32)), to_numpy(source.mask_BS.sum(1).int())),
        Ragged(to_numpy(target[lesson.mask_CT].to(torch.int32)), to_numpy(lesson.mask_CT.sum(1).int())),
        to_numpy(lesson.sizes_G.int()),
        to_numpy(lesson.log_probs_C.float()),
    )


def unpack_lesson(shard: Shard, device: torch.device) -> Lesson:
    """The lesson of a shard."""
    ids_CT, mask_CT = padded(shard.target)
    return Lesson(
        Source(*padded(shard.source)).to(device),
        ids_CT.to(device),
        mask_CT.to(device),
        torch.from_numpy(shard.sizes.astype(np.int64)).to(device),
        torch.from_numpy(np.array(shard.log_probs)).to(device),
    )


def share_out(parts: Sequence[LearnPart], replicas: int, version: int) -> list[Shard]:
    """The groups of a step in at most `replicas` shards of like size, in the order of parts and groups."""
    groups = [(part, group) for part in sorted(parts, key=lambda part: part.part) for group in range(len(part.sizes))]
    cut = {id(part): _rows(part) for part in parts}
    weights = np.array([cut[id(part)][group].weight for part, group in groups], dtype=np.float64)
    if not len(weights):
        return []
    middles = (np.cumsum(weights) - weights / 2) / weights.sum()
    places = np.minimum((middles * replicas).astype(int), replicas - 1)
    form = parts[0].options.form
    shards = []
    for place in sorted(set(places.tolist())):
        rows = [cut[id(part)][group] for (part, group), at in zip(groups, places, strict=True) if at == place]
        shards.append(
            Shard(
                version,
                _ragged([row.source for row in rows]),
                _ragged([text for row in rows for text in row.targets]),
                np.array([len(row.targets) for row in rows], dtype=np.int32),
                np.concatenate([row.log_probs for row in rows]).astype(np.float32),
                form,
            )
        )
    return shards


def combine(gradients: Sequence[ShardGradient]) -> tuple[NDArray[np.float32], dict[str, float]]:
    """The mean gradient, and what to log: loss, mean scores of gold and samples, their margin, gradient norm."""
    count = sum(item.count for item in gradients)
    mean = np.sum([item.gradient for item in gradients], axis=0, dtype=np.float32) / np.float32(max(1, count))
    metrics = {"loss": sum(item.loss for item in gradients) / max(1, count)}
    for name in ("gold", "sample"):
        total, number = (sum(item.totals[name][place] for item in gradients) for place in (0, 1))
        if number:
            metrics[f"{name}_score"] = total / number
    if "sample_score" in metrics:
        metrics["margin"] = metrics["gold_score"] - metrics["sample_score"]
    metrics["gradient_norm"] = float(np.linalg.norm(mean))
    return mean, metrics


def to_wire(state: LearnerState) -> WireState:
    """A state as it travels."""
    tensors = {"weights_P": state.weights_P, **{f"moments.{name}": part for name, part in state.moments.items()}}
    return WireState(state.version, {name: to_numpy(tensor) for name, tensor in tensors.items()}, dict(state.last))


def from_wire(state: WireState) -> LearnerState:
    """A state that came."""
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.arrays.items()}
    moments = {name.removeprefix("moments."): part for name, part in tensors.items() if name.startswith("moments.")}
    return LearnerState(state.version, tensors["weights_P"], moments, dict(state.last))


def gradient_to_wire(found: LessonGradient) -> ShardGradient:
    """A gradient as it travels."""
    return ShardGradient(to_numpy(found.gradient_P), found.loss, found.count, found.totals)


def save_state(state: WireState, folder: Path) -> None:
    """Write a state beside the checkpoint of a run."""
    with atomic_folder(folder) as part:
        safetensors.numpy.save_file(
            {name: np.asarray(a, order="C") for name, a in state.arrays.items()}, part / STATE_FILE
        )
        (part / LAST_FILE).write_text(json.dumps({"version": state.version, "last": state.last}), encoding="utf-8")
        write_manifest(part, {"version": state.version})


def load_state(folder: Path) -> WireState:
    """Read what `save_state` wrote.

    Raises:
        StorageError: nothing whole is there.
    """
    verify_manifest(folder)
    try:
        facts = json.loads((folder / LAST_FILE).read_text(encoding="utf-8"))
        return WireState(facts["version"], safetensors.numpy.load_file(folder / STATE_FILE), facts["last"])
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"{folder} holds no state of a learner ({error!r}); take an earlier checkpoint.") from None


@dataclass(frozen=True)
class _Group:
    source: Array
    targets: list[Array]
    log_probs: Array

    @property
    def weight(self) -> int:
        """Positions of all its candidates."""
        return sum(len(self.source) + len(target) for target in self.targets)


def _rows(part: LearnPart) -> list[_Group]:
    sources = _split(part.source.values, part.source.lengths)
    targets = _split(part.target.values, part.target.lengths)
    ends = np.cumsum(part.sizes)
    starts = ends - part.sizes
    return [
        _Group(source, targets[start:end], part.log_probs[start:end])
        for source, start, end in zip(sources, starts.tolist(), ends.tolist(), strict=True)
    ]


def _split(values: Array, lengths: NDArray[np.int32]) -> list[Array]:
    return np.split(values, np.cumsum(lengths)[:-1]) if len(lengths) else []


def _ragged(rows: Sequence[Array]) -> Ragged:
    return Ragged(np.concatenate(rows), np.array([len(row) for row in rows], dtype=np.int32))
