"""From a translator's tokens to a quality estimator's: a row of embeddings for every token, and sources read anew.

A relaxed translation is a mixture of the translator's tokens; an estimator reads mixtures of rows of its own table. Two
models with one list of pieces (mBART and XLM-R, whose ids differ behind the last piece) need nothing but a map of ids.
Elsewhere a token that is no piece of the estimator gets the mean of the rows of the pieces that it falls into there.
That is a stand-in: the estimator would read several positions, and here it reads one.

Everything goes by names, never by numbers. The name of a token is what it writes, with `▁` where it opens a word:
`▁Wiese` is split as a word, and `iese` as the rest of one.

Axes of this room: V tokens of the translator; E rows of the estimator's table; N entries of the sparse map.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from energymt.data.batching import pad
from energymt.data.hub import HubVocabulary
from energymt.data.vocabulary import WORD_START, SentencePieceVocabulary, Vocabulary
from energymt.errors import ConfigurationError
from energymt.records import Source

BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")  # SentencePiece's name of a byte
BYTE_LEVEL_START = "Ġ"  # what byte-level BPE writes for a space
BROKEN = "\ufffd"  # decoded from bytes that are no whole character
SHOWN = 3  # tokens that an error names


class Bridge:
    """Which rows of the estimator's table stand for each token of the translator.

    A token is *covered* if the estimator knows all that it writes. Special tokens, the unknown token, single bytes and
    parts of characters write nothing by themselves and are never covered. Every token that is not covered stands for
    the estimator's unknown token: that row is what an estimator was trained to read where it cannot read, while zeros
    would be a token that it never saw, and a place to which a translator could move its mass unseen.

    Args:
        translator: a SentencePiece vocabulary, or that of a Hugging Face model. Segmented tokens with a mark at the
            *end* of a piece ("Wies@@ e") do not say whether they open a word, and are taken to.
        estimator: that of a fast XLM-R tokenizer.
        prefixes: task prefixes that sources may have (`Corpus.prefixes`), which the estimator does not read.

    Raises:
        ConfigurationError: a vocabulary whose pieces do not say where a word starts, or another estimator's tokenizer.
    """

    row_V: Tensor
    """The estimator's row of the same piece (the unknown token included), -1 where it has none; int64."""
    covered_V: Tensor
    """bool."""
    coverage: float
    """The share of the tokens that write text which is covered, from 0 to 1; special tokens and bytes do not count."""
    identical: bool
    """Whether every token that a translation may hold is a row of the estimator's: ids map to ids."""

    def __init__(self, translator: Vocabulary, estimator: Vocabulary, prefixes: Iterable[str] = ()) -> None:
        self.translator, self.estimator = translator, estimator
        self._own_prefix = translator.decode(translator.encode_source(""))
        self._prefixes: list[str] = []
        # As they come back from the translator's pieces; the longest first, for one may begin another.
        self._prefixes = sorted((self._said(translator.encode_source(p)) for p in prefixes), key=len, reverse=True)
        self._tokenizer = _fast_tokenizer(estimator)
        names = written(translator)
        pieces = {name: row for row, name in enumerate(written(estimator)) if name is not None}
        split = _splitter(self._tokenizer.backend_tokenizer)
        readable = set(pieces.values())
        bags = [[] if name is None else [pieces[name]] if name in pieces else split(name) for name in names]
        # Unknown characters, and pieces that have the name of a special token: `</s>` must not end an input.
        bags = [bag if readable.issuperset(bag) else [] for bag in bags]
        self.covered_V = torch.tensor([bool(bag) for bag in bags])
        missing = [name for name, bag in zip(names, bags, strict=True) if name is not None and not bag]
        self._text = sum(name is not None for name in names)
        self._known, self._not_known = self._text - len(missing), missing[:SHOWN]
        self.coverage = self._known / max(1, self._text)
        # The sparse map: the rows of token v are rows_N[starts_V[v] : starts_V[v + 1]].
        bags = [bag or [estimator.unk_id] for bag in bags]
        self.rows_N = torch.tensor([row for bag in bags for row in bag])
        sizes_V = torch.tensor([len(bag) for bag in bags])
        self.starts_V = sizes_V.cumsum(0) - sizes_V
        self.row_V = torch.tensor([-1 if name is None else pieces.get(name, -1) for name in names])
        self.row_V[translator.unk_id] = estimator.unk_id
        never = {*translator.never_ids, translator.eos_id}
        self.identical = all(row >= 0 or token in never for token, row in enumerate(self.row_V.tolist()))
        self._same_ids = translator.size <= estimator.size and all(
            row == token or token in never for token, row in enumerate(self.row_V.tolist())
        )

    def require(self, least: float) -> None:
        """Refuse a bridge that covers less than this share.

        Raises:
            ConfigurationError: with the numbers, and some of the tokens that are not covered.
        """
        if self.coverage >= least:
            return
        raise ConfigurationError(
            f"The estimator knows {self._known:,} of the {self._text:,} pieces of the translator's vocabulary "
            f"({self.coverage:.1%}, and {least:.1%} are asked for; not, for example, "
            f"{', '.join(map(repr, self._not_known))}): take an estimator that was trained on the translator's "
            f"languages, or lower least_coverage."
        )

    @torch.no_grad()
    def table(self, table_ED: Tensor) -> Tensor:
        """The translator's tokens in the estimator's embedding space, [V, D]; built without anything larger.

        Where every token that a translation may hold has the same id in both, these are rows of `table_ED` itself, and
        no copy of it, so leave them as they are: it may be mapped into memory, once for all processes of a machine.
        """
        if self._same_ids:
            return table_ED[: len(self.row_V)]
        rows_N, starts_V = self.rows_N.to(table_ED.device), self.starts_V.to(table_ED.device)
        return torch.nn.functional.embedding_bag(rows_N, table_ED, starts_V, mode="mean")

    def rows(self, ids_BT: Tensor) -> Tensor | None:
        """The estimator's ids of the translator's ids; None where the vocabularies are not identical."""
        return self.rows_N.to(ids_BT.device)[ids_BT] if self.identical else None

    def source(self, source: Source) -> Source:
        """The same sentences as the estimator reads their text, start and end tokens included.

        Task prefixes, the vocabulary's own and those of the text, are left out; what the translator's vocabulary lost
        (unknown characters) stays lost.
        """
        rows = [ids[kept].tolist() for ids, kept in zip(source.ids_BS.cpu(), source.mask_BS.cpu(), strict=True)]
        texts = [self._said(row) for row in rows]
        # Long texts are no reason to warn: the estimator cuts them.
        encoded = self._tokenizer(texts, verbose=False).input_ids
        return Source(*pad(encoded, self.estimator.pad_id)).to(source.ids_BS.device)

    def _said(self, row: list[int]) -> str:
        text = self.translator.decode(row).removeprefix(self._own_prefix).strip()
        return text.removeprefix(next(filter(text.startswith, self._prefixes), "")).strip()

    def target(self, ids_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
        """The text of translations as the estimator splits it, without special tokens: ids and mask [B, T']."""
        rows = [ids[kept].tolist() for ids, kept in zip(ids_BT.cpu(), mask_BT.cpu(), strict=True)]
        ids, mask = self.split([self.translator.decode(row) for row in rows])
        return ids.to(ids_BT.device), mask.to(ids_BT.device)

    def split(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Texts in the estimator's tokens, without special ones: ids and mask [B, T]."""
        encoded = self._tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []
        return pad(encoded, self.estimator.pad_id)


def written(vocabulary: Vocabulary) -> list[str | None]:
    """What each token writes, with `▁` for the space before a word; None for what writes no text by itself.

    Raises:
        ConfigurationError: the pieces do not say where a word starts.
    """
    silent = {*vocabulary.never_ids, vocabulary.eos_id, vocabulary.unk_id}
    pieces = [None if token in silent else vocabulary.piece(token) for token in range(vocabulary.size)]
    pieces = [None if piece is None or BYTE.fullmatch(piece) else piece for piece in pieces]
    write = _writer(vocabulary, pieces)
    return [None if piece is None else write(piece) for piece in pieces]


def _writer(vocabulary: Vocabulary, pieces: list[str | None]) -> Callable[[str], str | None]:
    """How a piece of this vocabulary is written, by its own mark of where a word starts."""
    joiner = vocabulary.joiner if isinstance(vocabulary, SentencePieceVocabulary) else None
    if vocabulary.segmented and joiner != WORD_START:
        return lambda piece: WORD_START + piece.removesuffix(joiner or "")
    if any(piece.startswith(WORD_START) for piece in pieces if piece):
        return lambda piece: piece
    if isinstance(vocabulary, HubVocabulary) and any(piece.startswith(BYTE_LEVEL_START) for piece in pieces if piece):
        tokenizer = vocabulary.tokenizer

        def decoded(piece: str) -> str | None:
            text = str(tokenizer.convert_tokens_to_string([piece]))
            return None if BROKEN in text else text.replace(" ", WORD_START)

        return decoded
    raise ConfigurationError(
        f"No piece of the {vocabulary.kind} vocabulary of {vocabulary.size:,} tokens says where a word starts, as "
        f"SentencePiece ({WORD_START}) and byte-level BPE ({BYTE_LEVEL_START}) do, so that it cannot be bridged to "
        f"another: use a model with such a vocabulary."
    )


def _fast_tokenizer(estimator: Vocabulary) -> Any:
    tokenizer = estimator.tokenizer if isinstance(estimator, HubVocabulary) else None
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.pre_tokenizer is None:
        found = estimator.kind if tokenizer is None else type(tokenizer).__name__
        raise ConfigurationError(
            f"No vocabulary can be bridged to the estimator's ({found}), which has no fast tokenizer: put the "
            f"tokenizer.json of an XLM-R tokenizer into the estimator's folder."
        )
    return tokenizer


def _splitter(backend: Any) -> Callable[[str], list[int]]:
    """How the estimator splits what a token writes.

    Its tokenizer opens a word at the start of every text. The rest of a word must not get that mark, so the steps of
    the tokenizer are gone through here, and the mark is taken away before the last.
    """
    normalizer, pre_tokenizer, model = backend.normalizer, backend.pre_tokenizer, backend.model

    def split(name: str) -> list[int]:
        text = name.replace(WORD_START, " ")
        text = text if normalizer is None else normalizer.normalize_str(text)
        words = [word for word, _ in pre_tokenizer.pre_tokenize_str(text)]
        if words and not text.startswith((" ", WORD_START)):
            words[0] = words[0].removeprefix(WORD_START)
        return [int(token.id) for word in words for token in model.tokenize(word)]

    return split
