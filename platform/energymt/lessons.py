"""What a quality estimator is taught by in QE-DYNAMIC: gold translations against samples of the present translator."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from energymt.data.batching import pad
from energymt.data.bridge import Bridge
from energymt.decoding.inference import inference
from energymt.decoding.sampling import possible, sample
from energymt.losses import with_end
from energymt.models import AutoregressiveModel
from energymt.models.learning import Lesson
from energymt.noise import Noise
from energymt.policy import token_log_probs
from energymt.records import Batch, Source, StepBatch, text_of
from energymt.teacher_forcing import teacher_forced

logger = logging.getLogger(__name__)
LESSON_STREAM = 4  # of the noise


def make_lesson(
    model: AutoregressiveModel,
    bridge: Bridge,
    batches: Sequence[Batch],
    *,
    seed: int,
    step: int,
    chosen: Tensor,
    samples: int,
    longest: int,
) -> Lesson:
    """Groups of a gold translation and the samples that differ from it, in the estimator's ids.

    Gold and samples are text that the estimator splits, so that nothing but their wording tells them apart. The
    log-probability of each is the translator's mean over its tokens; among them the end token, where it was drawn. A
    gold that holds a special token, such as a literal `<mask>`, is one that no translator says: its group is left out.

    Args:
        model: the translator; samples are drawn in eval mode.
        bridge: from its vocabulary to the estimator's.
        batches: labelled pairs, on the translator's device.
        seed, step: of the samples.
        chosen: the sentence ids of the pairs to take; those that are not among the batches are another worker's.
        samples: of each.
        longest: most tokens of a sample.
    """
    sources: list[list[int]] = []
    texts: list[str] = []
    means: list[float] = []
    sizes: list[int] = []
    for batch in batches:
        batch = _of(batch, chosen)
        if not len(batch):
            continue
        rows_R, ids, mean_R = _candidates(model, batch, seed, step, samples, longest)
        words = [bridge.translator.decode(row) for row in ids]
        gold = len(mean_R) // (samples + 1)
        said = [place for place in range(gold) if math.isfinite(mean_R[place])]
        if len(said) < gold:
            logger.warning(
                "Special tokens stand in %d translations of step %d: no lesson of them.", gold - len(said), step
            )
        for place in said:
            others = [row for row in range(gold, len(ids)) if rows_R[row] == place and words[row] != words[place]]
            texts += [words[place], *(words[row] for row in others)]
            means += [mean_R[place], *(mean_R[row] for row in others)]
            sizes.append(1 + len(others))
        source = bridge.source(text_of(batch.source)).select(torch.tensor(said, dtype=torch.long))
        sources += [ids[kept].tolist() for ids, kept in zip(source.ids_BS.cpu(), source.mask_BS.cpu(), strict=True)]
    ids_CT, mask_CT = bridge.split(texts)
    lesson_source = Source(*pad(sources, bridge.estimator.pad_id))
    return Lesson(lesson_source, ids_CT, mask_CT, torch.tensor(sizes, dtype=torch.long), torch.tensor(means))


def chosen_pairs(batch: StepBatch, seed: int, count: int) -> Tensor:
    """The sentence ids of `count` labelled pairs of a step, drawn alike by all workers, however the step is cut."""
    here = [row for micro in batch.micro_batches for row in micro.sentence_ids_B.tolist()]
    ids_N = torch.tensor(sorted(batch.sentence_ids or here), dtype=torch.long)
    draw_N = Noise(seed, batch.step, ids_N, LESSON_STREAM).uniform(1, 0, 1, torch.float64).flatten()
    return ids_N[draw_N.argsort(stable=True)[:count]]


def _of(batch: Batch, chosen: Tensor) -> Batch:
    """The sentences of a batch that are chosen."""
    rows_R = torch.isin(batch.sentence_ids_B, chosen.to(batch.sentence_ids_B.device)).nonzero().squeeze(1)
    return Batch(
        batch.sentence_ids_B[rows_R], batch.source.select(rows_R), batch.target_BT[rows_R], batch.target_mask_BT[rows_R]
    )


@torch.no_grad()
def _candidates(
    model: AutoregressiveModel, batch: Batch, seed: int, step: int, count: int, longest: int
) -> tuple[list[int], list[list[int]], list[float]]:
    """Golds, then the samples: the source of each, its ids, and its mean log-probability."""
    noise = Noise(seed, step, batch.sentence_ids_B, LESSON_STREAM)
    drawn = sample(model, batch.source, noise, count, max_length=longest)
    places = torch.arange(len(batch), device=drawn.ids_RT.device)
    rows_R = torch.cat([places, drawn.rows_R])
    ids = [row[kept].tolist() for row, kept in zip(batch.target_BT, batch.target_mask_BT, strict=True)]
    ids += [row[kept].tolist() for row, kept in zip(drawn.ids_RT, drawn.mask_RT, strict=True)]
    ids_RT, mask_RT = (part.to(rows_R.device) for part in pad(ids, model.vocabulary.pad_id))
    with inference(model):
        memory = model.encode(batch.source).select(rows_R)
        logits_RUV = possible(model, teacher_forced(model, memory, ids_RT, mask_RT))
        target_RU, mask_RU = with_end(ids_RT, mask_RT, model.vocabulary.eos_id)
        ended_R = torch.cat([torch.ones_like(places, dtype=torch.bool), drawn.ended_R])
        mask_RU = mask_RU.scatter(1, mask_RT.sum(1, keepdim=True), ended_R[:, None])
        logp_RU = token_log_probs(logits_RUV, target_RU, mask_RU)
        mean_R = logp_RU.sum(1) / mask_RU.sum(1).clamp(min=1)
    return rows_R.tolist(), ids, mean_R.tolist()
