"""The energy of an autoregressive teacher: its negative log-likelihood, with relaxed tokens in both places.

    E(x, z) = Σ_{t=1..T} −O2(z_t)ᵀ log p(· | O1(z_1) .. O1(z_{t−1}), x)  −  log p(eos | O1(z_1) .. O1(z_T), x)

ENGINE (Tu et al. 2020), Eqs. 2 and 3 with the operators of §3.2. The end of the sentence is counted at the length
given: the prediction holds T tokens, and the teacher must want to stop behind the last of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from energymt import operators
from energymt.energies.likelihood import log_likelihood
from energymt.errors import ConfigurationError
from energymt.models.translator import AutoregressiveModel
from energymt.records import Input, Prediction

FEED_STREAM, SCORE_STREAM = 0, 1  # O1 and O2 draw their Gumbel noise independently


class AutoregressiveEnergy:
    """−log p of a frozen autoregressive teacher, in nats per sentence.

    Args:
        teacher: put into eval mode and frozen here; no gradient buffer is ever made for it.
        feed: O1, the operator that feeds the decoder.
        score: O2, the operator that picks the log-probabilities.

    Raises:
        ConfigurationError: for an unknown operator.
    """

    unit = "nats per sentence"

    def __init__(self, teacher: AutoregressiveModel, feed: str = "SX", score: str = "ST") -> None:
        operators.operator(feed)
        operators.operator(score)
        self.teacher = teacher.eval().requires_grad_(False)
        self.feed = feed
        self.score = score

    def __call__(self, source: Input, prediction: Prediction) -> Tensor:
        """The relaxed energy of each sentence, [B]; its gradient reaches the logits through O1 and O2."""
        # Dense in any case: the vocabulary is the teacher's, and the teacher makes logits of the same size.
        logits_BTV, hard_ids_BT = prediction.dense_logits(), prediction.hard_ids_BT
        table_VD = self.teacher.embedding_VD
        if logits_BTV.shape[-1] != table_VD.shape[0]:
            raise ConfigurationError(
                f"The prediction is over {logits_BTV.shape[-1]} tokens and the teacher's vocabulary has "
                f"{table_VD.shape[0]}: an energy needs translator and teacher to share one vocabulary."
            )
        noise = prediction.noise
        feed_noise = noise.draw(FEED_STREAM) if noise is not None else None
        score_noise = noise.draw(SCORE_STREAM) if noise is not None else None
        with torch.no_grad():
            memory = self.teacher.encode(source)
        emb_BTD = operators.embed(self.feed, logits_BTV, table_VD, hard_ids_BT, feed_noise)
        logits_BUV = self.teacher.decode_soft(memory, emb_BTD, prediction.mask_BT)
        return -log_likelihood(
            self.score,
            logits_BTV,
            logits_BUV,
            prediction.mask_BT,
            self.teacher.vocabulary.eos_id,
            hard_ids_BT,
            score_noise,
        )

    @torch.no_grad()
    def discrete(self, source: Input, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The teacher's own NLL of discrete translations, end of sentence counted, [B] in nats."""
        logits_BUV = self.teacher.decode(self.teacher.encode(source), ids_BT, mask_BT)
        logp_BUV = logits_BUV.to(torch.promote_types(logits_BUV.dtype, torch.float32)).log_softmax(-1)
        token_BT = logp_BUV[:, :-1].gather(-1, ids_BT.unsqueeze(-1)).squeeze(-1)
        end_B = logp_BUV[..., self.teacher.vocabulary.eos_id].gather(1, mask_BT.sum(1, keepdim=True)).squeeze(1)
        return -token_BT.masked_fill(~mask_BT, 0.0).sum(1) - end_B
