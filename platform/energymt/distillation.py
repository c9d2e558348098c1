"""Sequence-level distillation (Kim and Rush 2016): the teacher's beam-search output as a training corpus.

Written in shards, each whole or not there: a killed run goes on with the next missing shard, and several processes
share the work. What was translated, by which weights and how stands in `provenance.json` beside the text.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch

from energymt.data.corpus import Corpus, DataConfig, read_corpus
from energymt.decoding.translate import DecodingOptions, Translator
from energymt.folders import write_atomically
from energymt.models import AutoregressiveModel
from energymt.storage import runs_root

SHARD = 1000  # sentences
TEXT, PROVENANCE = "pseudo.tsv", "provenance.json"
_pretended: ContextVar[list[str] | None] = ContextVar("pretended", default=None)


@contextmanager
def pretending() -> Iterator[list[str]]:
    """Inside the block no text is translated (`--dry-run`): the list says what would be written, and where."""
    notes: list[str] = []
    token = _pretended.set(notes)
    try:
        yield notes
    finally:
        _pretended.reset(token)


def pseudo_corpus(
    teacher: AutoregressiveModel,
    address: str,
    data: DataConfig,
    beam: int = 5,
    device: torch.device | None = None,
) -> DataConfig:
    """The training text with the teacher's translations as targets; written once, then found again.

    Args:
        teacher: the translator; it stays on `device` if anything is translated.
        address: where it came from, for the provenance.
        data: the training text; its targets are not read.
        beam: beam width (published ENGINE: 5).
        device: where to translate; None is where the teacher is.

    Returns:
        The data configuration of the pseudo-corpus (TSV, columns `source` and `target`), limits as in `data`.
    """
    corpus = read_corpus(data, need_target=False)
    facts = {
        "teacher": fingerprint(teacher),
        "text": hashlib.sha256("\n".join(corpus.source).encode()).hexdigest(),
        "beam": beam,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = runs_root() / "pseudo" / key
    notes = _pretended.get()
    if notes is not None and not (folder / PROVENANCE).is_file():
        notes.append(f"{len(corpus):,} translations of beam {beam} by {address}, to be written to {folder}")
        return _stand_in(data)
    if not (folder / PROVENANCE).is_file():
        write_pseudo_corpus(teacher.to(device or teacher.device), corpus, folder, beam)
        provenance = {**facts, "teacher_address": address, "origin": corpus.origin, "sentences": len(corpus)}
        write_atomically(folder / PROVENANCE, json.dumps(provenance, indent=1))
    changes = {"path": str(folder / TEXT), "source": "source", "target": "target", "target_path": None, "format": "tsv"}
    return data.model_copy(update={**changes, "share": 1.0})  # what was translated is the share already


def _stand_in(data: DataConfig) -> DataConfig:
    """Text of about the size of the translations: the references, or the sources where there are none."""
    if data.target is not None or data.target_path is not None:
        return data
    return data.model_copy(update={"target": data.source, "target_path": data.path if data.source is None else None})


def write_pseudo_corpus(teacher: AutoregressiveModel, corpus: Corpus, folder: Path, beam: int) -> None:
    """Translate every shard that is missing, then join them. Pairs with an empty translation are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    translator = Translator(teacher.eval(), DecodingOptions(beam=beam))
    starts = range(0, len(corpus), SHARD)
    missing = [start for start in starts if not _shard(folder, start).is_file()]
    while missing:
        for start in missing:
            with _claim(folder / f"shard-{start:09d}.lock") as mine:
                if mine and not _shard(folder, start).is_file():
                    sources = corpus.source[start : start + SHARD]
                    found = translator.translate(sources)
                    outputs = [teacher.vocabulary.as_corpus_text(candidates[0][1].ids) for candidates in found]
                    lines = [f"{source}\t{output}\n" for source, output in zip(sources, outputs, strict=True) if output]
                    write_atomically(_shard(folder, start), "".join(lines))
        missing = [start for start in starts if not _shard(folder, start).is_file()]
        if missing:  # another process is at work on them
            time.sleep(0.5)
    text = "".join(_shard(folder, start).read_text(encoding="utf-8") for start in starts)
    write_atomically(folder / TEXT, "source\ttarget\n" + text)


def fingerprint(model: AutoregressiveModel) -> str:
    """sha256 over the weights of a model, name by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()


def _shard(folder: Path, start: int) -> Path:
    return folder / f"shard-{start:09d}.tsv"


@contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """True if this process has the lock; the system frees it when the process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
