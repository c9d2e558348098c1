"""What flows between the rooms: frozen records, each field with its shape.

Shape legend (see `energymt.__init__`): B sentences, S source tokens, T target tokens without the end token,
V vocabulary, D width; of sound, M mel bins, F frames, and S encoder states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from energymt.chunked_logits import ChunkedLogits, argmax, product_type
from energymt.errors import ConfigurationError
from energymt.operators import Noise


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor | Noise) else value


@dataclass(frozen=True)
class Source:
    """A padded batch of source sentences, as token ids that end in the end-of-sentence token."""

    ids_BS: Tensor
    mask_BS: Tensor  # bool, True on real tokens

    def to(self, device: torch.device) -> Source:
        return Source(self.ids_BS.to(device), self.mask_BS.to(device))

    def select(self, rows_R: Tensor) -> Source:
        """Rows of this batch, in the order given and possibly repeated."""
        return Source(self.ids_BS[rows_R], self.mask_BS[rows_R])

    @property
    def limits_B(self) -> Tensor:
        """Most tokens of a translation where nobody says how many: twice those of the source, and ten."""
        return 2 * (self.mask_BS.sum(1) - 1) + 10

    def __len__(self) -> int:
        return self.ids_BS.shape[0]


@dataclass(frozen=True)
class Sound:
    """A batch of recordings as log-mel features of a whole window, whatever part of it they fill."""

    features_BMF: Tensor
    mask_BS: Tensor  # bool, True on the encoder states that hold sound

    def to(self, device: torch.device) -> Sound:
        return Sound(self.features_BMF.to(device), self.mask_BS.to(device))

    def select(self, rows_R: Tensor) -> Sound:
        """Rows of this batch, in the order given and possibly repeated."""
        return Sound(self.features_BMF[rows_R], self.mask_BS[rows_R])

    @property
    def limits_B(self) -> Tensor:
        """Most tokens of a transcript where nobody says how many: one for two states, and ten.

        Whisper has 50 states a second, and the fastest speech has about 25 letters.
        """
        return self.mask_BS.sum(1) // 2 + 10

    def __len__(self) -> int:
        return self.features_BMF.shape[0]


Input = Source | Sound
"""What an encoder is given: text or sound."""


def text_of(source: Input) -> Source:
    """The same, for what reads text alone.

    Raises:
        ConfigurationError: it is sound.
    """
    if isinstance(source, Sound):
        raise ConfigurationError("This model reads text and was given recordings; take a model of speech.")
    return source


def sound_of(source: Input) -> Sound:
    """The same, for what hears sound alone.

    Raises:
        ConfigurationError: it is text.
    """
    if isinstance(source, Source):
        raise ConfigurationError("This model hears recordings and was given text; use `energymt transcribe`.")
    return source


@dataclass(frozen=True)
class Batch:
    """A micro-batch: sentence pairs that go through the networks together. Targets hold neither start nor end token."""

    sentence_ids_B: Tensor  # int64, the row in the corpus: it keys the noise
    source: Input
    target_BT: Tensor
    target_mask_BT: Tensor  # bool

    def to(self, device: torch.device) -> Batch:
        return Batch(
            self.sentence_ids_B.to(device),
            self.source.to(device),
            self.target_BT.to(device),
            self.target_mask_BT.to(device),
        )

    @property
    def target_lengths_B(self) -> Tensor:
        return self.target_mask_BT.sum(1)

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class StepBatch:
    """All micro-batches of ONE global optimizer step that fall to this worker.

    How the step is cut into micro-batches depends on the data and the token budget, never on the number of workers.
    """

    step: int  # global optimizer step, counted from 0
    epoch: int
    micro_batches: tuple[Batch, ...]
    unlabelled: tuple[Batch, ...] = ()  # sources without a target, for methods that learn from them
    rank: int = 0
    world: int = 1  # workers
    sentence_ids: tuple[int, ...] = ()  # of all labelled pairs of the step, over all workers; none: those here


@dataclass(frozen=True)
class Projection:
    """Logits by what they are made from, hidden @ matrixᵀ + bias: for vocabularies too large for logits [B, T, V]."""

    hidden_BTH: Tensor  # the translator's last hidden states
    matrix_VH: Tensor
    bias_V: Tensor | None = None  # −inf forbids a token

    def logits(self) -> Tensor:
        """The logits after all, [B, T, V]."""
        return linear(self.hidden_BTH, self.matrix_VH, self.bias_V)

    @torch.no_grad()
    def argmax(self) -> Tensor:
        """The tokens of the highest logits, [B, T], without making the logits."""
        parts = (self.hidden_BTH, self.matrix_VH, self.bias_V)
        logits = ChunkedLogits.of("SX", *parts, noise=None, dtype=product_type(self.matrix_VH))
        return argmax(logits).view(self.hidden_BTH.shape[:2])

    @staticmethod
    def of_ids(ids_BT: Tensor, vocabulary: int, dtype: torch.dtype = torch.float32) -> Projection:
        """Logits that put all mass on the given tokens, from log₂ V dimensions.

        A token's row is its number in binary, of ±1. The highest logit is where all bits agree, and the next is so far
        below that its probability is 0 in every precision.
        """
        places = torch.arange(max(1, (vocabulary - 1).bit_length()), device=ids_BT.device)

        def bits(ids: Tensor) -> Tensor:
            return ((ids.unsqueeze(-1) >> places & 1) * 2 - 1).to(dtype)

        return Projection(1024 * bits(ids_BT), bits(torch.arange(vocabulary, device=ids_BT.device)))


@dataclass(frozen=True)
class Prediction:
    """What a translator says of a target: one logit vector a position, either dense or by a projection.

    `hard_ids_BT` is the value that a hard operator takes instead of the argmax (a sample); `noise` names the Gumbel
    noise that SG and GX add.
    """

    logits_BTV: Tensor | None
    mask_BT: Tensor  # bool, True on real positions
    hard_ids_BT: Tensor | None = None
    noise: Noise | None = None
    projection: Projection | None = None

    def __post_init__(self) -> None:
        if (self.logits_BTV is None) == (self.projection is None):
            raise ValueError("a Prediction holds either logits or a projection")

    def dense_logits(self) -> Tensor:
        """The logits [B, T, V]; made where they are not there, which takes the memory that a projection saves."""
        if self.logits_BTV is not None:
            return self.logits_BTV
        assert self.projection is not None
        return self.projection.logits()

    def argmax(self) -> Prediction:
        """The same prediction with all mass on its argmax (or on `hard_ids_BT`): its energy is the discrete one."""
        if self.projection is not None:
            ids_BT = self.projection.argmax() if self.hard_ids_BT is None else self.hard_ids_BT
            size, dtype = len(self.projection.matrix_VH), self.projection.hidden_BTH.dtype
            return Prediction(None, self.mask_BT, ids_BT, projection=Projection.of_ids(ids_BT, size, dtype))
        assert self.logits_BTV is not None
        ids_BT = self.logits_BTV.argmax(-1) if self.hard_ids_BT is None else self.hard_ids_BT
        return Prediction.of_ids(ids_BT, self.mask_BT, self.logits_BTV.shape[-1], self.logits_BTV.dtype)

    @staticmethod
    def of_ids(ids_BT: Tensor, mask_BT: Tensor, vocabulary: int, dtype: torch.dtype = torch.float32) -> Prediction:
        """A prediction that puts all its mass on the given tokens: logits of 0 there, of -inf elsewhere."""
        logits_BTV = torch.full((*ids_BT.shape, vocabulary), float("-inf"), dtype=dtype, device=ids_BT.device)
        logits_BTV.scatter_(-1, ids_BT.unsqueeze(-1), 0.0)
        return Prediction(logits_BTV, mask_BT, hard_ids_BT=ids_BT)


@dataclass(frozen=True)
class SoftTarget:
    """What an estimator takes for a translation: one mixture of its embedding rows a position, no special tokens.

    Where the value of every mixture is a single row (a hard operator), `ids_BT` names the rows.
    """

    ids_BT: Tensor | None
    emb_BTD: Tensor
    mask_BT: Tensor  # bool, True on real positions


@dataclass(frozen=True)
class Term:
    """One part of a loss, kept as a sum and a count, so that accumulation and data parallelism are exact.

    loss = Σ_terms weight · (Σ sum over micro-batches and workers) / (Σ count over micro-batches and workers)
    """

    name: str
    sum: Tensor  # scalar
    count: float
    weight: float = 1.0


Pending = Callable[[], list[Term]]
"""Terms that wait for an answer from elsewhere (a pool's energy, say)."""


@dataclass(frozen=True)
class Step:
    """One optimizer step, handed from a trainable to the loop.

    `losses(batch)` gives the terms of one micro-batch, or what waits for them; `counts(batch)` gives the count of each
    of its terms, known before any forward pass, so that the loop can sum counts over workers first. `terms` names them
    all, also for a worker to which no micro-batch falls.
    """

    terms: tuple[str, ...]
    micro_batches: Sequence[Batch]
    losses: Callable[[Batch], list[Term] | Pending]
    counts: Callable[[Batch], dict[str, float]]


@dataclass(frozen=True)
class Mixture:
    """One optimizer step whose gradient is a weighted sum of the gradients of several parts, known one by one.

    `weigh(gram_PP, means)` is given the scalar products of the parts' gradients (float64, in the order of `parts`) and
    the mean of every term, and returns a weight for each part. The parts are begun in their order, and ended in the
    reverse one: put first what waits for an answer from elsewhere.
    """

    parts: Mapping[str, Step]
    weigh: Callable[[Tensor, Mapping[str, float]], list[float]]
    more: Callable[[], dict[str, float]] = dict
    """What else to log, asked for when the step was taken."""


Steps = Iterator[Step | Mixture]


@dataclass(frozen=True)
class Hypothesis:
    """One translation of one source sentence.

    `score` is the mean log-probability that ranked it (nats per token, higher is better); `total` the sum in nats.
    """

    ids: tuple[int, ...]
    score: float
    total: float
    extra: dict[str, float] = field(default_factory=dict)

    def with_extra(self, **values: float) -> Hypothesis:
        return replace(self, extra={**self.extra, **values})
