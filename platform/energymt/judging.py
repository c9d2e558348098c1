"""Judged translations without people: outputs of translators, whole and damaged, scored by chrF against references.

What a quality estimator is trained on where no human judgements are at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sacrebleu.metrics.chrf import CHRF

from energymt.data.corpus import Corpus
from energymt.data.corruption import corrupt
from energymt.decoding.translate import DecodingOptions, Translator
from energymt.models import load_translator
from energymt.storage import fetch

COLUMNS = ("source", "translation", "score", "reference", "system")


@dataclass(frozen=True)
class JudgedLine:
    """One translation of one source."""

    source: str
    translation: str
    score: float
    """Sentence chrF2 against the reference, from 0 to 1."""
    reference: str
    system: str

    def __str__(self) -> str:
        return "\t".join((self.source, self.translation, f"{self.score:.4f}", self.reference, self.system))


def judge(
    addresses: Sequence[str], corpus: Corpus, options: DecodingOptions, damage: Sequence[float], seed: int
) -> Iterator[JudgedLine]:
    """Translations of `corpus` by each model, each of them also damaged; empty translations are left out.

    Args:
        addresses: of translators.
        corpus: with references.
        options: of decoding.
        damage: shares of words to damage, one more version of every translation for each different one.
        seed: of the damage.
    """
    assert corpus.target is not None
    metric = CHRF()
    folders = [fetch(address) for address in addresses]  # a wrong one is found before hours of work
    for number, (address, folder) in enumerate(zip(addresses, folders, strict=True)):
        model = load_translator(folder)
        references = [model.vocabulary.as_plain_text(text) for text in corpus.target]
        words = sorted({word for text in references for word in text.split()})
        # On one line and without tabs, whatever a model writes.
        found = [" ".join(best[0].split()) for best, *_ in Translator(model, options).translate(corpus.source)]
        for share in dict.fromkeys((0.0, *damage)):
            random = np.random.default_rng([seed, number, round(share * 1e6)])
            system = address if not share else f"{address} ({share:.0%} damaged)"
            for source, output, reference in zip(corpus.source, found, references, strict=True):
                translation = corrupt(output, share, words, random) if share else output
                if translation:
                    score = metric.sentence_score(translation, [reference]).score / 100
                    yield JudgedLine(source, translation, score, reference, system)
