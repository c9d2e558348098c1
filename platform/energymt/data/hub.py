"""A Hugging Face tokenizer as a vocabulary: Marian, T5, BART, mBART, M2M100 and NLLB, each with its own habits.

Marian has two SentencePiece models over one list of ids; mBART, M2M100 and NLLB put a language code beside the text;
T5 takes a task prefix as plain text, and so does a Marian model of several target languages (">>ron<< ").
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from energymt.data.vocabulary import Vocabulary
from energymt.errors import ConfigurationError, StorageError


def open_tokenizer(address: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, or with a Hugging Face id.

    Raises:
        StorageError: if there is no tokenizer, or it cannot be read.
    """
    try:
        for file in Path(address).glob("*token*.json"):  # the tokenizers library raises a bare Exception for these
            json.loads(file.read_text(encoding="utf-8"))
        return AutoTokenizer.from_pretrained(str(address))
    # A tokenizer written by a newer major version fails with whatever its first unknown value brings about.
    except (OSError, RuntimeError, ValueError, ImportError, KeyError, AttributeError, TypeError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise StorageError(
            f"{address} holds no tokenizer that transformers {transformers.__version__} can read ({reason}); "
            f"check the address, or use the version that wrote it."
        ) from None


class HubVocabulary(Vocabulary):
    """The tokens of a Hugging Face encoder-decoder model.

    Args:
        tokenizer: of the model.
        source_language: code of the source language as the tokenizer writes it ("de_DE", "deu_Latn", "de").
        target_language: code of the target language.
        source_prefix: text put before every source, spaces included.

    Raises:
        ConfigurationError: an unknown language code, two separate vocabularies, or no end or padding token.
    """

    kind = "hub"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        source_language: str | None = None,
        target_language: str | None = None,
        source_prefix: str = "",
    ) -> None:
        name = type(tokenizer).__name__
        if getattr(tokenizer, "separate_vocabs", False):
            raise ConfigurationError(f"{name} keeps one vocabulary for each language; energymt needs a shared one.")
        if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
            raise ConfigurationError(f"{name} has no end or no padding token; add both to its tokenizer_config.json.")
        self.tokenizer = tokenizer
        self.source_language, self.target_language = source_language, target_language
        self.source_prefix = source_prefix
        self._set_languages()
        # M2M100 keeps its language tokens outside of its list of pieces.
        languages = {int(i) for i in getattr(tokenizer, "lang_token_to_id", {}).values()}
        ids = {int(i) for i in tokenizer.get_vocab().values()} | languages
        self.size = max(ids) + 1
        self.pad_id = int(tokenizer.pad_token_id)
        self.eos_id = int(tokenizer.eos_token_id)
        # Marian and T5 have no start token and start with padding; bytes and characters need no unknown piece.
        self.bos_id = self.pad_id if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id)
        self.unk_id = self.pad_id if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)
        self.mask_id = self.size if tokenizer.mask_token_id is None else int(tokenizer.mask_token_id)
        special = {self.pad_id, self.bos_id, *map(int, tokenizer.all_special_ids), *languages}
        gaps = set(range(self.size)) - ids
        self.never_ids = tuple(sorted((special | gaps) - {self.eos_id, self.unk_id}))

    @staticmethod
    def open(address: str | Path, **options: Any) -> HubVocabulary:
        """The tokenizer in a folder, or with a Hugging Face id; `options` are those of the class.

        Raises:
            StorageError: if there is no tokenizer, or it cannot be read.
        """
        return HubVocabulary(open_tokenizer(address), **options)

    @property
    def target_code(self) -> int | None:
        """The language code that a decoder must read before the first word; None where the family has none there."""
        ids = list(self.tokenizer(text_target="").input_ids)
        return int(ids[0]) if self.target_language is not None and ids[0] != self.eos_id else None

    def piece(self, token_id: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token_id))

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text_target=text, add_special_tokens=False).input_ids)

    def encode_source(self, text: str) -> list[int]:
        return list(self.tokenizer(self.source_prefix + text).input_ids)

    def decode(self, ids: Iterable[int]) -> str:
        words = self.words(ids)
        text = self.tokenizer.decode(words, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return str(text).strip()

    def save(self, folder: Path) -> None:
        self.write_description(
            folder,
            source_language=self.source_language,
            target_language=self.target_language,
            source_prefix=self.source_prefix,
        )
        self.tokenizer.save_pretrained(folder)

    @staticmethod
    def load(folder: Path, description: dict[str, Any]) -> HubVocabulary:
        """Read what `save` wrote."""
        keys = ("source_language", "target_language", "source_prefix")
        return HubVocabulary.open(folder, **{key: description[key] for key in keys})

    def _set_languages(self) -> None:
        name = type(self.tokenizer).__name__
        sides = (("src_lang", "text", self.source_language), ("tgt_lang", "text_target", self.target_language))
        for attribute, argument, code in sides:
            if code is None:
                continue
            if not hasattr(self.tokenizer, attribute):
                raise ConfigurationError(f"{name} knows no language codes; drop {code!r}, or use a source prefix.")
            try:
                setattr(self.tokenizer, attribute, code)
                known = self.tokenizer.unk_token_id not in self.tokenizer(**{argument: ""}).input_ids
            except KeyError:
                known = False
            if not known:
                raise ConfigurationError(f"{name} knows no language {code!r}; write it as the model card does.")
