"""A pooled estimator: to an energy it looks like one in this process.

The replica gives the gradient together with the score, so the backward pass here is one multiplication; and what the
caller does between `submit` and `result` overlaps with the replica's work.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from energymt.data.batching import pad
from energymt.data.vocabulary import Vocabulary
from energymt.errors import DataError
from energymt.pool.client import Client, Ticket
from energymt.pool.wire import PRECISIONS, Reply, from_numpy, pack
from energymt.records import SoftTarget, Source

if TYPE_CHECKING:
    from energymt.pool.connection import Connection

LINES, IN_FLIGHT = 16, 8  # texts of a request; requests at once

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoreTicket:
    """Scores on their way."""

    ticket: Ticket
    target: SoftTarget
    precision: str

    def reply(self) -> Reply:
        """The whole answer: version, flags, times. Raises what `Ticket.result` raises."""
        return self.ticket.result()

    def result(self) -> Tensor:
        """score_B, higher is better, differentiable once in the target's embeddings.

        A sentence that could not be scored has NaN, its gradient is 0, and the log says why.
        """
        emb_BTD, mask_BT, reply = self.target.emb_BTD, self.target.mask_BT, self.reply()
        for row, reason in reply.flags.items():
            logger.warning("The energy pool could not score sentence %d of %d: %s.", row, len(reply.scores), reason)
        score_B = torch.from_numpy(reply.scores.copy()).to(emb_BTD.device)
        if reply.gradient is None:
            return score_B
        gradient_ND = from_numpy(reply.gradient, self.precision).to(emb_BTD.device, emb_BTD.dtype)
        found: Tensor = _Scores.apply(emb_BTD, mask_BT, score_B, gradient_ND)  # type: ignore[no-untyped-call]
        return found


class PooledEstimator:
    """An `Estimator` whose work is done in a pool.

    Args:
        client: to the pool.
        table_VD: the estimator's frozen token embeddings, for whoever mixes them.
        vocabulary: the estimator's.
        precision: of embeddings and gradients on the wire: fp32, bf16 (half the bytes), or fp64.
        version: of the energy that answers must have, at least; a learner raises it.
        connection: that `close` gives back.
        longest_text: most tokens of a text, beyond which the replicas cut it; infinite where that is not known.
    """

    differentiable = True

    def __init__(
        self,
        client: Client,
        table_VD: Tensor,
        vocabulary: Vocabulary,
        precision: str = "fp32",
        version: int = 0,
        connection: Connection | None = None,
        longest_text: float = math.inf,
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision {precision!r} is none of {', '.join(PRECISIONS)}")
        self.client, self.table_VD, self.vocabulary = client, table_VD, vocabulary
        self.precision, self.version, self.connection = precision, version, connection
        self.longest_text = longest_text

    def submit(self, source: Source, target: SoftTarget) -> ScoreTicket:
        """Send sentences; `ticket.result()` gives their scores. Several tickets may be in flight."""
        gradient = target.emb_BTD.requires_grad and torch.is_grad_enabled()
        sent = pack(source, target, self.precision)
        ticket = self.client.submit(*sent, gradient=gradient, precision=self.precision, version=self.version)
        return ScoreTicket(ticket, target, self.precision)

    def __call__(self, source: Source, target: SoftTarget) -> Tensor:
        """score_B, higher is better; raises EnergyTimeout, EnergyUnavailable or EnergyVersionError."""
        if len(source.ids_BS) == 0:
            return target.emb_BTD.sum((1, 2))
        return self.submit(source, target).result()

    def score_lines(self, sources: Sequence[str], translations: Sequence[str]) -> list[float]:
        """Scores of text, as `models.scoring.score_lines` gives them; many requests are in flight at once.

        Raises:
            DataError: numbers of lines that differ.
            EnergyTimeout, EnergyUnavailable, EnergyVersionError: see there.
        """
        if len(sources) != len(translations):
            raise DataError(f"There are {len(sources):,} sources and {len(translations):,} translations: align them.")
        order = sorted(range(len(sources)), key=lambda row: len(sources[row]) + len(translations[row]))
        scores = [math.nan] * len(sources)
        sent: deque[tuple[list[int], ScoreTicket]] = deque()

        def take() -> None:
            rows, ticket = sent.popleft()
            for row, score in zip(rows, ticket.result().tolist(), strict=True):
                scores[row] = score

        for first in range(0, len(order), LINES):
            if len(sent) == IN_FLIGHT:  # the deadline of a request runs from when it is sent
                take()
            rows = order[first : first + LINES]
            sent.append((rows, self._submit_text([sources[r] for r in rows], [translations[r] for r in rows])))
        while sent:
            take()
        return scores

    def _submit_text(self, sources: Sequence[str], translations: Sequence[str]) -> ScoreTicket:
        ids_BS, mask_BS = self._split(sources)
        ids_BT, mask_BT = self._split(translations)
        return self.submit(Source(ids_BS, mask_BS), SoftTarget(ids_BT, torch.empty(*ids_BT.shape, 0), mask_BT))

    def _split(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids and mask; `<pad>` written in a text goes, as it does in `models.scoring`."""
        pad_id = self.vocabulary.pad_id
        return pad([[token for token in self.vocabulary.encode(text) if token != pad_id] for text in texts], pad_id)

    def close(self) -> None:
        """Return the lease of this process, if the pool was joined for this estimator alone."""
        if self.connection is not None:
            self.connection.close()


class _Scores(torch.autograd.Function):
    """Scores that are known, with a gradient that is known."""

    @staticmethod
    def forward(ctx: Any, emb_BTD: Tensor, mask_BT: Tensor, score_B: Tensor, gradient_ND: Tensor) -> Tensor:
        ctx.save_for_backward(mask_BT, gradient_ND, score_B.isfinite())
        return score_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        mask_BT, gradient_ND, finite_B = ctx.saved_tensors
        grad_B = grads[0].to(gradient_ND.dtype).masked_fill(~finite_B, 0.0)  # where a score is NaN, this may be too
        if len(gradient_ND) == mask_BT.numel():  # nothing is padded
            return gradient_ND.view(*mask_BT.shape, -1) * grad_B[:, None, None], None, None, None
        result_BTD = gradient_ND.new_zeros((*mask_BT.shape, gradient_ND.shape[-1]))
        rows_N = mask_BT.nonzero()[:, 0]
        result_BTD[mask_BT] = gradient_ND * grad_B[rows_N, None]
        return result_BTD, None, None, None
