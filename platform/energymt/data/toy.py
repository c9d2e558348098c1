"""A generated language pair with an exact judge: two global choices make every source sentence ambiguous.

A synchronous grammar over 12 concepts (5 nouns, 4 adjectives, 3 verbs) writes both languages:

    source      S -> NP V NP            NP -> A* N
    plain       S -> p NP V NP          NP -> A* N         the marker p opens the sentence
    inverted    S -> NP NP V q          NP -> N A*         verb last, adjectives behind their noun; the marker q closes

A translation makes two choices for the *whole* sentence: its style (plain or inverted) and its synonyms (each concept
has one word in each of two sets). Besides, the verb agrees with the class of its subject. A source of 4 to 8 words has
exactly four translations, each one word longer than itself, and a mixture of two of them is wrong.

The target of a training pair is one of the four at random. A non-autoregressive model that learns by cross-entropy
puts the average of the four at each position, and its words do not agree; an energy that follows a teacher through the
whole sentence repairs that. `is_valid` needs no reference: it is exact where BLEU against one of four is noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from random import Random

from energymt.data.corpus import Corpus
from energymt.errors import ConfigurationError

STYLES = ("plain", "inverted")
SYNONYM_SETS = (0, 1)
NOUNS, ADJECTIVES, VERBS = 5, 4, 3
ENDINGS = ("n", "s")  # of a verb, by the class of its subject
MOST_ADJECTIVES = 3  # of one noun
SHORTEST, LONGEST = 4, 8  # words of a source sentence
SHAPES = [
    (first, second)
    for first, second in product(range(MOST_ADJECTIVES + 1), repeat=2)
    if SHORTEST <= first + second + 3 <= LONGEST
]  # adjectives of subject and object
SIZE = sum(NOUNS**2 * VERBS * ADJECTIVES ** sum(shape) for shape in SHAPES)


@dataclass(frozen=True)
class Phrase:
    """A noun and its adjectives, as numbers, adjectives in the order of the source."""

    adjectives: tuple[int, ...]
    noun: int


@dataclass(frozen=True)
class Meaning:
    """What a sentence says."""

    subject: Phrase
    verb: int
    object: Phrase


@dataclass(frozen=True)
class Words:
    """One set of words: a noun or adjective is one word, a verb has one for each class of subject."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    verbs: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ToyLanguage:
    """The language pair. `seed` chooses its words, not its grammar; all its words differ."""

    seed: int = 0

    def corpora(self, *, train: int, dev: int, test: int, seed: int) -> dict[str, Corpus]:
        """Corpora `train`, `dev` and `test` of as many pairs, drawn by `seed`; no source comes twice in all three.

        Raises:
            ConfigurationError: if more pairs are asked for than half the sentences of the language.
        """
        sizes = {"test": test, "dev": dev, "train": train}  # long draws run out of short sentences: train comes last
        if sum(sizes.values()) > SIZE // 2:
            raise ConfigurationError(
                f"The toy language gives at most {SIZE // 2:,} pairs and {sum(sizes.values()):,} are asked for; "
                f"ask for fewer."
            )
        random, seen = Random(f"{self.seed}/{seed}"), set[str]()
        return {name: self._corpus(name, size, random, seen) for name, size in sizes.items()}

    def sentences(self, count: int, seed: int) -> Corpus:
        """`count` pairs with different sources, drawn by `seed`."""
        return self.corpora(train=count, dev=0, test=0, seed=seed)["train"]

    def translations(self, source: str) -> set[str]:
        """All valid translations of a source sentence; none of what is no sentence of the language."""
        meaning = self.parse(source)
        if meaning is None:
            return set()
        return {self.translate(meaning, style, synonyms) for style, synonyms in product(STYLES, SYNONYM_SETS)}

    def is_valid(self, source: str, translation: str) -> bool:
        """Whether `translation` is one of the four: every word right, in one style and one set of synonyms."""
        return " ".join(translation.split()) in self.translations(source)

    def draw(self, random: Random) -> Meaning:
        """A meaning; each shape (adjectives of subject, of object) is as likely as the next."""
        subject, object_ = (
            Phrase(tuple(random.randrange(ADJECTIVES) for _ in range(count)), random.randrange(NOUNS))
            for count in random.choice(SHAPES)
        )
        return Meaning(subject, random.randrange(VERBS), object_)

    def write(self, meaning: Meaning) -> str:
        """The source sentence of a meaning."""
        words = self._source_words
        sides = [[*(words.adjectives[a] for a in p.adjectives), words.nouns[p.noun]] for p in _phrases(meaning)]
        return " ".join([*sides[0], words.verbs[meaning.verb][0], *sides[1]])

    def parse(self, source: str) -> Meaning | None:
        """The meaning of a source sentence, None if it is no sentence of the language."""
        words, tokens = self._source_words, source.split()
        if not SHORTEST <= len(tokens) <= LONGEST:
            return None
        verbs = [forms[0] for forms in words.verbs]
        places = [place for place, token in enumerate(tokens) if token in verbs]
        if not places:
            return None
        subject, object_ = (_phrase(part, words) for part in (tokens[: places[0]], tokens[places[0] + 1 :]))
        if subject is None or object_ is None:
            return None
        return Meaning(subject, verbs.index(tokens[places[0]]), object_)

    def translate(self, meaning: Meaning, style: str, synonyms: int) -> str:
        """The translation in one of STYLES and one of SYNONYM_SETS."""
        words = self._target_words[synonyms]
        verb = words.verbs[meaning.verb][meaning.subject.noun % len(ENDINGS)]
        (subject, of_subject), (object_, of_object) = (
            (words.nouns[phrase.noun], [words.adjectives[a] for a in phrase.adjectives]) for phrase in _phrases(meaning)
        )
        if style == STYLES[0]:
            return " ".join([self._markers[0], *of_subject, subject, verb, *of_object, object_])
        return " ".join([subject, *of_subject, object_, *of_object, verb, self._markers[1]])

    def _corpus(self, name: str, size: int, random: Random, seen: set[str]) -> Corpus:
        sources: list[str] = []
        targets: list[str] = []
        while len(sources) < size:
            meaning = self.draw(random)
            source = self.write(meaning)
            if source not in seen:
                seen.add(source)
                sources.append(source)
                targets.append(self.translate(meaning, random.choice(STYLES), random.choice(SYNONYM_SETS)))
        return Corpus(sources, targets, f"toy language {self.seed} ({name})")

    @cached_property
    def _stems(self) -> list[str]:
        """Stems that all differ: of the source concepts, of the two synonym sets, then two markers."""
        syllables = [consonant + vowel for consonant in "bdfgklmprtvz" for vowel in "aeiou"]
        pairs = ["".join(pair) for pair in product(syllables, repeat=2)]
        return Random(self.seed).sample(pairs, 3 * (NOUNS + ADJECTIVES + VERBS) + len(STYLES))

    @cached_property
    def _source_words(self) -> Words:
        return self._words(0, endings=("",))

    @cached_property
    def _target_words(self) -> list[Words]:
        return [self._words(1 + synonyms, ENDINGS) for synonyms in SYNONYM_SETS]

    @cached_property
    def _markers(self) -> list[str]:
        return self._stems[-len(STYLES) :]

    def _words(self, block: int, endings: tuple[str, ...]) -> Words:
        concepts = NOUNS + ADJECTIVES + VERBS
        stems = self._stems[block * concepts : (block + 1) * concepts]
        verbs = stems[NOUNS + ADJECTIVES :]
        return Words(
            nouns=tuple(stems[:NOUNS]),
            adjectives=tuple(stems[NOUNS : NOUNS + ADJECTIVES]),
            verbs=tuple(tuple(stem + ending for ending in endings) for stem in verbs),
        )


def _phrases(meaning: Meaning) -> tuple[Phrase, Phrase]:
    return meaning.subject, meaning.object


def _phrase(tokens: list[str], words: Words) -> Phrase | None:
    *adjectives, noun = tokens or [""]
    known = noun in words.nouns and all(word in words.adjectives for word in adjectives)
    if not known or len(adjectives) > MOST_ADJECTIVES:
        return None
    return Phrase(tuple(words.adjectives.index(word) for word in adjectives), words.nouns.index(noun))
