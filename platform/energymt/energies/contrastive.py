"""Noise-contrastive estimation of an energy: gold translations against a translator's own samples.

With s the estimator's score, l(y) the translator's log-probability of y (a constant here), and y_0 the gold of a group:

    binary    Σ_k BCE(σ(s(y_k) − l(y_k)), [k = 0])      mean over candidates; the form of QE-EBM's QE-DYNAMIC
    ranking   −log softmax_k(s(y_k) − l(y_k))[0]         mean over groups; the form of SEAL

The published QE-EBM takes for l the mean log-probability of a token, over the padded length; here it is whatever the
caller gives, so give the mean over the real length (or the sum, as in SEAL).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Form = Literal["binary", "ranking"]


def contrastive_loss(scores_C: Tensor, log_probs_C: Tensor, sizes_G: Tensor, form: Form) -> tuple[Tensor, int]:
    """The summed loss of G groups of candidates, the gold first in each, and the count that it is a mean over.

    Args:
        scores_C: of all candidates, group by group; higher is better.
        log_probs_C: the translator's, constants.
        sizes_G: candidates of each group, int64.
        form: `binary` or `ranking`.
    """
    logits_C = (scores_C - log_probs_C).float()
    gold_G = first_of(sizes_G)
    if form == "binary":
        wanted_C = torch.zeros_like(logits_C)
        wanted_C[gold_G] = 1.0
        return functional.binary_cross_entropy_with_logits(logits_C, wanted_C, reduction="sum"), len(logits_C)
    group_C = torch.arange(len(sizes_G), device=logits_C.device).repeat_interleave(sizes_G)
    highest_G = logits_C.new_full((len(sizes_G),), float("-inf"))
    highest_G = highest_G.scatter_reduce(0, group_C, logits_C.detach(), "amax")
    sums_G = logits_C.new_zeros(len(sizes_G)).index_add(0, group_C, (logits_C - highest_G[group_C]).exp())
    return (sums_G.log() + highest_G - logits_C[gold_G]).sum(), len(sizes_G)


def first_of(sizes_G: Tensor) -> Tensor:
    """Where each group begins, [G]."""
    return sizes_G.cumsum(0) - sizes_G
