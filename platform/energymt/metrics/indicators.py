"""Indicators of metric gaming: what a translator's outputs look like when it has learned to please an estimator.

An estimator has holes, and a translator that follows its gradient finds them: outputs that are too short or too long,
in another language, copied, repeated, the same for many sources, or with other numbers score high (He et al. 2024;
Yan et al. 2023; Amrhein and Sennrich 2022; Zouhar et al. 2024). None of these needs the estimator to be seen, and each
costs less than decoding. Whether a value is wrong depends on that of the model at the start: see `alarms`.

| indicator | definition | honest |
| --- | --- | --- |
| length_ratio_5, _50, _95 | quantiles of output tokens / reference tokens of a sentence | around 1 |
| empty | share of outputs without a visible character | 0 |
| short | share of outputs of at most two words whose reference has more | 0 |
| at_limit | share of outputs as long as the decoder may make them | 0 |
| known_tokens | share of output tokens that some reference has; low in another language of the same script | 0.9 |
| script_share | what the shares of letters by script of outputs and references have in common (Σ of minima) | 1 |
| repeated | share of outputs in which an n-gram (n from 1 to 7) comes more than three times, and more than | 0.01 |
| | two times more often than any in the source (He et al. 2024) | |
| distinct_2 | distinct / all pairs of neighbouring tokens, over the same of the references | around 1 |
| compression | bytes of text / bytes after zlib, over the same of the references; high repeats itself | around 1 |
| copied_tokens | share of output tokens that the source has and the reference has not | 0 |
| copied_outputs | share of outputs that are the source, where the reference is not | 0 |
| duplicates | share of outputs that were said for other sources, too | 0 |
| wrong_numbers | share of outputs with other numbers than both source and reference, of those where source or | 0.1 |
| | output has any; left out if these are fewer than 20 | |
| quality_spread | standard deviation of the estimator's scores of the sentences, in its unit | |
| shuffled_gap | mean score minus that of the same outputs for shuffled sources, in quality_spread | about 1 |

Tokens are those of sacrebleu's Chinese tokenizer: ideographs one by one, all else as its 13a does. Words are the tokens
with a letter or digit. An indicator that is not defined (no letter, no number, no scores) is left out.
"""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from energymt.metrics.translation import mean, ratio

MAX_NGRAM = 7
MAX_COUNT = 3  # of one n-gram in an output, and
MAX_EXCESS = 2  # more often than in the source: both He et al. 2024
SHORT = 2
LEAST_NUMBERS = 20
SEED = 1
Score = Callable[[Sequence[str], Sequence[str]], Sequence[float]]

_tokenize: Callable[[str], str] = TokenizerZh()  # type: ignore[no-untyped-call]


def indicators(
    sources: Sequence[str],
    translations: Sequence[str],
    references: Sequence[str],
    *,
    token_ids: Sequence[Sequence[int]] | None = None,
    max_lengths: Sequence[int] | None = None,
    scores: Sequence[float] | None = None,
    score: Score | None = None,
) -> dict[str, float]:
    """The indicators of one evaluation, by name; see the table at the top of this file.

    Args:
        sources, translations, references: one of each a sentence, plain text.
        token_ids: of the translations, without the end token; with `max_lengths` for at_limit.
        max_lengths: the most tokens that the decoder may give each of them.
        scores: of the estimator that trains for these translations; for quality_spread.
        score: that estimator, of (sources, translations); with `scores` for shuffled_gap. It is asked once.
    """
    found = {
        **_lengths(translations, references),
        **_variety(sources, translations, references),
        **_language(translations, references),
        **_copies(sources, translations, references),
        **_numbers(sources, translations, references),
    }
    if token_ids is not None and max_lengths is not None:
        found["at_limit"] = _share(len(ids) >= most for ids, most in zip(token_ids, max_lengths, strict=True))
    if scores is not None and len(scores):
        found |= _scores(sources, translations, np.asarray(scores, dtype=np.float64), score)
    return found


def _lengths(translations: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    pairs = [(_tokens(text), _tokens(wanted)) for text, wanted in zip(translations, references, strict=True)]
    words = [(len(_words(text)), len(_words(wanted))) for text, wanted in pairs]
    found = {
        "empty": _share(not text.strip() for text in translations),
        "short": _share(count <= SHORT < wanted for count, wanted in words),
    }
    ratios = [len(text) / len(wanted) for text, wanted in pairs if wanted]
    if ratios:
        found |= {f"length_ratio_{q}": float(np.percentile(ratios, q)) for q in (5, 50, 95)}
    return found


def _variety(sources: Sequence[str], translations: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    found = {
        "repeated": _share(_repeats(_tokens(s), _tokens(t)) for s, t in zip(sources, translations, strict=True)),
        "duplicates": _duplicates(sources, translations),
    }
    for name, measure in {"distinct_2": _distinct_pairs, "compression": _compressibility}.items():
        value, wanted = measure(translations), measure(references)
        if value is not None and wanted is not None:
            found[name] = value / wanted
    return found


def _repeats(source: Sequence[str], translation: Sequence[str]) -> bool:
    for n in range(1, MAX_NGRAM + 1):
        count = _most_often(translation, n)
        if count <= MAX_COUNT:  # no longer n-gram comes more often than its beginning
            return False
        if count - _most_often(source, n) > MAX_EXCESS:
            return True
    return False


def _most_often(tokens: Sequence[str], n: int) -> int:
    return max(Counter(zip(*(tokens[k:] for k in range(n)), strict=False)).values(), default=0)


def _duplicates(sources: Sequence[str], translations: Sequence[str]) -> float:
    said = [" ".join(text.split()) for text in translations]
    sources_of = defaultdict(set)
    for source, text in zip(sources, said, strict=True):
        sources_of[text].add(source)
    return _share(len(sources_of[text]) > 1 for text in said)


def _distinct_pairs(texts: Sequence[str]) -> float | None:
    pairs = [pair for text in texts for pair in pairwise(_tokens(text))]
    return len(set(pairs)) / len(pairs) if pairs else None


def _compressibility(texts: Sequence[str]) -> float | None:
    text = "\n".join(texts).encode("utf-8", "surrogatepass")
    return len(text) / len(zlib.compress(text)) if text.strip() else None


def _language(translations: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    found = {}
    known = {token for text in references for token in _tokens(text)}
    said = [token for text in translations for token in _tokens(text)]
    if known and said:
        found["known_tokens"] = _share(token in known for token in said)
    ours, wanted = _letters(translations), _letters(references)
    if ours and wanted:
        shares = [min(ours[script] / ours.total(), wanted[script] / wanted.total()) for script in ours]
        found["script_share"] = min(1.0, sum(shares))  # not above it by a rounding
    return found


def _letters(texts: Sequence[str]) -> Counter[str]:
    """How many letters of each script there are."""
    return Counter(_script(character) for text in texts for character in text if character.isalpha())


@lru_cache(maxsize=1 << 16)
def _script(letter: str) -> str:
    """The first word of its Unicode name: LATIN, CYRILLIC, DEVANAGARI, CJK, HIRAGANA ..."""
    plain = unicodedata.normalize("NFKC", letter)[0]  # º is an o, a fullwidth A an A
    return re.split("[ -]", unicodedata.name(plain, "UNKNOWN"))[0]


def _copies(sources: Sequence[str], translations: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    rows = [
        (_tokens(source), _tokens(text), _tokens(wanted))
        for source, text, wanted in zip(sources, translations, references, strict=True)
    ]
    copied = [((Counter(t) & Counter(s)) - Counter(r)).total() for s, t, r in rows]
    return {
        "copied_tokens": ratio(copied, [len(text) for _, text, _ in rows]).total(),
        "copied_outputs": _share(bool(t) and t == s and t != r for s, t, r in rows),
    }


def _numbers(sources: Sequence[str], translations: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    rows = [
        (_digits(source), _digits(text), _digits(wanted))
        for source, text, wanted in zip(sources, translations, references, strict=True)
    ]
    # A reference may write a number that its source spells out, or the other way round: both are right.
    wrong = [text not in (source, wanted) for source, text, wanted in rows if source or text]
    return {"wrong_numbers": _share(wrong)} if len(wrong) >= LEAST_NUMBERS else {}


def _digits(text: str) -> Counter[str]:
    """Strings of digits, those of any script as 0 to 9."""
    return Counter("".join(str(unicodedata.decimal(c)) for c in digits) for digits in re.findall(r"\d+", text))


def _scores(
    sources: Sequence[str], translations: Sequence[str], scores_N: NDArray[np.float64], score: Score | None
) -> dict[str, float]:
    """Of the sentences that have a score (NaN: none); NaN where no sentence has."""
    if not np.isfinite(scores_N).any():
        return {"quality_spread": math.nan}
    spread = float(np.nanstd(scores_N))
    found = {"quality_spread": spread}
    if score is not None and len(scores_N) > 1:
        order_N = np.random.default_rng(SEED).permutation(len(scores_N))
        others = dict(zip(order_N.tolist(), np.roll(order_N, 1).tolist(), strict=True))  # nobody keeps its own source
        shuffled_N = np.asarray(score([sources[others[i]] for i in range(len(others))], translations), np.float64)
        both_N = np.isfinite(scores_N) & np.isfinite(shuffled_N)
        lead = float((scores_N - shuffled_N)[both_N].mean()) if both_N.any() else math.nan
        largest = max(np.nanmax(np.abs(scores_N)), np.abs(shuffled_N[both_N]).max(initial=0.0))
        found["shuffled_gap"] = (
            lead / spread if spread > 1e-9 * largest else 0.0
        )  # a constant score varies by roundings
    return found


def _tokens(text: str) -> list[str]:
    return _tokenize(text).split()


def _words(tokens: Sequence[str]) -> list[str]:
    return [token for token in tokens if any(character.isalnum() for character in token)]


def _share(flags: Iterable[bool]) -> float:
    return mean([float(flag) for flag in flags]).total()
