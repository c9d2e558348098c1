"""What the dev set says of a translator, autoregressive or not, that is trained to please an estimator.

Scores of more than one judge, how far it has gone from where it started, and whether it cheats (`metrics.indicators`,
`metrics.alarms`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from energymt.data.batching import pad
from energymt.data.corpus import Corpus
from energymt.decoding.inference import inference
from energymt.decoding.rerank import TextScore, Translation
from energymt.decoding.sampling import possible
from energymt.energies import QualityEnergy
from energymt.losses import with_end
from energymt.metrics.alarms import PREFIX, AlarmConfig, alarms
from energymt.metrics.detectors import FOOLED
from energymt.metrics.gaming import run_probes
from energymt.metrics.indicators import indicators
from energymt.models import AutoregressiveModel
from energymt.models.loading import AnyTranslator
from energymt.noise import Noise
from energymt.records import Prediction, Source

logger = logging.getLogger(__name__)

SENTENCES = 256  # of dev that soft scores and divergences are taken of
PROBED, TOLD_APART = 128, 50  # sentences that an estimator is probed with, and the fewest of a kind that say anything
LOGITS = 1 << 24  # numbers in a tensor [B, U, V] of them
ENTROPY, DIVERGENCE, SOFT, STOP = "dev/entropy", "dev/kl_to_start", "dev/quality_soft", "dev/stop"
COVERAGE, MASS = "dev/coverage", "dev/covered_mass"


@dataclass
class Monitor:
    """The judges of one run.

    Args:
        model, start: the translator, and a frozen copy of it as it was at the start.
        corpus: dev text with references.
        energy: that it is trained by.
        judges: name -> scores of text; `quality` is the one that trains, `quality_frozen` the same as it was at the
            start where it learns, `judge` a held-out one.
        config: of the alarms.
        stops: whether an alarm ends the run.
        history: dev values so far, the first those of the start.
    """

    model: AnyTranslator
    start: AnyTranslator
    corpus: Corpus
    energy: QualityEnergy
    judges: Mapping[str, TextScore]
    config: AlarmConfig
    stops: bool
    history: list[dict[str, float]] = field(default_factory=list)
    probed: dict[str, float] = field(default_factory=dict)  # of an estimator that does not change

    def look(self, outputs: Sequence[Translation], known: Mapping[str, float]) -> dict[str, float]:
        """Dev values beside those that are known, alarms among them; the history is one longer from then on.

        Args:
            outputs: a translation of each sentence of the corpus.
            known: dev values that alarms depend on (`dev/chrf`), and means of training values (`train/gradient_ratio`).
        """
        words = self.model.vocabulary
        sources = [words.as_plain_text(text) for text in self.corpus.source]
        references = [words.as_plain_text(text) for text in self.corpus.target or []]
        texts = [text for text, _ in outputs]
        scores = {name: np.array(judge(sources, texts), dtype=np.float64) for name, judge in self.judges.items()}
        values = {f"dev/{name}": float(np.nanmean(found)) for name, found in scores.items()}
        if not self.history:
            values[COVERAGE] = self.energy.bridge.coverage
            if values[COVERAGE] < 1.0:
                sentence = (
                    "The estimator knows %.1f %% of the translator's pieces; the others are unknown tokens to it."
                )
                logger.warning(sentence, 100 * values[COVERAGE])
        if "quality_frozen" in scores:
            values["dev/drift"] = float(np.nanmean(np.abs(scores["quality"] - scores["quality_frozen"])))
        values |= self._distance([hypothesis.ids for _, hypothesis in outputs], scores["quality"])
        signs = indicators(
            sources,
            texts,
            references,
            token_ids=[hypothesis.ids for _, hypothesis in outputs],
            max_lengths=self._limits(),
            scores=np.nan_to_num(scores["quality"], nan=float(np.nanmean(scores["quality"]))).tolist(),
            score=self.judges["quality"],
        )
        values |= {f"{PREFIX}{name}": value for name, value in signs.items()}
        if not self.probed or "quality_frozen" in self.judges:
            self.probed = self._probe(sources, references)
        values |= self.probed
        self.history.append({**known, **values})
        raised = alarms(self.history, self.config)
        for alarm in raised:
            logger.warning("%s: %s", alarm.detector, alarm.sentence)
            values[f"{PREFIX}alarm/{alarm.detector}"] = 1.0
        values[f"{PREFIX}alarms"] = float(len(raised))
        if raised and self.stops:
            values[STOP] = 1.0  # see `training.Trainable.evaluate`
        return values

    def _probe(self, sources: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        """Shares of sentences whose wrong translation is liked as well as the right one: by kind, and the highest."""
        found = run_probes(self.judges["quality"], sources[:PROBED], references[:PROBED])
        losses = {
            f"{FOOLED}/{result.name.replace(' ', '_')}": 1.0 - result.wins.value
            for result in found
            if result.sentences >= TOLD_APART
        }
        return {**losses, FOOLED: max(losses.values())} if losses else {}

    def _distance(self, ids: Sequence[Sequence[int]], scores_N: NDArray[np.float64]) -> dict[str, float]:
        """Entropy and divergence from the start in nats per token, and the score of the soft tokens.

        Of some sentences; ends are counted where a translator says them. The soft score is that of the text of all, and
        how far it is from the text's on those. With it comes the probability that is on pieces which the estimator
        knows: what is missing to 1 it reads as unknown tokens.
        """
        chosen = [row for row in range(min(SENTENCES, len(ids))) if len(ids[row])]
        entropy = divergence = 0.0
        tokens, soft, masses = 0, dict[int, float](), list[float]()
        with inference(self.model):
            for rows in self._batches(chosen, ids):
                encoded = [self.model.vocabulary.encode_source(self.corpus.inputs[row]) for row in rows]
                source = Source(*pad(encoded, self.model.vocabulary.pad_id)).to(self.model.device)
                ids_BT, mask_BT = (part.to(self.model.device) for part in pad([list(ids[r]) for r in rows], 0))
                logp_NV, prediction = _said(self.model, source, ids_BT, mask_BT)
                start_NV, _ = _said(self.start, source, ids_BT, mask_BT)
                probs_NV = logp_NV.exp()
                tokens += len(probs_NV)
                entropy -= float((probs_NV * logp_NV.nan_to_num(neginf=0.0)).sum())
                divergence += float((probs_NV * (logp_NV - start_NV).nan_to_num(nan=0.0)).sum())
                noise = Noise(0, 0, torch.tensor(rows, device=ids_BT.device))
                energy_B = self.energy(source, replace(prediction, noise=noise))
                soft |= dict(zip(rows, (-energy_B).tolist(), strict=True))
                masses += self.energy.covered_mass(prediction).tolist()
        values = {ENTROPY: entropy / max(1, tokens), DIVERGENCE: divergence / max(1, tokens)}
        if soft:
            lead = float(np.nanmean(list(soft.values()))) - float(np.nanmean(scores_N[list(soft)]))
            values |= {SOFT: float(np.nanmean(scores_N)) + lead, MASS: sum(masses) / len(masses)}
        return values

    def _limits(self) -> list[int] | None:
        """The most tokens that each translation may have; None where nothing bounds them."""
        if isinstance(self.model, AutoregressiveModel):
            words = self.model.vocabulary
            return [2 * (len(words.encode_source(text)) - 1) + 10 for text in self.corpus.inputs]
        return None if self.model.longest is None else [self.model.longest] * len(self.corpus.source)

    def _batches(self, rows: Sequence[int], ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Rows of like length, few enough that their logits are no larger than LOGITS."""
        room = max(1, LOGITS // self.model.vocabulary.size)
        batch: list[int] = []
        for row in sorted(rows, key=lambda row: -len(ids[row])):
            if batch and (len(batch) + 1) * (len(ids[batch[0]]) + 1) > room:
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch


def _said(model: AnyTranslator, source: Source, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Prediction]:
    """Log-probabilities [N, V] where the N tokens (and ends) of translations stand, and what an energy reads."""
    if isinstance(model, AutoregressiveModel):
        logits_BUV = model.decode(model.encode(source), ids_BT, mask_BT)
        _, mask_BU = with_end(ids_BT, mask_BT, model.vocabulary.eos_id)
        logp_NV = possible(model, logits_BUV[mask_BU]).float().log_softmax(-1)
        return logp_NV, Prediction(possible(model, logits_BUV[:, :-1], end=False), mask_BT, ids_BT)
    logits_BTV = model.predict(model.encode(source), model.unseen(mask_BT), mask_BT)
    return logits_BTV[mask_BT].float().log_softmax(-1), Prediction(logits_BTV, mask_BT)
