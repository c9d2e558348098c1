"""What an autoregressive translator says of given sentences, as logits or, for a large vocabulary, as a projection.

Here alone it is decided which. Both go into `losses.cross_entropy`, `policy.token_log_probs` and
`decoding.sampling.possible`.
"""

from __future__ import annotations

from torch import Tensor

from energymt.errors import ConfigurationError
from energymt.losses import cross_entropy, with_end
from energymt.models.translator import AutoregressiveModel, Memory
from energymt.records import Batch, Projection

LARGE = 16_384
"""Tokens of a vocabulary above which logits [R, U, V] are not made."""
LARGE_FOR_LOSS = 2_048
"""The same for a cross-entropy on a processor, where logits are sooner made twice than stored and read several times:
supervised steps with 8,000 tokens take 0.5 to 0.75 of the time."""


def teacher_forced(
    model: AutoregressiveModel, memory: Memory, ids_RT: Tensor, mask_RT: Tensor, large: int | None = None
) -> Tensor | Projection:
    """Logits [R, U, V], or above `large` tokens (LARGE) what they are made from. Ids hold no start and no end token."""
    if model.vocabulary.size > (LARGE if large is None else large):
        try:
            return model.decode_projection(memory, ids_RT, mask_RT)
        except ConfigurationError:
            pass  # a network that makes its logits in a way of its own: it must make them
    return model.decode(memory, ids_RT, mask_RT)


def negative_log_likelihood(model: AutoregressiveModel, batch: Batch, smoothing: float) -> Tensor:
    """Σ over the targets of a batch, end tokens counted, of the label-smoothed −log p(y | x), in nats."""
    large = LARGE_FOR_LOSS if batch.target_BT.device.type == "cpu" else LARGE
    said = teacher_forced(model, model.encode(batch.source), batch.target_BT, batch.target_mask_BT, large)
    return cross_entropy(said, *with_end(batch.target_BT, batch.target_mask_BT, model.vocabulary.eos_id), smoothing)


def dense_if_small(projection: Projection) -> Tensor | Projection:
    """The logits of a projection up to LARGE tokens, above it the projection: for those who need hidden states too."""
    return projection if len(projection.matrix_VH) > LARGE else projection.logits()
