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
    addresses: Sequence[str],
    corpus: Corpus,
    options: DecodingOptions,
    damage: Sequence[float] = (),
    seed: int = 1,
    *,
    unrelated: float = 0.0,
    cut: float = 0.0,
    twice: float = 0.0,
) -> Iterator[JudgedLine]:
    """Translations of `corpus` by each model, each of them also damaged; empty translations are left out.

    What a translator hardly ever does, an estimator must see too, or it will not know that it is bad: a fluent sentence
    that translates something else, a good one that stops half-way, and one that comes twice.

    Args:
        addresses: of translators.
        corpus: with references.
        options: of decoding.
        damage: shares of words to damage, one more version of every translation for each different one.
        seed: of all draws.
        unrelated: share of the sources that also get the translation of another one.
        cut: share of the sources that also get the beginning of their translation alone.
        twice: share of the sources that also get their translation two times over.
    """
    assert corpus.target is not None
    metric = CHRF()
    folders = [fetch(address) for address in addresses]  # a wrong one is found before hours of work
    for number, (address, folder) in enumerate(zip(addresses, folders, strict=True)):
        model = load_translator(folder)
        references = [model.vocabulary.as_plain_text(text) for text in corpus.target]
        words = sorted({word for text in references for word in text.split()})
        # On one line and without tabs, whatever a model writes.
        outputs = Translator(model, options).translate(corpus.source, prefixes=corpus.prefixes)
        found = [" ".join(best[0].split()) for best, *_ in outputs]
        versions = {address: found}
        for share in dict.fromkeys(share for share in damage if share > 0):
            random = np.random.default_rng([seed, number, round(share * 1e6)])
            versions[f"{address} ({share:.0%} damaged)"] = [corrupt(text, share, words, random) for text in found]
        random = np.random.default_rng([seed, number])
        versions[f"{address} (unrelated)"] = [_other(row, found, unrelated, random) for row in range(len(found))]
        versions[f"{address} (cut)"] = [_beginning(text, cut, random) for text in found]
        versions[f"{address} (twice)"] = [
            f"{text} {text}" if text and random.random() < twice else "" for text in found
        ]
        for system, translations in versions.items():
            for source, translation, reference in zip(corpus.source, translations, references, strict=True):
                if translation:
                    score = metric.sentence_score(translation, [reference]).score / 100
                    yield JudgedLine(source, translation, score, reference, system)


def _other(row: int, texts: Sequence[str], share: float, random: np.random.Generator) -> str:
    """Another of the texts, with this probability; else nothing."""
    other = texts[(row + 1 + int(random.integers(max(1, len(texts) - 1)))) % len(texts)]
    return other if random.random() < share and other != texts[row] else ""


def _beginning(text: str, share: float, random: np.random.Generator) -> str:
    """The first words of a text, one at least and not all, with this probability; else nothing."""
    words = text.split()
    length = int(random.integers(1, max(2, len(words))))
    return " ".join(words[:length]) if random.random() < share and len(words) > 1 else ""
