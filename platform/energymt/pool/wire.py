"""What travels between a caller and a replica: numpy arrays without padding, and nothing of the size of a vocabulary.

A request holds token ids where the translation is hard, and embeddings [N, D] where it is soft; a reply holds scores
[B] and, if asked for, their gradient [N, D], with N the real positions of the B sentences, one after the other.
bfloat16 travels as int16, since numpy does not know it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energymt.records import SoftTarget, Source

Array = NDArray[Any]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths, one after the other: values [N] or [N, D], and B lengths."""

    values: Array
    lengths: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True)
class Request:
    """Sentences to score; the same `id` again is the same question."""

    id: str
    client: str
    source: Ragged  # ids of the estimator's vocabulary, int32
    target: Ragged  # ids, int32, or embeddings
    gradient: bool  # wanted beside the scores
    precision: str  # of embeddings and gradient on the wire: a key of PRECISIONS
    version: int = 0  # of the energy, at least
    seconds: float = 60.0  # until the caller gives up, counted from arrival
    alone: bool = False  # one request is one batch, so that runs can be compared bit by bit

    def __len__(self) -> int:
        return len(self.source)

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Positions that each sentence takes, special tokens not counted."""
        return self.source.lengths + self.target.lengths

    def fault(self) -> str:
        """What does not add up, if anything: a replica takes in nothing that could fail the requests beside it."""
        if self.precision not in PRECISIONS:
            return f"its precision {self.precision} is none of {', '.join(PRECISIONS)}"
        for name, rows in (("source", self.source), ("translation", self.target)):
            if len(rows) != len(self) or (rows.lengths < 0).any() or rows.lengths.sum() != len(rows.values):
                return (
                    f"of its {len(self)} sentences it holds {len(rows)} {name} lengths, which sum to "
                    f"{rows.lengths.sum()}, and {len(rows.values)} positions"
                )
        return ""


@dataclass(frozen=True)
class Reply:
    """Scores, as the metric gives them (higher is better), and their gradient in the target's embeddings.

    A sentence that could not be scored stands in `flags` with the reason; its score is NaN and its gradient 0.
    """

    id: str
    replica: str
    version: int
    scores: Array  # [B]
    gradient: Array | None  # [N, D]
    flags: dict[int, str] = field(default_factory=dict)
    waited: float = 0.0  # seconds in the queue
    computed: float = 0.0  # seconds of the batch that it was part of


@dataclass(frozen=True)
class Refusal:
    """Why a replica did not answer, and when to ask again: nothing was computed.

    The reasons: "busy", the queue is full; "late", the deadline passed; "stale", its version is older than asked for;
    "draining", it leaves; "far", it does not see the caller's memory; "failed", the request as a whole raises an error
    there, which `detail` holds.
    """

    id: str
    replica: str
    reason: str
    version: int
    seconds: float = 0.0
    detail: str = ""


def pack(source: Source, target: SoftTarget, precision: str) -> tuple[Ragged, Ragged]:
    """Source ids and target (ids where it has them, else embeddings), real positions only.

    Where nothing is padded the arrays share the memory of the tensors: leave those as they are until the answer is in.
    """
    ids = _flat(source.ids_BS, source.mask_BS).to(torch.int32)
    if target.ids_BT is not None:
        values = _flat(target.ids_BT, target.mask_BT).to(torch.int32)
    else:
        values = _flat(target.emb_BTD.detach(), target.mask_BT).to(PRECISIONS[precision])
    return Ragged(to_numpy(ids), _lengths(source.mask_BS)), Ragged(to_numpy(values), _lengths(target.mask_BT))


def padded(rows: Ragged, precision: str = "fp32") -> tuple[Tensor, Tensor]:
    """Values [B, L] or [B, L, D], 0 on padding, and the mask [B, L] of real positions."""
    lengths_B = torch.from_numpy(rows.lengths.astype(np.int64))
    mask_BL = torch.arange(int(lengths_B.max()) if len(lengths_B) else 0) < lengths_B[:, None]
    values = from_numpy(rows.values, precision)
    values = values.long() if values.dtype == torch.int32 else values
    out = values.new_zeros((*mask_BL.shape, *values.shape[1:]))
    out[mask_BL] = values
    return out, mask_BL


def to_numpy(values: Tensor) -> Array:
    """On the host, without a copy where it is there already."""
    values = values.detach().cpu().contiguous()
    return (values.view(torch.int16) if values.dtype == torch.bfloat16 else values).numpy()


def from_numpy(values: Array, precision: str = "fp32") -> Tensor:
    """The tensor of an array that came over the wire; a copy of what cannot be written, as Ray hands it out."""
    tensor = torch.from_numpy(values if values.flags.writeable else np.array(values))
    return tensor.view(torch.bfloat16) if precision == "bf16" and tensor.dtype == torch.int16 else tensor


def _flat(values: Tensor, mask_BL: Tensor) -> Tensor:
    return values.flatten(0, 1) if bool(mask_BL.all()) else values[mask_BL]


def _lengths(mask_BL: Tensor) -> NDArray[np.int32]:
    lengths: NDArray[np.int32] = mask_BL.sum(1).to(torch.int32).cpu().numpy()
    return lengths
