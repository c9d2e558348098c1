"""Ranking the candidates of one source sentence, or a finished n-best list: tokens by an energy, text by a score.

An energy is better where it is lower, a score where it is higher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Protocol, runtime_checkable

import torch
from sacrebleu.metrics.chrf import CHRF
from torch import Tensor

from energymt.energies import Energy
from energymt.records import Hypothesis, Prediction, Source

Rank = Callable[[Source, Tensor, Tensor], Tensor]
"""(R source rows, ids_RT, mask_RT) -> score_R, higher is better."""

TextScore = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""(R source texts, R translations) -> R scores, higher is better; like `energymt.models.scoring.score_lines`."""

Utility = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]
"""(R source texts, R translations, R references) -> R scores, higher is better."""

Translation = tuple[str, Hypothesis]
"""The text and the hypothesis that it was made from."""


@runtime_checkable
class DiscreteEnergy(Protocol):
    """An energy with a short way for discrete tokens, like `AutoregressiveEnergy`."""

    def discrete(self, source: Source, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """The energy of each sentence, [B]."""
        ...


def energy_of(energy: Energy, source: Source, ids_RT: Tensor, mask_RT: Tensor, vocabulary_size: int) -> Tensor:
    """The energy of discrete translations, [R]; the prediction puts all its mass on the tokens given."""
    if isinstance(energy, DiscreteEnergy):
        return energy.discrete(source, ids_RT, mask_RT)
    with torch.no_grad():
        return energy(source, Prediction.of_ids(ids_RT, mask_RT, vocabulary_size))


def by_energy(energy: Energy, vocabulary_size: int) -> Rank:
    """A ranking for `mask_predict.decode`: minus the energy. `vocabulary_size` is the width of the logits."""
    return lambda source, ids_RT, mask_RT: -energy_of(energy, source, ids_RT, mask_RT, vocabulary_size)


def rerank(
    hypotheses: Sequence[Sequence[Hypothesis]], source: Source, energy: Energy, vocabulary_size: int
) -> list[list[Hypothesis]]:
    """The n-best lists of B source sentences, each sorted by energy, which `extra["energy"]` then holds.

    Hypotheses of equal energy keep their order; one whose energy is not a number comes last.
    """
    device = source.ids_BS.device
    flat = [hypothesis for candidates in hypotheses for hypothesis in candidates]
    if not flat:
        return [[] for _ in hypotheses]
    longest = max(1, *(len(hypothesis.ids) for hypothesis in flat))
    # Padding takes any token: the mask says that nobody reads it.
    ids_RT = torch.tensor([[*hypothesis.ids, *[0] * (longest - len(hypothesis.ids))] for hypothesis in flat])
    lengths_R = torch.tensor([len(hypothesis.ids) for hypothesis in flat])
    mask_RT = torch.arange(longest) < lengths_R[:, None]
    rows_R = torch.arange(len(hypotheses)).repeat_interleave(torch.tensor([len(found) for found in hypotheses]))
    energy_R = energy_of(
        energy, source.select(rows_R.to(device)), ids_RT.to(device), mask_RT.to(device), vocabulary_size
    )
    scored = iter(
        [hypothesis.with_extra(energy=value) for hypothesis, value in zip(flat, energy_R.tolist(), strict=True)]
    )
    lists = [[next(scored) for _ in candidates] for candidates in hypotheses]
    return [sorted(candidates, key=lambda found: _nan_last(found.extra["energy"])) for candidates in lists]


def rerank_texts(
    translations: Sequence[Sequence[Translation]], sources: Sequence[str], score: TextScore
) -> list[list[Translation]]:
    """The n-best lists of B source texts, each sorted by the score of its texts, which `extra["quality"]` then holds.

    Translations of equal score keep their order; one whose score is not a number comes last.
    """
    originals = [source for source, found in zip(sources, translations, strict=True) for _ in found]
    values = iter(score(originals, [text for found in translations for text, _ in found]))
    lists = [[(text, item.with_extra(quality=next(values))) for text, item in found] for found in translations]
    return [sorted(found, key=lambda pair: _nan_last(-pair[1].extra["quality"])) for found in lists]


def rerank_by_consensus(
    translations: Sequence[Sequence[Translation]], sources: Sequence[str], utility: Utility
) -> list[list[Translation]]:
    """The n-best lists of B source texts, each sorted by mean utility against its other candidates (MBR).

    `extra["quality"]` then holds it. Every candidate stands for as many references as there are of it, so that for
    candidates that were sampled the mean is a Monte Carlo estimate of the expected utility (Eikema and Aziz 2020). A
    candidate alone has no other, and utility 0. Cost: N² scores for N different candidates.
    """
    asked = dict.fromkeys(
        (source, own, other)
        for source, found in zip(sources, translations, strict=True)
        for own, other in permutations([text for text, _ in found], 2)
    )
    columns = [list(side) for side in zip(*asked, strict=True)] if asked else ([], [], [])
    values = dict(zip(asked, utility(*columns), strict=True))
    lists = []
    for source, found in zip(sources, translations, strict=True):
        ranked = []
        for place, (text, item) in enumerate(found):
            others = [other for other, _ in (*found[:place], *found[place + 1 :])]
            mean = sum(values[source, text, other] for other in others) / max(1, len(others))
            ranked.append((text, item.with_extra(quality=mean)))
        lists.append(ranked)
    return [sorted(found, key=lambda pair: _nan_last(-pair[1].extra["quality"])) for found in lists]


def chrf_utility(sources: Sequence[str], translations: Sequence[str], references: Sequence[str]) -> list[float]:
    """Sentence chrF2 from 0 to 1, which reads no source: the utility where no metric has been learnt."""
    metric = CHRF()
    pairs = zip(translations, references, strict=True)
    return [metric.sentence_score(translation, [reference]).score / 100 for translation, reference in pairs]


def _nan_last(value: float) -> tuple[bool, float]:
    return (value != value, value)
