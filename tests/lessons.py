"""Lessons for tiny estimators: real sentences, the reference first in each group, then worse translations."""

import torch

from energymt.models.estimator import QualityEstimator
from energymt.models.learning import Lesson
from tests import estimators

GROUPS = [
    [estimators.REFERENCES[0], estimators.TRANSLATIONS[1], "a dog", "a a a a"],
    [estimators.REFERENCES[1], estimators.TRANSLATIONS[0]],
    [estimators.REFERENCES[2], "a woman .", ""],
    [estimators.REFERENCES[3], "a dog plays in the garden ."],
    [estimators.REFERENCES[4], estimators.TRANSLATIONS[4], "the meadow"],
]


def lesson(model: QualityEstimator, first: int = 0, last: int = len(GROUPS), seed: int = 1) -> Lesson:
    """The groups from `first` on, `last` not among them, with log-probabilities that depend on the group alone."""
    groups = GROUPS[first:last]
    target = estimators.target_of(model, [text for group in groups for text in group])
    assert target.ids_BT is not None
    log_probs = [
        -torch.rand(len(GROUPS[number]), generator=torch.Generator().manual_seed(seed * 100 + number))
        for number in range(first, last)
    ]
    return Lesson(
        estimators.source_of(model, estimators.SOURCES[first:last]),
        target.ids_BT,
        target.mask_BT,
        torch.tensor([len(group) for group in groups]),
        torch.cat(log_probs),
    )
