"""Dev values that choose checkpoints: translation quality, and the discrete and the relaxed energy side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from energymt.configuration import TrainingConfig
from energymt.data.batching import EncodedCorpus, StepPlan, collate
from energymt.data.corpus import Corpus
from energymt.decoding.rerank import Translation
from energymt.decoding.translate import DecodingOptions, Translator
from energymt.energies import AutoregressiveEnergy
from energymt.metrics.translation import evaluate
from energymt.models import AutoregressiveModel, NonautoregressiveModel
from energymt.operators import Noise
from energymt.records import Prediction

TOKENS_AT_ONCE = 8192


def translate_dev(
    model: AutoregressiveModel | NonautoregressiveModel, corpus: Corpus, iterations: int = 1
) -> list[Translation]:
    """Greedy (or mask-predict) translations of a dev corpus."""
    options = DecodingOptions(beam=1, length_beam=1, iterations=iterations, tokens_per_batch=TOKENS_AT_ONCE)
    return [
        candidates[0] for candidates in Translator(model, options).translate(corpus.source, prefixes=corpus.prefixes)
    ]


def translation_scores(
    model: AutoregressiveModel | NonautoregressiveModel,
    corpus: Corpus,
    iterations: int = 1,
    *,
    outputs: Sequence[Translation] | None = None,
) -> dict[str, float]:
    """BLEU, chrF, repeated-token rate and length ratio of `translate_dev`; of `outputs` where that was done already."""
    outputs = translate_dev(model, corpus, iterations) if outputs is None else outputs
    assert corpus.target is not None
    references = [model.vocabulary.as_plain_text(text) for text in corpus.target]
    scores = evaluate(
        corpus.source,
        [text for text, _ in outputs],
        references,
        hypothesis_tokens=[hypothesis.ids for _, hypothesis in outputs],
        reference_tokens=[model.vocabulary.encode(text) for text in corpus.target],
        tokenize="none" if corpus.segmented else "13a",
    ).overall
    return {
        "dev/bleu": scores.bleu,
        "dev/chrf": scores.chrf,
        "dev/repetition": scores.repetition,
        "dev/length_ratio": scores.length_ratio,
    }


@torch.no_grad()
def energy_scores(
    model: NonautoregressiveModel, energy: AutoregressiveEnergy, dev: EncodedCorpus, config: TrainingConfig
) -> dict[str, float]:
    """Discrete and relaxed energy of one pass at oracle lengths, in nats per sentence, and their gap.

    A relaxed energy that falls while the discrete one does not is the sign that the network cheats the relaxation.
    """
    plan = StepPlan(dev, TOKENS_AT_ONCE, TOKENS_AT_ONCE, seed=0)
    energy.teacher.to(model.device)
    discrete = relaxed = 0.0
    count = 0
    for step in plan.epoch(0):
        for indices in step:
            batch = collate(dev, indices).to(model.device)
            mask_BT = batch.target_mask_BT
            logits_BTV = model.predict(model.encode(batch.source), model.unseen(mask_BT), mask_BT)
            noise = Noise(config.seed, 0, batch.sentence_ids_B)
            relaxed += energy(batch.source, Prediction(logits_BTV, mask_BT, noise=noise)).sum().item()
            discrete += energy.discrete(batch.source, logits_BTV.argmax(-1), mask_BT).sum().item()
            count += len(batch)
    return {
        "dev/energy": discrete / count,
        "dev/energy_relaxed": relaxed / count,
        "dev/energy_gap": (discrete - relaxed) / count,
    }
