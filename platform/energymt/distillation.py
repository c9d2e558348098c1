"""Sequence-level distillation (Kim and Rush 2016): the teacher's beam-search output as a training corpus.

Written in shards, each whole or not there: a killed run goes on with the next missing shard, and several processes
share the work. What was translated, by which weights and how stands in `provenance.json` beside the text.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from energymt.data.corpus import Corpus, DataConfig, joined, parts, read_corpus
from energymt.decoding.translate import DecodingOptions, Translator
from energymt.folders import write_atomically
from energymt.models import AutoregressiveModel
from energymt.shards import in_shards, pretended
from energymt.storage import runs_root

TEXT, PROVENANCE = "pseudo.tsv", "provenance.json"


def pseudo_corpus(
    teacher: AutoregressiveModel,
    address: str,
    data: DataConfig,
    beam: int = 5,
    device: torch.device | None = None,
) -> DataConfig:
    """The training text with the teacher's translations as targets; each part is written once, then found again.

    Args:
        teacher: the translator; it stays on `device` if anything is translated.
        address: where it came from, for the provenance.
        data: the training text; its targets are not read.
        beam: beam width (published ENGINE: 5).
        device: where to translate; None is where the teacher is.

    Returns:
        The data configuration of the pseudo-corpus (TSV, columns `source` and `target`), prefixes and limits as in
        `data`.
    """
    return joined([_pseudo_part(teacher, address, part, beam, device) for part in parts(data)])


def _pseudo_part(
    teacher: AutoregressiveModel, address: str, data: DataConfig, beam: int, device: torch.device | None
) -> DataConfig:
    corpus = read_corpus(data, need_target=False)
    facts = {
        "teacher": fingerprint(teacher),
        "text": hashlib.sha256("\n".join(corpus.source).encode()).hexdigest(),
        "beam": beam,
        **({"prefix": data.prefix} if data.prefix else {}),
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    folder = runs_root() / "pseudo" / key
    notes = pretended()
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
    """Translate what is missing, then write the text. Pairs with an empty translation are left out."""
    translator = Translator(teacher.eval(), DecodingOptions(beam=beam))

    def translate(rows: range) -> list[str]:
        chosen = slice(rows.start, rows.stop)
        prefixes = corpus.prefixes and corpus.prefixes[chosen]
        found = translator.translate(corpus.source[chosen], prefixes=prefixes)
        return [teacher.vocabulary.as_corpus_text(candidates[0][1].ids) for candidates in found]

    pairs = zip(corpus.source, in_shards(folder, len(corpus), translate), strict=True)
    lines = [f"{source}\t{output}\n" for source, output in pairs if output]
    write_atomically(folder / TEXT, "source\ttarget\n" + "".join(lines))


def fingerprint(model: AutoregressiveModel) -> str:
    """sha256 over the weights of a model, name by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().float().numpy().tobytes())
    return digest.hexdigest()
