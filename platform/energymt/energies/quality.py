"""The energy of a quality estimator: minus its score of a relaxed translation, in embeddings of the estimator's own.

    E(x, z) = −s(x, O(z_1) W .. O(z_T) W)

QE-EBM (static), with W the estimator's embeddings of the translator's tokens (see `energymt.data.bridge`) and O one of
ENGINE's operators; the published code uses ST. Scores of quality are higher where a translation is better; the sign is
turned here and nowhere else. The energy says nothing of where a translation ends: T is given, and the estimator puts
its own tokens around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from energymt import operators, projected
from energymt.data.bridge import Bridge
from energymt.data.vocabulary import Vocabulary
from energymt.errors import ConfigurationError
from energymt.models.estimator import Estimator
from energymt.operators import Noise
from energymt.records import Prediction, SoftTarget, Source

QUALITY_STREAM = 2  # Gumbel noise of its own; 0 and 1 are those of an autoregressive energy beside it


class PromisedScores(Protocol):
    """Scores on their way."""

    def result(self) -> Tensor:
        """score_B, when it is there."""
        ...


@runtime_checkable
class Asynchronous(Protocol):
    """An estimator in another process, which can be asked now and listened to later."""

    def submit(self, source: Source, target: SoftTarget) -> PromisedScores:
        """Ask; several questions may be in flight. Where the target has ids, its embeddings may be of width 0."""
        ...


class QualityEnergy:
    """−score of a quality estimator.

    Args:
        estimator: in this process or in another, already on the device that it stays on. One in this process is put
            into eval mode and frozen here.
        vocabulary: the translator's, over which predictions are.
        feed: the operator that makes the tokens which the estimator reads.
        least_coverage: the share of the translator's pieces that the estimator must know.
        prefixes: task prefixes that sources may have, which the estimator does not read.
        device: where translations are mixed; None: where the estimator's table is. One in another process keeps that on
            the host, so that this energy's is the only one on a GPU.

    Raises:
        ConfigurationError: an unknown operator, or vocabularies that cannot be bridged.
    """

    unit = "negative quality score"

    def __init__(
        self,
        estimator: Estimator,
        vocabulary: Vocabulary,
        feed: str = "ST",
        least_coverage: float = 0.95,
        prefixes: Iterable[str] = (),
        device: torch.device | None = None,
    ) -> None:
        operators.operator(feed)
        if isinstance(estimator, nn.Module):
            estimator.eval().requires_grad_(False)
        self.estimator, self.vocabulary, self.feed = estimator, vocabulary, feed
        self.bridge = Bridge(vocabulary, estimator.vocabulary, prefixes)
        self.bridge.require(least_coverage)
        self.table_VD = self.bridge.table(estimator.table_VD).to(device)

    def __call__(self, source: Source, prediction: Prediction) -> Tensor:
        """The relaxed energy of each sentence, [B]; its gradient reaches the logits through the operator.

        Raises:
            ConfigurationError: a prediction over another vocabulary.
        """
        return self.begin(source, prediction)()

    def begin(self, source: Source, prediction: Prediction) -> Callable[[], Tensor]:
        """The same, asked for at once and waited for when it is called; an estimator elsewhere computes meanwhile."""
        noise = None if prediction.noise is None else prediction.noise.draw(QUALITY_STREAM)
        ids_BT, emb_BTD = relaxed(self.feed, prediction, self.table_VD, noise)
        rows_BT = None if ids_BT is None else self.bridge.rows(ids_BT)
        return self._begin(source, SoftTarget(rows_BT, emb_BTD, prediction.mask_BT))

    @torch.no_grad()
    def discrete(self, source: Source, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The energy of discrete translations in the translator's own segmentation, [B]."""
        ids_BT = ids_BT.masked_fill(~mask_BT, self.vocabulary.pad_id)
        emb_BTD = nn.functional.embedding(ids_BT, self.table_VD)
        return self._begin(source, SoftTarget(self.bridge.rows(ids_BT), emb_BTD, mask_BT))()

    @torch.no_grad()
    def begin_text(self, source: Source, ids_BT: Tensor, mask_BT: Tensor) -> Callable[[], Tensor]:
        """The energy of the text that discrete translations write, as the estimator splits it, [B]; see `begin`."""
        ids_BT, mask_BT = self.bridge.target(ids_BT, mask_BT)
        if isinstance(self.estimator, Asynchronous):  # what travels are the ids
            emb_BTD = torch.empty(*ids_BT.shape, 0, device=ids_BT.device)
        else:
            emb_BTD = nn.functional.embedding(ids_BT, self.estimator.table_VD)
        return self._begin(source, SoftTarget(ids_BT, emb_BTD, mask_BT))

    @torch.no_grad()
    def covered_mass(self, prediction: Prediction) -> Tensor:
        """The probability that the tokens of each sentence are ones the estimator knows, on average, [B]; for the log.

        What is missing to 1 is scored as unknown tokens. A sentence without tokens has 1, and so has each one where
        every token is a row of the estimator's.
        """
        _require_size(_size(prediction), len(self.table_VD))
        if self.bridge.identical:
            return self.table_VD.new_ones(len(prediction.mask_BT))
        covered_V1 = self.bridge.covered_V.to(self.table_VD).unsqueeze(1)
        mass_BT = relaxed("SX", prediction, covered_V1, None)[1].squeeze(-1)
        lost_BT = (1.0 - mass_BT).masked_fill(~prediction.mask_BT, 0.0)
        return 1.0 - lost_BT.sum(1) / prediction.mask_BT.sum(1).clamp(min=1)

    def _begin(self, source: Source, target: SoftTarget) -> Callable[[], Tensor]:
        source = self.bridge.source(source)
        if isinstance(self.estimator, Asynchronous):
            ticket = self.estimator.submit(source, target)
            return lambda: -ticket.result()
        energy_B = -self.estimator(source, target)
        return lambda: energy_B


def relaxed(name: str, prediction: Prediction, table_VD: Tensor, noise: Noise | None) -> tuple[Tensor | None, Tensor]:
    """The tokens that are the value of a hard operator, [B, T] (None for a soft one), and O(z) @ table, [B, T, D].

    Here alone a prediction is looked into; nothing of size [B, T, V] is made where it is a projection.
    """
    logits_BTV, projection, given_BT = prediction.logits_BTV, prediction.projection, prediction.hard_ids_BT
    _require_size(_size(prediction), len(table_VD))
    if projection is not None:
        ids_BT = projected.hard_ids_of(name, projection, given_BT, noise)
        return ids_BT, projected.embed_projected(name, projection, table_VD, ids_BT, noise)
    assert logits_BTV is not None
    ids_BT = operators.hard_ids_of(name, logits_BTV, given_BT, noise)
    return ids_BT, operators.embed(name, logits_BTV, table_VD, ids_BT, noise)


def _size(prediction: Prediction) -> int:
    """V of what it is over."""
    if prediction.projection is not None:
        return len(prediction.projection.matrix_VH)
    assert prediction.logits_BTV is not None
    return prediction.logits_BTV.shape[-1]


def _require_size(found: int, wanted: int) -> None:
    if found != wanted:
        raise ConfigurationError(
            f"The prediction is over {found} tokens and the energy's vocabulary has {wanted}: give QualityEnergy the "
            f"vocabulary of the translator that predicts."
        )
