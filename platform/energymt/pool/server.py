"""What a replica does, without Ray: requests in, replies out, on an estimator in this process.

One bad sentence never fails its neighbours. What can be seen to be wrong (ids, widths) is flagged and left out; a batch
that raises is halved until the sentence is found. One that needs too much memory is halved too, and for a while no
batch has more padded positions than that half.
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

from energymt.errors import EnergymtError
from energymt.models.estimator import QualityEstimator
from energymt.pool.wire import PRECISIONS, Array, Ragged, Reply, Request, from_numpy, padded, to_numpy
from energymt.records import SoftTarget, Source

logger = logging.getLogger(__name__)

PATIENCE = 64  # batches that fit before more positions are tried again


class DeviceError(Exception):
    """The device does not answer any more, and will not as long as this process lives."""


@dataclass(frozen=True)
class Sentence:
    """One sentence of a request."""

    source: Array  # ids [S]
    target: Array  # ids [T] or embeddings [T, D]
    precision: str

    @property
    def positions(self) -> int:
        """Special tokens of the joint input not counted."""
        return len(self.source) + len(self.target)


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
        self.most_positions: int | None = None  # padded, of a batch of several sentences, once memory has run out
        self.fitted = 0  # batches since then

    def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """The replies to requests of one kind, computed together.

        Raises:
            DeviceError: this process cannot compute any more.
        """
        start = time.perf_counter()
        gradient, precision = requests[0].gradient, PRECISIONS[requests[0].precision]
        sentences = list(chain.from_iterable(map(_sentences, requests)))
        answers = self._answers(sentences, gradient)
        gradient_ND = None if answers.gradient_ND is None else to_numpy(answers.gradient_ND.to(precision))
        scores = to_numpy(answers.scores_B)
        rows = accumulate((len(request) for request in requests), initial=0)
        positions = accumulate((int(request.target.lengths.sum()) for request in requests), initial=0)
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
        """Of all sentences, the ones that cannot be computed flagged."""
        faults = {row: fault for row, sentence in enumerate(sentences) if (fault := self._fault(sentence))}
        if not faults:
            return self._computed(sentences, gradient)
        good = self._computed([sentence for row, sentence in enumerate(sentences) if row not in faults], gradient)
        kept_B = torch.tensor([row not in faults for row in range(len(sentences))], device=good.scores_B.device)
        scores_B = good.scores_B.new_full((len(sentences),), float("nan"))
        scores_B[kept_B] = good.scores_B
        gradient_ND = None
        if good.gradient_ND is not None:
            lengths_B = torch.tensor([len(sentence.target) for sentence in sentences], device=kept_B.device)
            kept_N = kept_B.repeat_interleave(lengths_B)
            gradient_ND = good.gradient_ND.new_zeros(len(kept_N), good.gradient_ND.shape[1])
            gradient_ND[kept_N] = good.gradient_ND
        rows = kept_B.nonzero().squeeze(1).tolist()
        return Answers(scores_B, gradient_ND, faults | {rows[row]: reason for row, reason in good.flags.items()})

    def _fault(self, sentence: Sentence) -> str:
        """What is wrong with a sentence, as far as that shows without computing it."""
        size, width = self.estimator.table_VD.shape
        texts = [("source", sentence.source)]
        if sentence.target.ndim == 1:
            texts.append(("translation", sentence.target))
        elif sentence.target.shape[1] != width:
            return (
                f"the translation's embeddings are {sentence.target.shape[1]} wide and the estimator's {width}: "
                f"mix rows of its own table"
            )
        for word, ids in texts:
            foreign = ids[(ids < 0) | (ids >= size)]
            if len(foreign):
                return (
                    f"the {word} holds the token id {foreign[0]}, but the estimator has {size:,} tokens: encode it "
                    f"with the estimator's own vocabulary"
                )
        return ""

    def _computed(self, sentences: list[Sentence], gradient: bool) -> Answers:
        """In one batch if that works, in halves if not."""
        if not sentences:
            return self._of(0, 0, gradient)
        positions = len(sentences) * max(min(sentence.positions, self.estimator.longest) for sentence in sentences)
        if len(sentences) > 1 and self.most_positions is not None and positions > self.most_positions:
            return self._halves(sentences, gradient)
        try:
            answers = self._compute(sentences, gradient)
        except Exception as error:  # whatever it is: it may be one sentence's fault alone
            reason, memory = _reason(error), _is_out_of_memory(error)
            if isinstance(error, torch.AcceleratorError) and not memory:
                raise DeviceError(reason) from error
        else:
            self._note_fit()
            return answers
        if memory:  # here, where the error no longer holds on to the tensors of the batch
            torch.cuda.empty_cache()
        if len(sentences) == 1:
            return self._of(1, len(sentences[0].target), gradient, {0: reason})
        if memory:
            self._shrink(len(sentences), positions)
        return self._halves(sentences, gradient)

    def _halves(self, sentences: list[Sentence], gradient: bool) -> Answers:
        middle = len(sentences) // 2
        first, second = self._computed(sentences[:middle], gradient), self._computed(sentences[middle:], gradient)
        gradients = [part.gradient_ND for part in (first, second) if part.gradient_ND is not None]
        return Answers(
            torch.cat([first.scores_B, second.scores_B]),
            torch.cat(gradients) if gradients else None,
            first.flags | {middle + row: reason for row, reason in second.flags.items()},
        )

    def _shrink(self, sentences: int, positions: int) -> None:
        self.most_positions, self.fitted = positions // 2, 0
        logger.warning(
            "A batch of %d sentences in %d positions needs too much memory; at most %d positions for a while.",
            sentences,
            positions,
            self.most_positions,
        )

    def _note_fit(self) -> None:
        """Memory may have been short for one unusual batch, or for others on the device: more is tried again."""
        if self.most_positions is not None:
            self.fitted += 1
            if self.fitted == PATIENCE:
                self.most_positions, self.fitted = 2 * self.most_positions, 0

    def _compute(self, sentences: list[Sentence], gradient: bool) -> Answers:
        table_VD = self.estimator.table_VD
        lengths = np.array([len(sentence.source) for sentence in sentences], dtype=np.int32)
        source_BS, source_mask_BS = padded(Ragged(np.concatenate([item.source for item in sentences]), lengths))
        emb_BTD = self._embeddings(sentences).requires_grad_(gradient)
        lengths_B = torch.tensor([len(sentence.target) for sentence in sentences])
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
        return Answers(score_B.detach().masked_fill(~finite_B, float("nan")), gradient_ND, flags)

    def _embeddings(self, sentences: list[Sentence]) -> Tensor:
        """[B, T, D] of translations, anything on padding; ids go to the device as one array, and so do embeddings."""
        table_VD, longest = self.estimator.table_VD, max(len(sentence.target) for sentence in sentences)
        hard = [row for row, sentence in enumerate(sentences) if sentence.target.ndim == 1]
        soft = [row for row, sentence in enumerate(sentences) if sentence.target.ndim == 2]
        parts = []
        if hard:
            ids_BT = torch.from_numpy(_stacked([sentences[row].target for row in hard], longest).astype(np.int64))
            parts.append(self.estimator.lookup(ids_BT.to(table_VD.device)))
        if soft:
            values = _stacked([sentences[row].target for row in soft], longest)
            parts.append(from_numpy(values, sentences[0].precision).to(table_VD))
        if len(parts) == 1:
            return parts[0]
        order = torch.tensor(hard + soft).argsort()
        return torch.cat(parts)[order.to(table_VD.device)]

    def _of(self, sentences: int, positions: int, gradient: bool, flags: dict[int, str] | None = None) -> Answers:
        """Scores that are NaN and gradients that are 0."""
        table_VD = self.estimator.table_VD
        exact = torch.promote_types(table_VD.dtype, torch.float32)
        scores_B = table_VD.new_full((sentences,), float("nan"), dtype=exact)
        return Answers(scores_B, table_VD.new_zeros(positions, table_VD.shape[1]) if gradient else None, flags or {})


def _sentences(request: Request) -> list[Sentence]:
    if not len(request):
        return []
    sources = np.split(request.source.values, np.cumsum(request.source.lengths)[:-1])
    targets = np.split(request.target.values, np.cumsum(request.target.lengths)[:-1])
    return [Sentence(source, target, request.precision) for source, target in zip(sources, targets, strict=True)]


def _stacked(rows: Sequence[Array], longest: int) -> Array:
    """One array of rows [L] or [L, D], 0 on padding."""
    out = np.zeros((len(rows), longest, *rows[0].shape[1:]), rows[0].dtype)
    for whole, row in zip(out, rows, strict=True):
        whole[: len(row)] = row
    return out


def _is_out_of_memory(error: Exception) -> bool:
    """CUDA has two types for it, the CPU's allocator a RuntimeError."""
    words = ("allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in words)


def _reason(error: Exception) -> str:
    if _is_out_of_memory(error):
        return "it needs more memory than the replica has"
    return str(error) if isinstance(error, EnergymtError) else f"{type(error).__name__}: {error}"
