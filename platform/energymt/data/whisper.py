"""The tokens of a Whisper checkpoint, and what its decoder reads before the first word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from energymt.data.hub import HubVocabulary, open_tokenizer
from energymt.errors import ConfigurationError

Task = Literal["transcribe", "translate"]
TIMESTAMP = re.compile(r"<\|\d+\.\d\d\|>")


class WhisperVocabulary(HubVocabulary):
    """Byte-level pieces of transcripts. Time stamps stand in none of them.

    Args:
        tokenizer: of the checkpoint.
        suppressed: ids that no transcript holds (`suppress_tokens` of the checkpoint: music, brackets, speakers).
        suppressed_first: ids that no transcript begins with (`begin_suppress_tokens`: a lone space, the end).
    """

    kind = "whisper"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        suppressed: Sequence[int] = (),
        suppressed_first: Sequence[int] = (),
    ) -> None:
        super().__init__(tokenizer)
        self.suppressed, self.suppressed_first = list(suppressed), list(suppressed_first)
        stamps = {int(i) for piece, i in tokenizer.get_vocab().items() if TIMESTAMP.fullmatch(piece)}
        never = ({*self.never_ids, *suppressed} | stamps) - {self.eos_id}
        self.never_ids = tuple(sorted(i for i in never if 0 <= i < self.size))
        self.never_first_ids = tuple(sorted(i for i in suppressed_first if 0 <= i < self.size))

    def encode(self, text: str) -> list[int]:
        # Whisper learnt from transcripts that begin with a space, as every word of them does.
        return list(self.tokenizer(f" {text.strip()}", add_special_tokens=False).input_ids)

    def save(self, folder: Path) -> None:
        self.write_description(folder, suppressed=self.suppressed, suppressed_first=self.suppressed_first)
        self.tokenizer.save_pretrained(folder)

    @staticmethod
    def load(folder: Path, description: dict[str, Any]) -> WhisperVocabulary:
        """Read what `save` wrote."""
        keys = ("suppressed", "suppressed_first")
        return WhisperVocabulary(open_tokenizer(folder), **{key: description[key] for key in keys})


def start_of_transcript(generation: Any, language: str | None, task: Task) -> tuple[int, ...]:
    """What the decoder reads first: start, language, task and no-timestamps tokens (Radford et al. 2022, figure 1).

    A model of English alone reads no language and no task.

    Args:
        generation: generation configuration of the checkpoint.
        language: code of the language that is spoken ("en").
        task: `translate` writes English, whatever is spoken.

    Raises:
        ConfigurationError: no or an unknown language, or a generation configuration that is older than these tokens.
    """
    start, silent = (getattr(generation, name, None) for name in ("decoder_start_token_id", "no_timestamps_token_id"))
    if start is None or silent is None:
        raise ConfigurationError(
            "generation_config.json of this Whisper checkpoint names no decoder_start_token_id or no "
            "no_timestamps_token_id: take the one that its model card shows now."
        )
    if not getattr(generation, "is_multilingual", True):
        if language not in (None, "en") or task != "transcribe":
            raise ConfigurationError("This Whisper checkpoint knows English alone: drop the languages.")
        return start, silent
    languages = {token.strip("<|>"): int(i) for token, i in (getattr(generation, "lang_to_id", None) or {}).items()}
    if language not in languages:
        known = get_close_matches(language or "", languages, n=1, cutoff=0.0) if language else []
        hint = f"did you mean {known[0]!r}?" if known else "name that which is spoken, for example 'en'."
        raise ConfigurationError(f"This Whisper checkpoint is multilingual and knows no language {language!r}: {hint}")
    return start, languages[language], int(generation.task_to_id[task]), silent
