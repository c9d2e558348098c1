import re
from collections import Counter
from itertools import product
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from energymt.data.toy import LONGEST, SHORTEST, SIZE, STYLES, SYNONYM_SETS, Meaning, ToyLanguage
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.errors import ConfigurationError

LANGUAGE = ToyLanguage(seed=0)
seeds = st.integers(0, 2**32)


def drawn(seed: int, language: ToyLanguage = LANGUAGE) -> tuple[Meaning, str, dict[tuple[str, int], str]]:
    """A meaning, its source, and its translation for each choice."""
    meaning = language.draw(Random(seed))
    choices = {choice: language.translate(meaning, *choice) for choice in product(STYLES, SYNONYM_SETS)}
    return meaning, language.write(meaning), choices


@given(seed=seeds, words=st.integers(0, 5))
def test_every_generated_translation_is_valid(seed: int, words: int) -> None:
    language = ToyLanguage(words)
    meaning, source, choices = drawn(seed, language)
    assert language.parse(source) == meaning
    assert language.translations(source) == set(choices.values())
    assert len(set(choices.values())) == 4
    length = len(source.split())
    assert SHORTEST <= length <= LONGEST
    assert all(language.is_valid(source, text) and len(text.split()) == length + 1 for text in choices.values())


@given(seed=seeds, data=st.data())
def test_a_mixture_of_two_translations_is_invalid(seed: int, data: st.DataObject) -> None:
    _, source, choices = drawn(seed)
    left, right = (choices[c].split() for c in data.draw(st.permutations(list(choices)))[:2])
    places = data.draw(st.sets(st.integers(0, len(left) - 1)))
    mixed = [right[i] if i in places else word for i, word in enumerate(left)]
    assume(mixed not in (left, right))
    assert not LANGUAGE.is_valid(source, " ".join(mixed))


@given(seed=seeds, style=st.sampled_from(STYLES), data=st.data())
def test_one_word_of_the_other_synonym_set_is_invalid(seed: int, style: str, data: st.DataObject) -> None:
    _, source, choices = drawn(seed)
    words, others = choices[style, 0].split(), choices[style, 1].split()
    place = data.draw(st.integers(0, len(words) - 1))
    is_marker = words[place] == others[place]
    assert is_marker == (place == (0 if style == "plain" else len(words) - 1))
    assume(not is_marker)
    words[place] = others[place]
    assert not LANGUAGE.is_valid(source, " ".join(words))


@given(seed=seeds, data=st.data())
def test_missing_doubled_and_swapped_words_are_invalid(seed: int, data: st.DataObject) -> None:
    _, source, choices = drawn(seed)
    words = data.draw(st.sampled_from(sorted(choices.values()))).split()
    place = data.draw(st.integers(0, len(words) - 2))
    before, here, following, after = words[:place], words[place], words[place + 1], words[place + 2 :]
    assert not LANGUAGE.is_valid(source, " ".join([*before, following, *after]))
    assert not LANGUAGE.is_valid(source, " ".join([*before, here, here, following, *after]))
    assume(here != following)
    assert not LANGUAGE.is_valid(source, " ".join([*before, following, here, *after]))


@given(seed=seeds)
def test_the_verb_agrees_with_its_subject(seed: int) -> None:
    meaning, source, choices = drawn(seed)
    for text in choices.values():
        ending = "ns"[meaning.subject.noun % 2]
        verbs = [word for word in text.split() if word[-1] in "ns"]
        assert len(verbs) == 1 and verbs[0].endswith(ending)
        wrong = verbs[0][:-1] + {"n": "s", "s": "n"}[ending]
        assert not LANGUAGE.is_valid(source, text.replace(verbs[0], wrong))


def test_the_translation_of_another_source_is_invalid() -> None:
    sources = {LANGUAGE.write(LANGUAGE.draw(Random(i))) for i in range(300)}
    translations = [text for source in sources for text in LANGUAGE.translations(source)]
    assert len(set(translations)) == 4 * len(sources), "no translation serves two sources"


def test_spaces_around_words_do_not_matter() -> None:
    _, source, choices = drawn(0)
    text = choices["plain", 0]
    assert LANGUAGE.is_valid(f" {source} ", f"  {text.replace(' ', '  ')} ")
    assert not LANGUAGE.is_valid(source, text.replace(" ", ""))
    assert not LANGUAGE.is_valid(source, "")


@pytest.mark.parametrize(
    "change", ["double verb", "no verb", "foreign", "noun alone", "long", "many adjectives", "empty"]
)
def test_what_is_no_sentence_has_no_translation(change: str) -> None:
    words = LANGUAGE._source_words
    noun, adjective, verb = words.nouns[0], words.adjectives[0], words.verbs[0][0]
    fine = [adjective, noun, verb, noun]
    assert LANGUAGE.translations(" ".join(fine))
    broken = {
        "double verb": [adjective, noun, verb, verb, noun],
        "no verb": [adjective, noun, noun, noun],
        "foreign": [adjective, "xxxx", verb, noun],
        "noun alone": [noun, verb, noun],
        "long": [adjective] * 3 + [noun, verb] + [adjective] * 3 + [noun],
        "many adjectives": [adjective] * 4 + [noun, verb, noun],
        "empty": [],
    }[change]
    assert LANGUAGE.translations(" ".join(broken)) == set()
    assert not LANGUAGE.is_valid(" ".join(broken), "")


def test_splits_share_no_source_and_hold_valid_pairs() -> None:
    corpora = LANGUAGE.corpora(train=3000, dev=200, test=300, seed=1)
    assert {name: len(corpus) for name, corpus in corpora.items()} == {"train": 3000, "dev": 200, "test": 300}
    sources = [source for corpus in corpora.values() for source in corpus.source]
    assert len(set(sources)) == 3500
    for corpus in corpora.values():
        assert corpus.target is not None
        assert all(map(LANGUAGE.is_valid, corpus.source, corpus.target))


def test_choices_are_even_and_lengths_mixed() -> None:
    corpus = LANGUAGE.sentences(4000, seed=7)
    assert corpus.target is not None
    counts: Counter[tuple[str, int]] = Counter()
    for source, target in zip(corpus.source, corpus.target, strict=True):
        meaning = LANGUAGE.parse(source)
        assert meaning is not None
        counts.update(c for c in product(STYLES, SYNONYM_SETS) if LANGUAGE.translate(meaning, *c) == target)
    assert sum(counts.values()) == 4000 and all(880 < counts[c] < 1120 for c in product(STYLES, SYNONYM_SETS))
    lengths = Counter(len(source.split()) for source in corpus.source)
    assert set(lengths) == set(range(SHORTEST, LONGEST + 1)) and min(lengths.values()) > 200


def test_draws_are_a_function_of_the_seeds() -> None:
    def texts(words: int, seed: int) -> list[str]:
        return LANGUAGE.sentences(50, seed).source if words == 0 else ToyLanguage(words).sentences(50, seed).source

    assert texts(0, 1) == texts(0, 1)
    assert texts(0, 1) != texts(0, 2)
    assert texts(0, 1) != texts(1, 1)
    assert ToyLanguage(3).corpora(train=9, dev=1, test=1, seed=4) == ToyLanguage(3).corpora(
        train=9, dev=1, test=1, seed=4
    )


def test_words_differ_and_are_plain_ascii() -> None:
    for seed in range(20):
        language = ToyLanguage(seed)
        sets = [language._source_words, *language._target_words]
        words = [w for s in sets for w in (*s.nouns, *s.adjectives, *(form for verb in s.verbs for form in verb))]
        words += language._markers
        assert len(set(words)) == len(words) == 12 + 2 * 15 + 2
        assert all(re.fullmatch("[a-z]{4,5}", word) for word in words)


def test_size_is_counted_exactly() -> None:
    assert SIZE == 234_600
    with pytest.raises(ConfigurationError, match="at most 117,300 pairs and 117,301"):
        LANGUAGE.corpora(train=117_301, dev=0, test=0, seed=0)


def test_every_word_is_one_token() -> None:
    corpus = LANGUAGE.sentences(2000, seed=3)
    assert corpus.target is not None
    vocabulary = SentencePieceVocabulary.train([*corpus.source, *corpus.target], 100, model_type="word")
    assert vocabulary.size == 5 + 12 + 2 * 15 + 2
    for text in (*corpus.source[:200], *corpus.target[:200]):
        ids = vocabulary.encode(text)
        assert len(ids) == len(text.split()) and vocabulary.unk_id not in ids
        assert vocabulary.decode(ids) == text
