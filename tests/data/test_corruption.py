"""Damaged translations: how much, of which kinds, and that nothing else happens to them."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energymt.data.corruption import corrupt

TEXT = "the dog runs over the wide green meadow"
OTHERS = ["one", "two", "three"]
words = st.lists(st.sampled_from(TEXT.split()), min_size=1, max_size=9).map(" ".join)


def damaged(text: str, share: float, seed: int) -> str:
    return corrupt(text, share, OTHERS, np.random.default_rng(seed))


@given(text=words, share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_words_are_whole_and_never_more_than_twice_as_many(text: str, share: float, seed: int) -> None:
    found = damaged(text, share, seed)
    own = Counter(text.split())
    assert found == " ".join(found.split()) and found
    assert len(found.split()) <= 2 * len(text.split())
    for word, count in Counter(found.split()).items():
        assert word in OTHERS or 1 <= count <= 2 * own[word]


@given(text=words, share=st.floats(0, 1), seed=st.integers(0, 2**32 - 1))
def test_the_same_draws_do_the_same_damage(text: str, share: float, seed: int) -> None:
    assert damaged(text, share, seed) == damaged(text, share, seed)


@given(text=words, seed=st.integers(0, 2**32 - 1))
def test_no_share_is_no_damage(text: str, seed: int) -> None:
    assert damaged(text, 0.0, seed) == text


def test_the_seed_decides() -> None:
    assert len({damaged(TEXT, 0.5, seed) for seed in range(20)}) > 15


# ------------------------------------------------------------------------------------------------------ kinds of damage


class Scripted:
    """Draws that are given, one a word: whole (None), dropped (0), said twice (1), moved (2) or replaced (3)."""

    def __init__(self, *kinds: int | None) -> None:
        self.kinds = iter(kinds)

    def random(self) -> float:
        self.kind = next(self.kinds)
        return 1.0 if self.kind is None else 0.0

    def integers(self, most: int) -> int:
        return OTHERS.index("two") if most == len(OTHERS) else self.kind


@pytest.mark.parametrize(
    "kinds, wanted",
    [
        ((None, None, None), "a b c"),
        ((0, None, None), "b c"),
        ((None, 1, None), "a b b c"),
        ((2, None, None), "b a c"),
        ((None, 2, None), "a c b"),
        ((None, None, 2), "a b c"),  # there is no next word
        ((2, 2, None), "c a b"),
        ((2, 0, None), "a c"),
        ((2, 1, None), "b b a c"),
        ((None, 3, None), "a two c"),
        ((3, 3, 3), "two two two"),
        ((0, 0, 0), "a b c"),  # never nothing
    ],
)
def test_what_a_kind_does(kinds: tuple[int | None, ...], wanted: str) -> None:
    assert corrupt("a b c", 0.5, OTHERS, Scripted(*kinds)) == wanted


def kinds_in(share: float, text: list[str]) -> dict[str, int]:
    """How many words of a text, whose words all differ, became what; of the moved those that stand behind another."""
    found = corrupt(" ".join(text), share, OTHERS, np.random.default_rng(1)).split()
    count, place = Counter(found), {word: number for number, word in enumerate(found)}
    once = [word for word in text if count[word] == 1]
    replaced = sum(count[word] for word in OTHERS)
    return {
        "once": len(once),
        "moved": sum(place[left] > place[right] for left, right in pairwise(once)),
        "twice": sum(count[word] == 2 for word in text),
        "replaced": replaced,
        "dropped": sum(count[word] == 0 for word in text) - replaced,
    }


def test_each_kind_is_as_likely_and_the_share_is_that_of_words() -> None:
    text = [f"w{number}" for number in range(4000)]
    found = kinds_in(0.2, text)
    for kind in ("moved", "twice", "replaced", "dropped"):
        assert abs(found[kind] - 200) < 5 * 200**0.5, found


def test_a_share_of_one_damages_every_word() -> None:
    """Those that stand once are the moved ones."""
    found = kinds_in(1.0, [f"w{number}" for number in range(4000)])
    for kind in ("once", "twice", "replaced", "dropped"):
        assert abs(found[kind] - 1000) < 5 * 1000**0.5, found
