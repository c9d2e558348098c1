"""Translations made worse on purpose: an estimator that only ever sees good ones learns nothing of bad ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def corrupt(text: str, share: float, words: Sequence[str], random: np.random.Generator) -> str:
    """A text in which each word is damaged with probability `share`.

    A damaged word is dropped, said twice, moved behind the next, or replaced by another one: each as likely. Where
    every word would be dropped the text stays as it is, for an empty one teaches nothing.

    Args:
        text: words parted by spaces.
        share: from 0 to 1.
        words: what a word is replaced by, drawn uniformly.
        random: the source of all draws.
    """
    kept: list[str] = []
    waiting: list[str] = []
    for word in text.split():
        kind = random.integers(4) if random.random() < share else -1
        if kind == 2:
            waiting.append(word)
            continue
        if kind != 0:
            kept.append(str(words[random.integers(len(words))]) if kind == 3 else word)
        if kind == 1:
            kept.append(word)
        kept += waiting
        waiting = []
    return " ".join(kept + waiting) or text
