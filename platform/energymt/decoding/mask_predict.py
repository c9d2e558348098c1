"""Mask-Predict (Ghazvininejad et al. 2019, §3): all positions at once, then again those that are least certain.

For each of the K most probable lengths N: predict all N tokens from `<mask>`; at iteration t of T mask the
n = ⌊N · (T − t) / T⌋ tokens of lowest probability and predict those again, given the others. The length with the
highest mean log-probability of tokens wins (§4.1), or the one that `rank` prefers.

Cost: one encoder pass, and at most T decoder passes on B · K rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from energymt.decoding.inference import inference
from energymt.decoding.rerank import Rank
from energymt.errors import ConfigurationError, DivergenceError
from energymt.models.translator import Memory, NonautoregressiveModel
from energymt.records import Hypothesis, Source


def decode(
    model: NonautoregressiveModel,
    source: Source,
    *,
    length_beam: int = 5,
    iterations: int = 10,
    lengths_B: Tensor | Sequence[int] | None = None,
    n_best: int = 1,
    rank: Rank | None = None,
) -> list[list[Hypothesis]]:
    """The best translations over several lengths, up to `n_best` a sentence, best first.

    `score` is the mean and `total` the sum of the tokens' log-probabilities, each from the pass that chose the token;
    `extra` holds `length_logp`, the log-probability of the length (0 from a model that predicts none), and `rank`,
    where a ranking was given.

    Args:
        model: the translator; used in eval mode.
        source: B sentences.
        length_beam: lengths tried a sentence (K).
        iterations: decoder passes (T).
        lengths_B: oracle lengths in tokens, without the end token. With a `length_beam` above one, the K lengths
            around each are tried. Lengths that the model cannot take become the nearest that it can.
        n_best: translations to return a sentence, at most `length_beam`.
        rank: score of each candidate, higher is better, instead of the mean log-probability.

    Raises:
        ConfigurationError: for impossible numbers.
        DivergenceError: if the model's logits are not numbers.
    """
    if iterations < 1:
        raise ConfigurationError(f"Mask-predict was given {iterations} iterations and needs at least one.")
    if not 1 <= n_best <= length_beam:
        raise ConfigurationError(
            f"A length beam of {length_beam} holds no {n_best} best translations: choose 1 <= n_best <= length_beam."
        )
    with inference(model):
        memory = model.encode(source)
        lengths_BK, length_logp_BK = _lengths(memory, length_beam, lengths_B)
        B, K = lengths_BK.shape
        rows_R = torch.arange(B, device=lengths_BK.device).repeat_interleave(K)
        ids_RT, logp_RT, mask_RT = _refine(model, memory.select(rows_R), lengths_BK.flatten(), iterations)
        total_R = logp_RT.sum(1)
        score_R = total_R / mask_RT.sum(1)
        rank_R = score_R if rank is None else rank(source.select(rows_R), ids_RT, mask_RT).float()
        if not score_R.isfinite().all():
            raise DivergenceError("The translator's scores are not finite: its weights hold NaN or infinity.")
        order_BK = rank_R.nan_to_num(nan=float("-inf")).view(B, K).argsort(dim=1, descending=True, stable=True)

    numbers = zip(
        ids_RT.tolist(),
        lengths_BK.flatten().tolist(),
        score_R.tolist(),
        total_R.tolist(),
        length_logp_BK.flatten().tolist(),
        rank_R.tolist(),
        strict=True,
    )
    candidates = [
        Hypothesis(
            tuple(ids[:length]), score, total, {"length_logp": logp} | ({} if rank is None else {"rank": ranked})
        )
        for ids, length, score, total, logp, ranked in numbers
    ]
    return [[candidates[b * K + k] for k in best[:n_best]] for b, best in enumerate(order_BK.tolist())]


def _lengths(memory: Memory, length_beam: int, oracle_B: Tensor | Sequence[int] | None) -> tuple[Tensor, Tensor]:
    """K lengths a sentence, at least 1 each, and their log-probabilities; both [B, K]."""
    logp_BL = memory.length_logp_BL
    if oracle_B is None:
        if logp_BL is None:
            raise ConfigurationError("This translator predicts no length: give the lengths of the translations.")
        # Length 0 is left out; counting starts at 1.
        logp_BK, index_BK = logp_BL[:, 1:].topk(min(length_beam, logp_BL.shape[1] - 1))
        return index_BK + 1, logp_BK
    oracle_B = torch.as_tensor(oracle_B, dtype=torch.long, device=memory.states_BSD.device)
    if len(oracle_B) != len(memory.mask_BS):
        raise ConfigurationError(f"{len(oracle_B)} lengths were given for {len(memory.mask_BS)} sentences.")
    if logp_BL is None:
        window_K = torch.arange(length_beam, device=oracle_B.device)
        lengths_BK = (oracle_B - (length_beam - 1) // 2).clamp(min=1)[:, None] + window_K
        return lengths_BK, torch.zeros(lengths_BK.shape, device=lengths_BK.device)
    longest = logp_BL.shape[1] - 1
    window_K = torch.arange(min(length_beam, longest), device=oracle_B.device)
    first_B = (oracle_B - (len(window_K) - 1) // 2).clamp(min=1, max=longest - len(window_K) + 1)
    lengths_BK = first_B[:, None] + window_K
    return lengths_BK, logp_BL.gather(1, lengths_BK)


def _refine(
    model: NonautoregressiveModel, memory: Memory, lengths_R: Tensor, iterations: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens [R, T], their log-probabilities (0 on padding), and the mask of real positions."""
    positions_T = torch.arange(int(lengths_R.max()), device=lengths_R.device)
    mask_RT = positions_T < lengths_R[:, None]
    tokens_RT = model.unseen(mask_RT)
    masked_RT = mask_RT
    logp_RT = torch.zeros(mask_RT.shape, device=mask_RT.device)
    for iteration in range(iterations):
        if iteration > 0:
            masks_R = lengths_R * (iterations - iteration) // iterations
            if not masks_R.any():
                break
            masked_RT = _least_certain(logp_RT, masks_R)
            tokens_RT = tokens_RT.masked_fill(masked_RT, model.vocabulary.mask_id)
        ids_N, logp_N = model.choose(memory, tokens_RT, mask_RT, masked_RT)
        tokens_RT[masked_RT] = ids_N
        logp_RT[masked_RT] = logp_N
    return tokens_RT, logp_RT, mask_RT


def _least_certain(logp_RT: Tensor, masks_R: Tensor) -> Tensor:
    """True on the masks_R positions of lowest log-probability of each row; of equals, the leftmost."""
    # Padding has log-probability 0, the highest, and stands at the right: it is never among them.
    order_RT = logp_RT.argsort(dim=1, stable=True)
    among_lowest_RT = torch.arange(logp_RT.shape[1], device=logp_RT.device) < masks_R[:, None]
    return torch.zeros_like(among_lowest_RT).scatter(1, order_RT, among_lowest_RT)
