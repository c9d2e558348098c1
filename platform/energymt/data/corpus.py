"""Where text stands (`DataConfig`, in one part or several), and the text itself (`Corpus`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from energymt.data.formats import Records, find, pick, read_hub, read_jsonl, read_text, read_tsv
from energymt.errors import ConfigurationError, DataError

HUB = "hub:"
FORMATS = {".tsv": "tsv", ".jsonl": "jsonl", ".txt": "text"}
REMOTE = ("s3://", "runs:/", "models:/")
TEXT_NAMES = ("source", "target")  # of the two sides of a pair of text files


class TextConfig(BaseModel):
    """Where one part of a text stands, and which of its rows are read."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    path: str
    """Address of a TSV or JSONL file, or of the source side of a pair of text files, plain or .gz; or `hub:NAME`, the
    id of a Hugging Face dataset."""
    source: str | None = None
    """Column (TSV, dataset) or key (JSONL) of the source text; a dot goes into nested values (`translation.de`)."""
    target: str | None = None
    """Column or key of the target text."""
    target_path: str | None = None
    """Address of the target side, where source and target are two text files, line by line."""
    format: Literal["tsv", "jsonl", "text"] | None = None
    """Format of the file; None tells it by the name: .tsv, .jsonl or .txt, each perhaps with .gz; with a `target_path`
    it is text."""
    subset: str | None = None
    """Configuration of a Hugging Face dataset (`de-en`)."""
    split: str = "train"
    """Split of a Hugging Face dataset."""
    prefix: str = ""
    """Task prefix, put before each source that a translator reads, spaces included ("translate German to English: ",
    Raffel et al. 2020, arXiv:1910.10683); estimators, metrics and files do not see it."""
    rows: PositiveInt | None = None
    """Read this many pairs from the start; None reads all."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Read a random share of the pairs, drawn by share_seed; 0.2 is QE-EBM's labelled share. The same path without a
    target and with all pairs is then the unlabelled text."""
    share_seed: int = Field(default=1, ge=0)
    """Seed of the share. A larger share with the same seed holds all pairs of a smaller one."""


class DataConfig(TextConfig):
    """Where parallel text stands and how it is read."""

    also: list[TextConfig] = []
    """Further parts of the text, read behind this one: other files, columns or directions, each with keys of its own
    from `path` to `share_seed` (nothing is taken over from here); the keys below are those of the whole."""
    segmented: bool = False
    """Whether the text is already segmented into pieces that spaces part (BPE `@@ `, SentencePiece pieces)."""
    joiner: str | None = None
    """How segmented pieces grow together in output: "@@" (at the end of a piece that goes on), "▁" (SentencePiece)."""
    max_source_tokens: PositiveInt = 250
    """Longest source, in tokens with prefix and end token; longer pairs are left out. Models have room for 256 with all
    start tokens and language codes."""
    max_target_tokens: PositiveInt = 250
    """Longest target, in tokens with the end token."""


@dataclass(frozen=True)
class Corpus:
    """Sentences, or sentence pairs, in the order of their file."""

    source: list[str]
    target: list[str] | None
    origin: str
    """Where the text comes from, for people."""
    segmented: bool = False
    prefixes: list[str] | None = None
    """The task prefix of each row; None where there are none."""

    def __len__(self) -> int:
        return len(self.source)

    @cached_property
    def inputs(self) -> list[str]:
        """What a translator reads: each source behind its prefix. Everybody else reads `source`."""
        if self.prefixes is None:
            return self.source
        return [prefix + text for prefix, text in zip(self.prefixes, self.source, strict=True)]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all texts, and of the prefixes where there are any."""
        digest = hashlib.sha256("\n".join(self.source).encode("utf-8", "surrogatepass"))
        if self.target is not None:
            digest.update(b"\0" + "\n".join(self.target).encode("utf-8", "surrogatepass"))
        if self.prefixes is not None:
            digest.update(b"\1" + "\n".join(self.prefixes).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def read_corpus(config: DataConfig, *, need_target: bool = True) -> Corpus:
    """Read the text that `config` names. Without `need_target`, targets are read only where all its parts name one.

    Raises:
        ConfigurationError: a format that cannot be told, or keys that do not go together.
        DataError: a missing, cut, malformed or empty file; the sentence names file and line.
    """
    return read_columns(config, need_target=need_target)[0]


def read_columns(
    config: DataConfig, extra: Sequence[str] = (), *, need_target: bool = True
) -> tuple[Corpus, dict[str, list[tuple[str, Any]]]]:
    """The text, and what stands beside it in other columns: for each of them a place and a raw value a row."""
    need_target = need_target or all(part.target or part.target_path for part in (config, *config.also))
    read = [_read(part, extra, need_target) for part in parts(config)]
    corpora = [corpus for corpus, _ in read]
    prefixes = [prefix for corpus in corpora for prefix in corpus.prefixes or [""] * len(corpus)]
    corpus = Corpus(
        [text for corpus in corpora for text in corpus.source],
        [text for corpus in corpora for text in corpus.target or ()] if need_target else None,
        " and ".join(corpus.origin for corpus in corpora),
        config.segmented,
        prefixes if any(prefixes) else None,
    )
    return corpus, {name: [value for _, beside in read for value in beside[name]] for name in extra}


def parts(config: DataConfig) -> list[DataConfig]:
    """Every part of the text by itself, in their order."""
    own = TextConfig.model_fields
    return [
        config.model_copy(update={**{name: getattr(part, name) for name in own}, "also": []})
        for part in (config, *config.also)
    ]


def joined(found: Sequence[DataConfig]) -> DataConfig:
    """Parts as one text again; what concerns the whole is that of the first."""
    own = TextConfig.model_fields
    also = [TextConfig(**{name: getattr(part, name) for name in own}) for part in found[1:]]
    return found[0].model_copy(update={"also": also})


def sources_alone(config: DataConfig) -> DataConfig:
    """The same text without its targets."""

    def alone(part: DataConfig) -> DataConfig:
        kind = "text" if part.target_path is not None else part.format
        return part.model_copy(update={"target": None, "target_path": None, "format": kind})

    return joined([alone(part) for part in parts(config)])


def task_prefixes(corpora: Iterable[Corpus]) -> set[str]:
    """All prefixes that translators read in these texts."""
    return {prefix for corpus in corpora for prefix in corpus.prefixes or () if prefix}


def _read(
    config: DataConfig, extra: Sequence[str], need_target: bool
) -> tuple[Corpus, dict[str, list[tuple[str, Any]]]]:
    """One part, as `read_columns`; without `need_target` no target is read."""
    kind = _format(config)
    source, target = _names(config, kind, need_target)
    if extra and kind == "text":
        raise ConfigurationError(f"{config.path} is plain text without columns: it has no {extra[0]!r}; use TSV.")
    sources: list[str] = []
    targets: list[str] = []
    beside: dict[str, list[tuple[str, Any]]] = {name: [] for name in extra}
    wanted = [source, *([] if target is None else [target]), *beside]
    for place, record in islice(_records(config, kind, wanted), config.rows):
        sources.append(pick(record, source, place))
        if target is not None:
            targets.append(pick(record, target, place))
        for name in beside:  # a name may be asked for twice
            beside[name].append((place, find(record, name, place)))
    if not sources:
        raise DataError(f"{config.path} holds no sentence; check that it was written to its end.")
    shown = config.target_path if kind == "text" else f"{source} → {target}" if target else source
    origin = f"{config.path} ({shown})" if shown else config.path
    if config.share < 1:
        rows = _drawn(config, len(sources))
        sources, targets = [sources[row] for row in rows], [targets[row] for row in rows if targets]
        beside = {name: [values[row] for row in rows] for name, values in beside.items()}
        origin = f"share {config.share:g} (seed {config.share_seed}) of {origin}"
    prefixes = [config.prefix] * len(sources) if config.prefix else None
    return Corpus(sources, None if target is None else targets, origin, config.segmented, prefixes), beside


def _drawn(config: DataConfig, count: int) -> list[int]:
    """The rows of the random share, in their order: a function of seed, number of rows and share alone."""
    kept = round(config.share * count)
    if not kept:
        raise DataError(f"A share of {config.share:g} of the {count:,} pairs of {config.path} is none; raise share.")
    drawn: list[int] = np.sort(np.random.default_rng(config.share_seed).permutation(count)[:kept]).tolist()
    return drawn


def _format(config: DataConfig) -> str:
    if config.path.startswith(HUB):
        return "hub"
    if config.format is not None:
        return config.format
    if config.target_path is not None:
        return "text"
    suffix = Path(config.path.removesuffix(".gz")).suffix
    if suffix not in FORMATS:
        raise ConfigurationError(
            f"The format of {config.path} cannot be told by its name: name it {', '.join(FORMATS)} (or .gz of these), "
            f"or set format to one of {', '.join(FORMATS.values())}."
        )
    return FORMATS[suffix]


def _names(config: DataConfig, kind: str, need_target: bool) -> tuple[str, str | None]:
    """The names of source and target in the records of the file."""
    if kind == "text":
        if config.source is not None or config.target is not None:
            raise ConfigurationError(f"{config.path} is plain text without columns: drop source and target.")
        if config.target_path is None and need_target:
            raise ConfigurationError(f"{config.path} needs translations beside it: name their file in target_path.")
        return TEXT_NAMES[0], None if config.target_path is None else TEXT_NAMES[1]
    if config.target_path is not None:
        raise ConfigurationError(f"{config.path} holds columns: name the translations in target, not in target_path.")
    if config.source is None:
        raise ConfigurationError(f"{config.path} holds columns: name that of the source text in source.")
    if config.target is None and need_target:
        raise ConfigurationError(f"{config.path} holds columns: name that of the translations in target.")
    return config.source, config.target


def _records(config: DataConfig, kind: str, columns: list[str]) -> Records:
    if kind == "hub":
        return read_hub(config.path.removeprefix(HUB), config.subset, config.split, columns)
    path = local_path(config.path)
    if kind == "tsv":
        return read_tsv(path, columns)
    if kind == "jsonl":
        return read_jsonl(path)
    return read_text(path, None if config.target_path is None else local_path(config.target_path), TEXT_NAMES)


def local_path(address: str) -> Path:
    """The local path of a file at any address."""
    if not address.startswith(REMOTE):
        return Path(address).expanduser()
    from energymt.storage import fetch

    return fetch(address)


def write_tsv(corpus: Corpus, path: Path) -> None:
    """Write a corpus with the columns `source` and, if it has targets, `target`."""
    columns = [["source", *corpus.source]]
    if corpus.target is not None:
        columns.append(["target", *corpus.target])
    path.write_text(
        "".join("\t".join(row) + "\n" for row in zip(*columns, strict=True)), encoding="utf-8", newline="\n"
    )
