"""For each labelled source the unlabelled sources that are nearest to it, found once and kept in a folder.

QE-EBM replaces the unlabelled batch by the nearest neighbours of the labelled one (published code of arXiv 2410.10228).
The search is exact: inner products of vectors of length 1. Beside the neighbours lies the index of the unlabelled
vectors: the neighbours of other sentences, or more of them, in the same text by the same encoder are found in that.

Axes of this room: N labelled sentences, K neighbours of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from energymt.console import plain
from energymt.data.corpus import Corpus
from energymt.data.sentence_vectors import SentenceEncoder
from energymt.errors import DataError, StorageError
from energymt.folders import MANIFEST, atomic_folder, verify_manifest, write_manifest

INDEX_FILE, ROWS_FILE = "neighbours.faiss", "neighbours.npy"
KIND = "neighbours"


def build_neighbours(
    folder: Path, labelled: Corpus, unlabelled: Corpus, encoder: SentenceEncoder, count: int = 1
) -> NDArray[np.int64]:
    """Find the neighbours of every labelled sentence and write them down; a folder of neighbours is replaced.

    If it holds the index of this unlabelled text by this encoder, that is used again, and a line says so.

    Returns:
        rows_NK: rows of `unlabelled`, the nearest first. A sentence that stands there several times is known by its
        first row, and none is a neighbour of itself.

    Raises:
        DataError: fewer than `count` other sentences, or a sentence whose vector is not finite.
        StorageError: `folder` holds something else, or cannot be written.
    """
    import faiss  # who only loads neighbours needs no index

    _require_place(folder)
    first_rows: dict[str, int] = {}
    for row, text in enumerate(unlabelled.source):
        first_rows.setdefault(text, row)
    _require_others(labelled, unlabelled, first_rows, count)
    known, new = list(first_rows), [text for text in dict.fromkeys(labelled.source) if text not in first_rows]
    index = _stored_index(folder, unlabelled, encoder)
    if index is None:
        vectors = _unit_vectors(encoder, [*known, *new])  # every sentence goes through the encoder once
        index = faiss.IndexIDMap(faiss.IndexFlatIP(vectors.shape[1]))
        index.add_with_ids(vectors[: len(known)], np.fromiter(first_rows.values(), np.int64))
    else:
        plain(f"{folder} holds the vectors of this unlabelled text by this encoder: they are used again.")
        vectors = faiss.downcast_index(index.index).reconstruct_n(0, index.ntotal)
        if new:
            vectors = np.concatenate([vectors, _unit_vectors(encoder, new)])
    places = {text: number for number, text in enumerate([*known, *new])}
    # One more than asked for: among them may be the sentence itself.
    _, found = index.search(vectors[[places[text] for text in labelled.source]], min(count + 1, len(first_rows)))
    own = np.array([first_rows.get(text, -1) for text in labelled.source])
    rows_NK = np.stack([row[row != itself][:count] for row, itself in zip(found, own, strict=True)])
    with atomic_folder(folder) as part:
        faiss.write_index(index, str(part / INDEX_FILE))
        np.save(part / ROWS_FILE, rows_NK, allow_pickle=False)
        write_manifest(part, _provenance(labelled, unlabelled, encoder, count))
    return rows_NK


def load_neighbours(folder: Path, labelled: Corpus, unlabelled: Corpus) -> NDArray[np.int64]:
    """What `build_neighbours` found for these two corpora, rows_NK; only their sources count.

    Raises:
        DataError: the neighbours are those of other text; the sentence says which side differs.
        StorageError: there are none, or a file is damaged.
    """
    if not folder.is_dir():
        raise StorageError(f"{folder} does not exist: find the neighbours first ({_command({}, folder)}).")
    facts = verify_manifest(folder)
    if facts.get("kind") != KIND:
        raise StorageError(f"{folder} holds no neighbours: name a folder that `{_command({}, folder)}` wrote.")
    for side, corpus in {"labelled": labelled, "unlabelled": unlabelled}.items():
        if facts[side]["sources"] != _sources(corpus):
            was = facts[side]
            raise DataError(
                f"The neighbours in {folder} were found for another {side} text, {was['sentences']:,} sentences of "
                f"{was['origin']}, than the {len(corpus):,} of {corpus.origin}: find them anew "
                f"({_command(facts, folder)})."
            )
    rows_NK: NDArray[np.int64] = np.load(folder / ROWS_FILE, allow_pickle=False)
    return rows_NK


def _unit_vectors(encoder: SentenceEncoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """The vector of each text, of length 1."""
    import faiss

    vectors = np.ascontiguousarray(encoder.vectors(texts), dtype=np.float32)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise DataError(
            f"{encoder.option} gives {texts[int(finite.argmin())]!r} a vector that is not finite: its weights are "
            f"damaged, or it cannot read this sentence; use another model or remove the sentence."
        )
    faiss.normalize_L2(vectors)
    return vectors


def _stored_index(folder: Path, unlabelled: Corpus, encoder: SentenceEncoder) -> Any | None:
    """The index in `folder`, if it is whole and that of this text by this encoder."""
    import faiss

    try:
        facts = verify_manifest(folder)
    except StorageError:  # nothing there, or damaged: it is made anew
        return None
    if facts["unlabelled"]["sources"] != _sources(unlabelled) or facts["encoder_fingerprint"] != encoder.fingerprint:
        return None
    return faiss.read_index(str(folder / INDEX_FILE))


def _require_place(folder: Path) -> None:
    """Refuse to write neighbours over anything else."""
    if folder.is_dir() and any(folder.iterdir()):
        if (folder / MANIFEST).is_file() and (folder / ROWS_FILE).is_file():
            return
        raise StorageError(f"{folder} holds other files than neighbours; name a new folder.")


def _require_others(labelled: Corpus, unlabelled: Corpus, first_rows: dict[str, int], count: int) -> None:
    """There must be `count` neighbours for every sentence, itself not counted."""
    for text in labelled.source:
        others = len(first_rows) - (text in first_rows)
        if others < count:
            raise DataError(
                f"{unlabelled.origin} holds {others:,} different sentences beside {text!r}, and {count:,} neighbours "
                f"are asked for: give more text, or ask for fewer."
            )


def _provenance(labelled: Corpus, unlabelled: Corpus, encoder: SentenceEncoder, count: int) -> dict[str, Any]:
    sides = {"labelled": labelled, "unlabelled": unlabelled}
    return {
        "kind": KIND,
        **{
            side: {"sources": _sources(corpus), "sentences": len(corpus), "origin": corpus.origin}
            for side, corpus in sides.items()
        },
        "encoder": encoder.option,
        "encoder_fingerprint": encoder.fingerprint,
        "count": count,
    }


def _sources(corpus: Corpus) -> str:
    """The fingerprint of the sources: no neighbour depends on the targets and task prefixes that a run reads."""
    return replace(corpus, target=None, prefixes=None).fingerprint


def _command(facts: dict[str, Any], folder: Path) -> str:
    """How to find the neighbours in `folder`, as far as it is known how they were found before."""
    return (
        f"energymt data neighbours {facts.get('encoder', 'MODEL')} --labelled FILE [--rows R --share S --share-seed N] "
        f"--unlabelled FILE [--unlabelled-rows R] --source COLUMN --count {facts.get('count', 1)} --output {folder}"
    )
