"""Greedy and beam search for an autoregressive translator.

A hypothesis of n tokens has the total log-probability of its n tokens and of the end token behind them, and

    score = total / (n + 1) ** length_penalty

so `total` is minus the discrete energy of the same model. Where a sentence reaches its greatest length, the end token
is the only continuation, at the model's own probability.

Cost: one decoder step on B · K rows a token, with cache; sentences that are done leave the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor

from energymt.decoding.inference import inference
from energymt.errors import ConfigurationError, DivergenceError
from energymt.models.translator import AutoregressiveModel, Memory
from energymt.records import Hypothesis, Input

NOTHING = float("-inf")


def decode(
    model: AutoregressiveModel,
    source: Input,
    *,
    beam: int = 1,
    max_length: int | Sequence[int] | None = None,
    length_penalty: float = 1.0,
    n_best: int = 1,
    patience: float = 1.0,
) -> list[list[Hypothesis]]:
    """The best translations that the search finds, up to `n_best` a sentence, best first.

    Args:
        model: the translator; used in eval mode.
        source: B sentences, or recordings.
        beam: running hypotheses a sentence (K). One is greedy search: the first end token ends the sentence.
        max_length: most tokens of a translation, without the end token, for all or for each sentence;
            None: twice the source's tokens and ten; of sound half its states and ten.
        length_penalty: exponent of the length in the score, at least 0. 0 ranks by total, 1 by mean log-probability.
        n_best: hypotheses to return a sentence, at most `beam`.
        patience: at least 1. A sentence is done when K · patience of its hypotheses have ended; 1 is the usual rule.
            It is done earlier when no running hypothesis can still enter its n-best list, so that infinity finds
            whatever a beam of K can find.

    Raises:
        ConfigurationError: for impossible numbers.
        DivergenceError: if the model's logits are not numbers.
    """
    if not 1 <= n_best <= beam:
        raise ConfigurationError(f"A beam of {beam} holds no {n_best} best translations: choose 1 <= n_best <= beam.")
    if length_penalty < 0:
        raise ConfigurationError(f"The length penalty is {length_penalty} and must be at least 0.")
    if not patience >= 1:
        raise ConfigurationError(f"The patience is {patience} and must be at least 1.")
    limits = _limits(model, source, max_length)
    with inference(model):
        memory = model.encode(source)
        if beam == 1:
            found = [[hypothesis] for hypothesis in _greedy(model, memory, limits, length_penalty)]
        else:
            found = _beam(model, memory, limits, beam, length_penalty, n_best, beam * patience)
    if not all(hypotheses and hypotheses[0].total > NOTHING for hypotheses in found):
        raise DivergenceError("The translator gives no translation a finite score: its weights hold NaN or infinity.")
    return found


def _limits(model: AutoregressiveModel, source: Input, max_length: int | Sequence[int] | None) -> list[int]:
    """The most tokens of each translation."""
    if max_length is None:
        limits = source.limits_B.tolist()
    elif isinstance(max_length, int):
        limits = [max_length] * len(source)
    else:
        limits = list(max_length)
    if len(limits) != len(source) or min(limits, default=0) < 0:
        raise ConfigurationError("Give one greatest length, at least 0, or one for each sentence of the batch.")
    if model.longest is None:
        return limits
    return [min(limit, model.longest) for limit in limits]


def _log_probabilities(model: AutoregressiveModel, logits_RV: Tensor, full: list[int], length: int) -> Tensor:
    """log p of the next token, -inf for what must not come next; the rows `full` can only end."""
    # Forbidden tokens are not renormalised away: the total stays the model's own log-probability.
    logp_RV = logits_RV.float().log_softmax(-1)
    logp_RV[:, [token for token in model.vocabulary.never_ids if token < logp_RV.shape[1]]] = NOTHING
    end_id = model.vocabulary.eos_id
    ends = logp_RV[full, end_id]
    if length == 0:
        logp_RV[:, list(model.vocabulary.never_first_ids)] = NOTHING
    if full:
        logp_RV[full] = NOTHING
        logp_RV[full, end_id] = ends
    return logp_RV


def _greedy(model: AutoregressiveModel, memory: Memory, limits: list[int], length_penalty: float) -> list[Hypothesis]:
    """The most probable token at each step."""
    ids: list[list[int]] = [[] for _ in limits]
    totals = [0.0] * len(limits)
    live = list(range(len(limits)))  # the sentence of each row
    state, logits_RV = model.start(memory)
    for length in count():
        full = [row for row, sentence in enumerate(live) if limits[sentence] == length]
        logp_R, next_R = _log_probabilities(model, logits_RV, full, length).max(-1)
        kept = []
        for row, (sentence, logp, token) in enumerate(zip(live, logp_R.tolist(), next_R.tolist(), strict=True)):
            totals[sentence] += logp
            if token != model.vocabulary.eos_id and length < limits[sentence]:
                ids[sentence].append(token)
                kept.append(row)
        if not kept:
            break
        if len(kept) < len(live):
            rows_R = torch.tensor(kept, device=next_R.device)
            live, next_R, state = [live[row] for row in kept], next_R[rows_R], state.select(rows_R)
        state, logits_RV = model.step(state, next_R)
    return [_hypothesis(tokens, total, length_penalty) for tokens, total in zip(ids, totals, strict=True)]


def _beam(
    model: AutoregressiveModel,
    memory: Memory,
    limits: list[int],
    beam: int,
    length_penalty: float,
    n_best: int,
    enough: float,
) -> list[list[Hypothesis]]:
    """Beam search. J rows a sentence: one at first, then up to `beam`; C candidates a sentence and step."""
    end_id = model.vocabulary.eos_id
    found: list[list[Hypothesis]] = [[] for _ in limits]
    ended = [0] * len(limits)
    live = list(range(len(limits)))  # the sentence of each group of J rows
    state, logits_RV = model.start(memory)
    total_BJ = logits_RV.new_zeros(len(limits), 1, dtype=torch.float32)
    history_RT = torch.empty(len(limits), 0, dtype=torch.long, device=logits_RV.device)
    for length in count():
        sentences, J = total_BJ.shape
        full = [b * J + j for b, sentence in enumerate(live) if limits[sentence] == length for j in range(J)]
        logp_RV = _log_probabilities(model, logits_RV, full, length)
        V = logp_RV.shape[1]
        # 2 K candidates: at most J <= K of them end, so K that go on are among them.
        total_BJV = logp_RV.view(sentences, J, V).add_(total_BJ.unsqueeze(2))
        total_BC, flat_BC = total_BJV.flatten(1).topk(min(2 * beam, J * V))
        first_B1 = torch.arange(0, sentences * J, J, device=flat_BC.device).unsqueeze(1)
        row_BC, token_BC = first_B1 + flat_BC // V, flat_BC % V
        ends_BC = token_BC == end_id

        # An end token counts when it is among the K best continuations.
        at_b, at_c = (ends_BC & (total_BC > NOTHING))[:, :beam].nonzero(as_tuple=True)
        at_end = zip(at_b.tolist(), history_RT[row_BC[at_b, at_c]].tolist(), total_BC[at_b, at_c].tolist(), strict=True)
        for b, tokens, total in at_end:
            ended[live[b]] += 1
            kept = found[live[b]]
            kept.append(_hypothesis(tokens, total, length_penalty))
            kept.sort(key=lambda hypothesis: -hypothesis.score)
            del kept[n_best:]

        total_BJ, choice_BJ = total_BC.masked_fill(ends_BC, NOTHING).topk(min(beam, total_BC.shape[1]))
        going_on = [
            b
            for b, (sentence, best) in enumerate(zip(live, total_BJ[:, 0].tolist(), strict=True))
            if ended[sentence] < enough
            and _may_improve(found[sentence], best, limits[sentence], length_penalty, n_best)
        ]
        if not going_on:
            return found
        on_B = torch.tensor(going_on, device=flat_BC.device)
        total_BJ, choice_BJ = total_BJ[on_B], choice_BJ[on_B]
        rows_R = row_BC[on_B].gather(1, choice_BJ).flatten()
        next_R = token_BC[on_B].gather(1, choice_BJ).flatten()
        history_RT = torch.cat([history_RT[rows_R], next_R.unsqueeze(1)], dim=1)
        same_rows = len(going_on) == sentences and total_BJ.shape[1] == J
        state = state.reorder(rows_R) if same_rows else state.select(rows_R)
        live = [live[b] for b in going_on]
        state, logits_RV = model.step(state, next_R)
    raise AssertionError("unreachable: every sentence ends at its greatest length")


def _may_improve(found: list[Hypothesis], total: float, limit: int, length_penalty: float, n_best: int) -> bool:
    """Whether the best running hypothesis of a sentence could still enter its n-best list.

    Its total can only fall, and the greatest divisor is that of the greatest length: total / (limit + 1) ** penalty
    is an upper bound of any score that grows out of it.
    """
    if not total > NOTHING:
        return False
    return len(found) < n_best or total / (limit + 1) ** length_penalty > found[-1].score


def _hypothesis(tokens: list[int], total: float, length_penalty: float) -> Hypothesis:
    return Hypothesis(tuple(tokens), total / (len(tokens) + 1) ** length_penalty, total)
