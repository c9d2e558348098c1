"""One vector a sentence: mean-pooled encoder states of a translator, or a sentence-transformers model.

Axes of this room: N sentences, B of them in a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from energymt.data.batching import pad
from energymt.decoding.inference import inference
from energymt.errors import ConfigurationError, StorageError
from energymt.models.translator import TranslationModel
from energymt.records import Source

TOKENS = 8192  # source positions that go through a translator's encoder at once, padding included


@dataclass(frozen=True)
class SentenceEncoder:
    """What turns sentences into vectors, and how it is called."""

    option: str
    """What names it on the command line: an address, or `--sentence-transformer` and an address."""
    fingerprint: str
    """What tells it from every other one: the sha256 of its folder, and how it is read."""
    vectors: Callable[[Sequence[str]], NDArray[np.float32]]
    """N sentences -> [N, D], of any length."""


def translator_encoder(model: TranslationModel, address: str, fingerprint: str) -> SentenceEncoder:
    """The encoder of a translator, pooled over the real tokens of a source sentence.

    Args:
        model: on any device.
        address: where it came from.
        fingerprint: of its folder.
    """
    return SentenceEncoder(address, fingerprint, lambda texts: mean_states(model, texts))


def mean_states(model: TranslationModel, texts: Sequence[str]) -> NDArray[np.float32]:
    """The mean encoder state of each text, [N, D]; what a model cannot take of a long text is not read."""
    rows = [model.vocabulary.encode_source(text)[: model.longest] for text in texts]
    vectors: dict[int, NDArray[np.float32]] = {}
    with inference(model):
        for chosen in _batches([len(row) for row in rows]):
            source = Source(*pad([rows[number] for number in chosen], model.vocabulary.pad_id)).to(model.device)
            memory = model.encode(source)
            real_BS1 = memory.mask_BS.unsqueeze(-1)
            sum_BD = memory.states_BSD.float().masked_fill(~real_BS1, 0.0).sum(1)
            mean_BD = (sum_BD / real_BS1.sum(1)).cpu().numpy()
            vectors |= zip(chosen, mean_BD, strict=True)
    return np.stack([vectors[number] for number in range(len(rows))])


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Texts of like length, longest first: if memory does not suffice, the first batch shows it."""
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    start = 0
    while start < len(order):
        size = max(1, TOKENS // lengths[order[start]])
        yield order[start : start + size]
        start += size


def sentence_transformer(folder: Path, address: str, fingerprint: str, device: torch.device) -> SentenceEncoder:
    """A sentence-transformers model (QE-EBM: all-mpnet-base-v2, which is made for English).

    Raises:
        ConfigurationError: the library is not installed.
        StorageError: the folder holds no such model.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ConfigurationError(
            f"--sentence-transformer {address} needs the library sentence-transformers, which cannot be imported "
            f"({error}): install energymt with its extra `neighbours`, or give a translator's address instead."
        ) from None
    try:
        model = SentenceTransformer(str(folder), device=str(device), local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = (" ".join(str(error).split()) or repr(error)).rstrip(".")
        raise StorageError(f"{folder} holds no sentence-transformers model ({reason}); check the address.") from None

    def vectors(texts: Sequence[str]) -> NDArray[np.float32]:
        found: NDArray[np.float32] = model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
        return found

    # The encoder of a translator may be read as such a model, too, and gives other vectors.
    return SentenceEncoder(f"--sentence-transformer {address}", f"sentence-transformer {fingerprint}", vectors)
