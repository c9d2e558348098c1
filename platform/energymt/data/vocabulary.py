"""Text to ids and back: what a vocabulary must offer, SentencePiece, and how a vocabulary is kept in a model folder.

Teacher and student must share one vocabulary, for a soft prediction is a mixture of the teacher's embeddings
(ENGINE §4.1). `require_same` refuses a pair that does not.
"""

from __future__ import annotations

import hashlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from energymt.errors import ConfigurationError, DataError, StorageError

VOCABULARY_FILE = "vocabulary.json"
PIECES_FILE = "spiece.model"
WORD_START = "▁"  # SentencePiece writes a space as this
# Stands for WORD_START inside already segmented tokens, which SentencePiece would else take for a space.
ESCAPED_START = "\ue581"


class Vocabulary(ABC):
    """Pieces with ids 0 .. size − 1, shared by both languages and by teacher and student."""

    kind: ClassVar[str]
    segmented: bool = False
    """Whether texts are already segmented: their pieces stand between spaces."""
    size: int
    """V, the width of a model's logits."""
    pad_id: int
    bos_id: int
    eos_id: int
    unk_id: int
    mask_id: int
    """Stands for a token not yet chosen; `size` where the vocabulary itself has no such token."""
    never_ids: tuple[int, ...]
    """No translation may hold them: padding, start, mask and control tokens. End and unknown tokens are left out."""
    never_first_ids: tuple[int, ...] = ()
    """No search begins a translation with them; the end token may be among them."""

    @property
    def input_size(self) -> int:
        """Rows of a student's input table: one more than `size` where the mask token needs a row of its own."""
        return max(self.size, self.mask_id + 1)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over all pieces in the order of their ids."""
        pieces = "\n".join(self.piece(i) for i in range(self.size))
        return hashlib.sha256(pieces.encode("utf-8", errors="surrogatepass")).hexdigest()

    @abstractmethod
    def piece(self, token_id: int) -> str:
        """The piece of an id in [0, size)."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The pieces of a target text, with no special token."""

    @abstractmethod
    def encode_source(self, text: str) -> list[int]:
        """What an encoder reads: the pieces of a source text and the end token."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Plain text: stops at the end token, skips other special tokens, shows an unknown piece as `⁇` or the like."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the vocabulary's files into a model folder; `load_vocabulary` reads them back."""

    def as_corpus_text(self, ids: Iterable[int]) -> str:
        """The line of a corpus that `encode` reads back as these ids: segmented text stays segmented."""
        return self.decode(ids)

    def as_plain_text(self, text: str) -> str:
        """A line of a corpus as `decode` writes it (a reference, say): segmented text is joined."""
        return text

    def words(self, ids: Iterable[int]) -> list[int]:
        """The ids that carry text: up to the end token, special tokens left out."""
        skip, kept = set(self.never_ids), []
        for token_id in map(int, ids):
            if token_id == self.eos_id:
                break
            if 0 <= token_id < self.size and token_id not in skip:
                kept.append(token_id)
        return kept

    def write_description(self, folder: Path, **values: Any) -> None:
        """Write `vocabulary.json`: kind, fingerprint and what the kind needs to be read back."""
        folder.mkdir(parents=True, exist_ok=True)
        description = {"kind": self.kind, "fingerprint": self.fingerprint, **values}
        text = json.dumps(description, indent=2, sort_keys=True, ensure_ascii=False)
        (folder / VOCABULARY_FILE).write_text(text + "\n", encoding="utf-8")


class SentencePieceVocabulary(Vocabulary):
    """A SentencePiece model with ids pad 0, unknown 1, start 2, end 3, mask 4.

    `<mask>` is a control symbol: no text is ever encoded as it.

    Args:
        model: the bytes of a `spiece.model` file.
        segmented: texts hold pieces between spaces; each is looked up as it is, without further splitting.
        joiner: how segmented pieces grow together in `decode`: a mark at the end of a piece that goes on ("@@"), or
            "▁" for SentencePiece pieces, where the mark opens a word; None leaves the spaces.

    Raises:
        ConfigurationError: if the model has other special tokens than those above.
    """

    kind = "sentencepiece"
    pad_id, unk_id, bos_id, eos_id, mask_id = range(5)
    never_ids = (pad_id, bos_id, mask_id)

    def __init__(self, model: bytes, *, segmented: bool = False, joiner: str | None = None) -> None:
        self.model = model
        self.segmented = segmented
        self.joiner = joiner
        self.processor = SentencePieceProcessor(model_proto=model)
        self.size = int(self.processor.get_piece_size())
        found = [self.processor.id_to_piece(i) for i in range(min(5, self.size))]
        if found != ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]:
            raise ConfigurationError(
                f"The SentencePiece model starts with the pieces {found} instead of <pad> <unk> <s> </s> <mask>; "
                f"train it with SentencePieceVocabulary.train."
            )

    @staticmethod
    def train(
        lines: Iterable[str],
        size: int,
        *,
        model_type: Literal["unigram", "bpe", "word"] = "unigram",
        segmented: bool = False,
        joiner: str | None = None,
        character_coverage: float = 1.0,
        byte_fallback: bool = False,
        normalization: Literal["nmt_nfkc", "nfkc", "identity"] = "nmt_nfkc",
    ) -> SentencePieceVocabulary:
        """A vocabulary of at most `size` pieces (special tokens counted), the same for the same lines.

        Args:
            lines: text of both languages.
            size: most pieces; small texts give fewer.
            model_type: `word` keeps whole words; it is what segmented text gets, whatever is asked for.
            segmented: whether the lines hold pieces between spaces.
            joiner: how segmented pieces grow together (see the class).
            character_coverage: share of the characters of the text that get a piece.
            byte_fallback: whether characters without a piece become bytes instead of the unknown piece.
            normalization: of Unicode; segmented text is taken as it is.

        Raises:
            DataError: if there is no text, or more characters than pieces.
        """
        out = io.BytesIO()
        options = {
            "model_type": "word" if segmented else model_type,
            "normalization_rule_name": "identity" if segmented else normalization,
            "character_coverage": character_coverage,
            "byte_fallback": byte_fallback and not segmented,
            **{"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3, "control_symbols": "<mask>"},
            "hard_vocab_limit": False,
            "num_threads": 1,  # the number of threads changes the sums of EM, and so the pieces
            "max_sentence_length": 1 << 20,
            "minloglevel": 2,
        }
        text = (line.replace(WORD_START, ESCAPED_START) for line in lines) if segmented else iter(lines)
        try:
            SentencePieceTrainer.train(sentence_iterator=text, model_writer=out, vocab_size=size, **options)
        except RuntimeError as error:
            reason = " ".join(str(error).split("]")[-1].split()).partition(" Increase")[0].rstrip(".")
            raise DataError(
                f"SentencePiece could not make {size} pieces of this text ({reason or 'too few for its characters'}); "
                f"raise vocabulary.size."
            ) from None
        return SentencePieceVocabulary(out.getvalue(), segmented=segmented, joiner=joiner)

    def piece(self, token_id: int) -> str:
        piece: str = self.processor.id_to_piece(token_id)
        return piece.removeprefix(WORD_START).replace(ESCAPED_START, WORD_START) if self.segmented else piece

    def encode(self, text: str) -> list[int]:
        if not self.segmented:
            return list(self.processor.encode(text))
        tokens = text.replace(WORD_START, ESCAPED_START).split()
        return [self.processor.piece_to_id(WORD_START + token) for token in tokens]

    def encode_source(self, text: str) -> list[int]:
        return [*self.encode(text), self.eos_id]

    def decode(self, ids: Iterable[int]) -> str:
        if not self.segmented:
            return str(self.processor.decode(self.words(ids)))
        return self.as_plain_text(self.as_corpus_text(ids))

    def as_corpus_text(self, ids: Iterable[int]) -> str:
        if not self.segmented:
            return self.decode(ids)
        return " ".join("⁇" if i == self.unk_id else self.piece(i) for i in self.words(ids))

    def as_plain_text(self, text: str) -> str:
        if not self.segmented or self.joiner is None:
            return text
        if self.joiner == WORD_START:
            return text.replace(" ", "").replace(WORD_START, " ").strip()
        return (text + " ").replace(self.joiner + " ", "").strip()

    def save(self, folder: Path) -> None:
        self.write_description(folder, segmented=self.segmented, joiner=self.joiner)
        (folder / PIECES_FILE).write_bytes(self.model)

    @staticmethod
    def load(folder: Path, description: dict[str, Any]) -> SentencePieceVocabulary:
        """Read what `save` wrote."""
        file = folder / PIECES_FILE
        if not file.is_file():
            raise StorageError(f"{file} is missing beside {VOCABULARY_FILE}; copy the whole model folder again.")
        try:
            return SentencePieceVocabulary(
                file.read_bytes(), segmented=description["segmented"], joiner=description["joiner"]
            )
        except RuntimeError:
            raise StorageError(f"{file} is no SentencePiece model; copy the whole model folder again.") from None


def load_vocabulary(folder: Path | str) -> Vocabulary:
    """The vocabulary that `Vocabulary.save` wrote into a model folder, checked against its fingerprint.

    Raises:
        StorageError: if a file is missing, unreadable, or was changed since.
    """
    folder = Path(folder)
    file = folder / VOCABULARY_FILE
    if not file.is_file():
        raise StorageError(f"{folder} holds no vocabulary ({VOCABULARY_FILE} is missing); name a trained model.")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        kind, fingerprint = description["kind"], description["fingerprint"]
        vocabulary = _read(kind, folder, description)
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{file} is damaged ({error!r}); copy the whole model folder again.") from None
    if vocabulary.fingerprint != fingerprint:
        raise StorageError(
            f"The pieces in {folder} are not those that {VOCABULARY_FILE} was written for "
            f"(fingerprint {vocabulary.fingerprint[:12]} instead of {fingerprint[:12]}); copy the whole folder again."
        )
    return vocabulary


def _read(kind: str, folder: Path, description: dict[str, Any]) -> Vocabulary:
    if kind == SentencePieceVocabulary.kind:
        return SentencePieceVocabulary.load(folder, description)
    if kind == "hub":
        from energymt.data.hub import HubVocabulary  # transformers takes seconds to import

        return HubVocabulary.load(folder, description)
    if kind == "whisper":
        from energymt.data.whisper import WhisperVocabulary

        return WhisperVocabulary.load(folder, description)
    raise StorageError(f"{folder / VOCABULARY_FILE} names the kind {kind!r}, which this version does not know.")


def require_same(a: Vocabulary, b: Vocabulary, what_a: str, what_b: str) -> None:
    """Refuse two models whose tokens differ: a soft prediction of one means nothing to the other.

    Raises:
        ConfigurationError: naming both fingerprints and sizes, and the first id with different pieces.
    """
    if a.fingerprint == b.fingerprint:
        return
    shared = min(a.size, b.size)
    first = next((i for i in range(shared) if a.piece(i) != b.piece(i)), shared)
    pieces = [repr(words.piece(first)) if first < words.size else "nothing" for words in (a, b)]
    raise ConfigurationError(
        f"{what_a} and {what_b} have different vocabularies ({a.size} pieces, fingerprint {a.fingerprint[:12]}, and "
        f"{b.size} pieces, fingerprint {b.fingerprint[:12]}; id {first} is {pieces[0]} there and {pieces[1]} here): "
        f"train one with the vocabulary of the other (vocabulary.path)."
    )
