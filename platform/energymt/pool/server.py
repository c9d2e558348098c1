"""What a replica does, without Ray: requests in, replies out, on an estimator in this process.

One bad sentence never fails its neighbours: a batch that raises is halved until the sentence is found, and flagged. One
that needs too much memory is halved too, and the next ones stay that small.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain, pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from energymt.errors import DataError, EnergymtError
from energymt.models.estimator import QualityEstimator
from energymt.pool.wire import PRECISIONS, Array, Ragged, Reply, Request, from_numpy, padded, to_numpy
from energymt.records import SoftTarget, Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sentence:
    """One sentence of a request."""

    source: Array  # ids [S]
    target: Array  # ids [T] or embeddings [T, D]
    precision: str


@dataclass(frozen=True)
class Answers:
    """Of B sentences with N real positions in all."""

    scores_B: Tensor
    gradient_ND: Tensor | None
    flags: dict[int, str] = field(default_factory=dict)


class Server:
    """Scores, and scores with gradients.

    Args:
        estimator: put into eval mode and frozen.
        name: of the replica.
        version: of the energy.
    """

    def __init__(self, estimator: QualityEstimator, name: str = "here", version: int = 0) -> None:
        self.estimator = estimator.eval().requires_grad_(False)
        self.name, self.version = name, version
        self.most_sentences: int | None = None  # of a batch, once memory has run out

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies to requests of one kind, computed together."""
        start = time.perf_counter()
        gradient, precision = requests[0].gradient, PRECISIONS[requests[0].precision]
        sentences = list(chain.from_iterable(map(_sentences, requests)))
        answers = self._answers(sentences, gradient)
        gradient_ND = None if answers.gradient_ND is None else to_numpy(answers.gradient_ND.to(precision))
        scores = to_numpy(answers.scores_B)
        rows = list(accumulate((len(request) for request in requests), initial=0))
        positions = list(accumulate((int(request.target.lengths.sum()) for request in requests), initial=0))
        seconds = time.perf_counter() - start
        return [
            Reply(
                request.id,
                self.name,
                self.version,
                scores[first:last],
                None if gradient_ND is None else gradient_ND[start_n:stop_n],
                {row - first: reason for row, reason in answers.flags.items() if first <= row < last},
                computed=seconds,
            )
            for request, (first, last), (start_n, stop_n) in zip(
                requests, pairwise(rows), pairwise(positions), strict=True
            )
        ]

    def _answers(self, sentences: list[Sentence], gradient: bool) -> Answers:
        if self.most_sentences and len(sentences) > self.most_sentences:
            return self._halves(sentences, gradient)
        try:
            return self._compute(sentences, gradient)
        except Exception as error:  # whatever it is: it may be one sentence's fault alone
            if _is_out_of_memory(error):
                torch.cuda.empty_cache()
                self.most_sentences = max(1, len(sentences) // 2)
                logger.warning("A batch of %d sentences needs too much memory; halved from now on.", len(sentences))
            if len(sentences) == 1:
                return self._flagged(sentences[0], gradient, _reason(error))
        return self._halves(sentences, gradient)

    def _halves(self, sentences: list[Sentence], gradient: bool) -> Answers:
        middle = len(sentences) // 2
        first, second = self._answers(sentences[:middle], gradient), self._answers(sentences[middle:], gradient)
        gradients = [part.gradient_ND for part in (first, second) if part.gradient_ND is not None]
        return Answers(
            torch.cat([first.scores_B, second.scores_B]),
            torch.cat(gradients) if gradients else None,
            first.flags | {middle + row: reason for row, reason in second.flags.items()},
        )

    def _compute(self, sentences: list[Sentence], gradient: bool) -> Answers:
        table_VD = self.estimator.table_VD
        lengths = np.array([len(sentence.source) for sentence in sentences], dtype=np.int32)
        source_BS, source_mask_BS = padded(Ragged(np.concatenate([item.source for item in sentences]), lengths))
        embeddings = [self._embeddings(sentence) for sentence in sentences]
        emb_BTD = pad_sequence(embeddings, batch_first=True).to(table_VD).requires_grad_(gradient)
        lengths_B = torch.tensor([len(emb_TD) for emb_TD in embeddings])
        mask_BT = (torch.arange(emb_BTD.shape[1]) < lengths_B[:, None]).to(table_VD.device)
        source = Source(source_BS.to(table_VD.device), source_mask_BS.to(table_VD.device))
        with torch.set_grad_enabled(gradient):
            score_B = self.estimator(source, SoftTarget(None, emb_BTD, mask_BT))
        finite_B, gradient_ND = score_B.isfinite(), None
        if gradient:
            gradient_BTD = torch.autograd.grad(score_B.sum(), emb_BTD)[0]
            finite_B = finite_B & gradient_BTD.isfinite().flatten(1).all(1)
            gradient_ND = gradient_BTD.masked_fill(~finite_B[:, None, None], 0.0)[mask_BT]
        reason = "its score or its gradient is not finite"
        flags = {row: reason for row, finite in enumerate(finite_B.tolist()) if not finite}
        exact = score_B.detach().to(torch.promote_types(score_B.dtype, torch.float32))
        return Answers(exact.masked_fill(~finite_B, float("nan")), gradient_ND, flags)

    def _embeddings(self, sentence: Sentence) -> Tensor:
        """[T, D] of a translation."""
        table_VD, target = self.estimator.table_VD, sentence.target
        if target.ndim == 2:
            if target.shape[1] != table_VD.shape[1]:
                raise DataError(
                    f"The translation's embeddings are {target.shape[1]} wide and the estimator's "
                    f"{table_VD.shape[1]}: mix rows of its own table."
                )
            return from_numpy(target, sentence.precision).to(table_VD)
        size = self.estimator.vocabulary.size
        if len(target) and not 0 <= target.min() <= target.max() < size:
            raise DataError(f"A translation holds a token id outside of the estimator's {size:,} tokens.")
        return self.estimator.lookup(torch.from_numpy(target.astype(np.int64)).to(table_VD.device))

    def _flagged(self, sentence: Sentence, gradient: bool, reason: str) -> Answers:
        table_VD = self.estimator.table_VD
        scores_1 = table_VD.new_full((1,), float("nan")).to(torch.promote_types(table_VD.dtype, torch.float32))
        zeros = table_VD.new_zeros(len(sentence.target), table_VD.shape[1]) if gradient else None
        return Answers(scores_1, zeros, {0: reason})


def _sentences(request: Request) -> list[Sentence]:
    sources = np.split(request.source.values, np.cumsum(request.source.lengths)[:-1])
    targets = np.split(request.target.values, np.cumsum(request.target.lengths)[:-1])
    return [Sentence(source, target, request.precision) for source, target in zip(sources, targets, strict=True)]


def _is_out_of_memory(error: Exception) -> bool:
    """CUDA has a type for it, the CPU's allocator a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def _reason(error: Exception) -> str:
    if _is_out_of_memory(error):
        return "it needs more memory than the replica has"
    return str(error) if isinstance(error, EnergymtError) else f"{type(error).__name__}: {error}"
