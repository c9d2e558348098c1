"""Ancestral sampling from an autoregressive translator: K translations of each source.

What is drawn is a function of (seed, step, sentence, number of the sample, position) alone, so that it does not depend
on how sentences are cut into batches and workers.

Cost: one decoder step on B · K rows a token, with cache; samples that have ended leave the batch.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import torch
from torch import Tensor

from energymt.decoding.inference import inference
from energymt.errors import ConfigurationError, DivergenceError
from energymt.losses import with_end
from energymt.models.translator import AutoregressiveModel
from energymt.noise import Noise
from energymt.operators import row_blocks
from energymt.policy import stop_log_probs, token_log_probs
from energymt.records import Hypothesis, Input, Projection, Source
from energymt.teacher_forcing import teacher_forced

SAMPLE_STREAM = 3  # of the noise; 0 to 2 are those of the energies
FINE = 1.0 / (1 << 24)  # of one draw; a second one fills in below it


@dataclass(frozen=True)
class Samples:
    """R = B · K translations, those of a source side by side. Ids hold neither start nor end token."""

    ids_RT: Tensor  # at least one column, padded with the vocabulary's padding
    mask_RT: Tensor  # bool
    ended_R: Tensor  # bool: the end token was drawn, and not put there at the greatest length
    count: int
    """K."""

    @property
    def rows_R(self) -> Tensor:
        """The source of each sample."""
        return torch.arange(len(self.ids_RT), device=self.ids_RT.device) // self.count


def sample(
    model: AutoregressiveModel,
    source: Input,
    noise: Noise,
    count: int,
    *,
    max_length: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Samples:
    """Draw `count` translations of each source.

    Args:
        model: the translator; used in eval mode.
        source: B sentences, or recordings.
        noise: names what is drawn; its sentences are those of the batch. Take a stream of its own (`SAMPLE_STREAM`).
        count: K.
        max_length: most tokens of a sample; None: twice the source's tokens and ten; of sound half its
            states and ten.
        temperature: divides the logits.
        top_p: draw from the fewest tokens that have this probability together (nucleus); 1 draws from all.

    Raises:
        ConfigurationError: for impossible numbers.
        DivergenceError: if the model's logits are not numbers.
    """
    if count < 1 or temperature <= 0 or not 0 < top_p <= 1 or (max_length is not None and max_length < 1):
        raise ConfigurationError(
            f"Sampling takes at least one sample, a temperature above 0, top_p in (0, 1] and a greatest length of at "
            f"least one token; got {count}, {temperature:g}, {top_p:g} and {max_length}."
        )
    words, device = model.vocabulary, source.mask_BS.device
    ids_R = (noise.sentence_ids_B[:, None] * count + torch.arange(count, device=device)).flatten()
    noise = replace(noise, sentence_ids_B=ids_R)
    limit_B = source.limits_B
    if max_length is not None:
        limit_B = torch.full_like(limit_B, max_length)
    if model.longest is not None:
        limit_B = limit_B.clamp(max=model.longest)
    rows_R = torch.arange(len(source), device=device).repeat_interleave(count)
    limit_R = limit_B[rows_R]
    drawn_RT = torch.full((len(rows_R), int(limit_R.max())), words.pad_id, device=device)
    length_R, ended_R = torch.zeros_like(rows_R), torch.zeros_like(rows_R, dtype=torch.bool)
    live = torch.arange(len(rows_R), device=device)
    with inference(model):
        state, logits_RV = model.start(model.encode(source).select(rows_R))
        for position in range(drawn_RT.shape[1]):
            token_R = _draw(model, logits_RV, temperature, top_p, noise, position)
            is_end_R = token_R == words.eos_id
            ended_R[live[is_end_R]] = True
            on_R = ~is_end_R
            drawn_RT[live[on_R], position] = token_R[on_R]
            length_R[live[on_R]] = position + 1
            on_R &= position + 1 < limit_R[live]
            if not bool(on_R.any()):
                break
            kept_R = on_R.nonzero().squeeze(1)
            if len(kept_R) < len(live):
                live, token_R, state = live[kept_R], token_R[kept_R], state.select(kept_R)
                noise = replace(noise, sentence_ids_B=noise.sentence_ids_B[kept_R])
            state, logits_RV = model.step(state, token_R)
    width = max(1, int(length_R.max()))
    mask_RT = torch.arange(width, device=device) < length_R[:, None]
    return Samples(drawn_RT[:, :width], mask_RT, ended_R, count)


@overload
def possible(model: AutoregressiveModel, logits: Tensor, *, end: bool = True) -> Tensor: ...
@overload
def possible(model: AutoregressiveModel, logits: Projection, *, end: bool = True) -> Projection: ...
def possible(model: AutoregressiveModel, logits: Tensor | Projection, *, end: bool = True) -> Tensor | Projection:
    """Logits [..., V] with −inf for what stands in no translation: special tokens, and without `end` the end token.

    Of a projection the bias says so.
    """
    if isinstance(logits, Projection):
        bias_V = torch.zeros_like(logits.matrix_VH[:, 0]) if logits.bias_V is None else logits.bias_V
        return replace(logits, bias_V=possible(model, bias_V, end=end))
    words = model.vocabulary
    never = {*words.never_ids, *(() if end else (words.eos_id,))}
    ids = torch.tensor(sorted(token for token in never if token < logits.shape[-1]), device=logits.device)
    return logits.index_fill(-1, ids, -torch.inf)


def _probabilities(model: AutoregressiveModel, logits_RV: Tensor, temperature: float, top_p: float) -> Tensor:
    """Of the next token, [R, V] in float64: what must not stand in a translation has none."""
    logits_RV = possible(model, logits_RV.double() / temperature)
    probs_RV = logits_RV.softmax(-1)
    if top_p < 1.0:
        ranked_RV, order_RV = probs_RV.sort(-1, descending=True)
        ranked_RV = ranked_RV.masked_fill(ranked_RV.cumsum(-1) - ranked_RV >= top_p, 0.0)
        probs_RV = torch.zeros_like(probs_RV).scatter(1, order_RV, ranked_RV)
        probs_RV /= probs_RV.sum(-1, keepdim=True)
    return probs_RV


def _draw(
    model: AutoregressiveModel, logits_RV: Tensor, temperature: float, top_p: float, noise: Noise, position: int
) -> Tensor:
    """One token a row, by the inverse of the cumulative distribution.

    In float64, where 250,000 probabilities add up to 1 with room to spare for the smallest; so a few rows at a time.
    """
    draw_R2 = noise.uniform(1, 0, 2, torch.float64, first=position)[:, 0]
    uniform_R1 = draw_R2[:, :1] - FINE / 2 + draw_R2[:, 1:] * FINE
    places, totals = [], []
    for rows in row_blocks(logits_RV.unsqueeze(1)):
        cumulative_NV = _probabilities(model, logits_RV[rows], temperature, top_p).cumsum(-1)
        totals.append(cumulative_NV[:, -1:])
        places.append(torch.searchsorted(cumulative_NV, uniform_R1[rows] * totals[-1], right=True))
    if not bool(torch.cat(totals).isfinite().all()):
        raise DivergenceError("The translator's probabilities are not numbers: its weights hold NaN or infinity.")
    return torch.cat(places).squeeze(1).clamp(max=logits_RV.shape[1] - 1)


@torch.no_grad()
def candidates(
    model: AutoregressiveModel,
    source: Input,
    count: int,
    *,
    seed: int = 1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_length: int | None = None,
    length_penalty: float = 1.0,
) -> list[list[Hypothesis]]:
    """`count` sampled translations of each source, the most probable first; equal ones stay, each counts as a draw.

    What is drawn depends on the seed and the sentence alone. Scores are those of `autoregressive.decode`, whatever
    `temperature` and `top_p` (see `sample`).
    """
    noise = Noise(seed, 0, _names(source).to(source.mask_BS.device), SAMPLE_STREAM)
    drawn = sample(model, source, noise, count, temperature=temperature, top_p=top_p, max_length=max_length)
    with inference(model):
        logits_RUV = teacher_forced(model, model.encode(source).select(drawn.rows_R), drawn.ids_RT, drawn.mask_RT)
        target_RU, mask_RU = with_end(drawn.ids_RT, drawn.mask_RT, model.vocabulary.eos_id)
        total_R = token_log_probs(logits_RUV, target_RU, mask_RU).sum(1).tolist()
    found: list[list[Hypothesis]] = [[] for _ in range(len(source))]
    for row, (ids, kept, total) in enumerate(zip(drawn.ids_RT, drawn.mask_RT, total_R, strict=True)):
        tokens = tuple(ids[kept].tolist())
        found[row // count].append(Hypothesis(tokens, total / (len(tokens) + 1) ** length_penalty, total))
    return [sorted(hypotheses, key=lambda item: -item.score) for hypotheses in found]


def _names(source: Input) -> Tensor:
    """A number for each sentence or recording, by what it holds alone."""
    if isinstance(source, Source):
        held = [ids[kept].numpy() for ids, kept in zip(source.ids_BS.cpu(), source.mask_BS.cpu(), strict=True)]
    else:
        held = list(source.features_BMF.cpu().numpy())
    return torch.tensor([zlib.crc32(np.ascontiguousarray(row).tobytes()) for row in held])


def sample_log_probs(
    model: AutoregressiveModel, logits_RUV: Tensor | Projection, samples: Samples
) -> tuple[Tensor, Tensor]:
    """log p of each token of the samples, [R, U] with the end token, and the mask of those that were drawn.

    Special tokens have no probability, as in `sample`; an end token that was put at the greatest length does not count.

    Args:
        model: that gave the logits.
        logits_RUV: of `teacher_forced` for the samples.
        samples: drawn before.
    """
    target_RU, mask_RU = _drawn(model, samples)
    return token_log_probs(possible(model, logits_RUV), target_RU, mask_RU), mask_RU


def decision_log_probs(
    model: AutoregressiveModel, logits_RUV: Tensor | Projection, samples: Samples
) -> tuple[Tensor, Tensor]:
    """log p of each decision of the samples to go on or to stop, [R, U], and the mask of those that were taken.

    See `policy.stop_log_probs`; arguments as those of `sample_log_probs`.
    """
    target_RU, mask_RU = _drawn(model, samples)
    end_RU = torch.full_like(target_RU, model.vocabulary.eos_id)
    end_logp_RU = token_log_probs(possible(model, logits_RUV), end_RU, mask_RU)
    positions_U = torch.arange(end_RU.shape[1], device=end_RU.device)
    return stop_log_probs(end_logp_RU, positions_U == samples.mask_RT.sum(1, keepdim=True)), mask_RU


def _drawn(model: AutoregressiveModel, samples: Samples) -> tuple[Tensor, Tensor]:
    """The tokens of the samples with their end tokens, [R, U], and the mask of those that were drawn."""
    target_RU, mask_RU = with_end(samples.ids_RT, samples.mask_RT, model.vocabulary.eos_id)
    lengths_R1 = samples.mask_RT.sum(1, keepdim=True)
    return target_RU, mask_RU.scatter(1, lengths_R1, samples.ended_R[:, None])
