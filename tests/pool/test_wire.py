"""What travels: real positions and nothing else, of the size of the sentences and never of the vocabulary."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from energymt.pool.wire import PRECISIONS, Ragged, Reply, Request, from_numpy, pack, padded, to_numpy
from energymt.records import SoftTarget, Source
from tests.pool.pools import shipped

WIDTH = 5
MASKS = st.integers(0, 6).flatmap(
    lambda width: st.lists(st.lists(st.booleans(), min_size=width, max_size=width), max_size=5)
)


def batch(mask_BT: torch.Tensor, width: int = WIDTH) -> tuple[Source, SoftTarget]:
    """Any masks: rows that are empty, and padding in front, in between and behind."""
    emb_BTD = torch.randn(*mask_BT.shape, width, dtype=torch.float64)
    ids_BT = torch.randint(0, 250_002, mask_BT.shape)
    return Source(ids_BT, mask_BT), SoftTarget(None, emb_BTD, mask_BT)


def ragged(lengths: list[int], width: int | None = None) -> Ragged:
    shape = (sum(lengths),) if width is None else (sum(lengths), width)
    return Ragged(np.zeros(shape, dtype=np.int32 if width is None else np.float32), np.array(lengths, dtype=np.int32))


def request(source: Ragged, target: Ragged, precision: str = "fp32") -> Request:
    return Request("1", "me", source, target, True, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@given(rows=MASKS)
def test_what_is_packed_comes_out_at_the_left(rows: list[list[bool]], precision: str) -> None:
    mask_BT = torch.tensor(rows, dtype=torch.bool).reshape(len(rows), len(rows[0]) if rows else 0)
    source, target = batch(mask_BT)
    sent, sent_target = shipped(pack(source, target, precision))
    ids_BS, ids_mask_BS = padded(sent)
    emb_BTD, emb_mask_BT = padded(sent_target, precision)
    assert emb_BTD.dtype == PRECISIONS[precision]
    assert ids_BS.shape == emb_BTD.shape[:2] == (len(rows), max(map(sum, rows), default=0))
    for row, mask_T in enumerate(mask_BT):
        length = int(mask_T.sum())
        assert ids_BS[row].tolist() == source.ids_BS[row][mask_T].tolist() + [0] * (ids_BS.shape[1] - length)
        assert torch.equal(emb_BTD[row, :length], target.emb_BTD[row][mask_T].to(PRECISIONS[precision]))
        assert not emb_BTD[row, length:].any()
        assert ids_mask_BS[row].tolist() == emb_mask_BT[row].tolist() == [i < length for i in range(ids_BS.shape[1])]


def test_hard_translations_travel_as_ids() -> None:
    mask_BT = torch.tensor([[True, True, False], [True, True, True]])
    source, target = batch(mask_BT)
    _, sent = pack(source, replace(target, ids_BT=source.ids_BS), "bf16")
    assert sent.values.dtype == np.int32
    assert sent.values.tolist() == source.ids_BS[mask_BT].tolist()
    assert padded(sent, "bf16")[0].tolist() == source.ids_BS.masked_fill(~mask_BT, 0).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int32])
def test_arrays_and_tensors(dtype: torch.dtype) -> None:
    values = (1000 * torch.randn(4, 3)).to(dtype)
    array = shipped(to_numpy(values))
    assert not array.flags.writeable
    tensor = from_numpy(array, "bf16")
    assert torch.equal(tensor, values) and tensor.dtype == dtype
    tensor += 1  # a copy of what cannot be written
    assert torch.equal(from_numpy(array, "bf16"), values)


@pytest.mark.parametrize("vocabulary", [64, 4096])
@pytest.mark.parametrize("precision, size", [("fp32", 4), ("bf16", 2), ("fp64", 8)])
def test_bytes_are_those_of_the_sentences(precision: str, size: int, vocabulary: int) -> None:
    rows, wide, width = 32, 64, 128
    lengths_B = torch.randint(0, wide + 1, (rows,))
    mask_BT = torch.arange(wide) < lengths_B[:, None]
    table_VD = torch.randn(vocabulary, width)
    emb_BTD = torch.randn(rows, wide, vocabulary).softmax(-1) @ table_VD
    source = Source(torch.randint(0, vocabulary, (rows, wide)), mask_BT)
    sent = Request("id", "client", *pack(source, SoftTarget(None, emb_BTD, mask_BT), precision), True, precision)
    positions = int(lengths_B.sum())
    payload = positions * (width * size + 4) + 2 * 4 * rows
    assert payload <= len(pickle.dumps(sent, protocol=5)) <= 1.01 * payload + 1024

    # A reply that is a slice of a batch takes nothing of its neighbours along.
    whole = to_numpy(torch.zeros(10 * positions, width, dtype=PRECISIONS[precision]))
    scores = np.zeros(10 * rows, dtype=np.float32)
    reply = Reply("id", "replica", 0, scores[rows : 2 * rows], whole[positions : 2 * positions])
    payload = positions * width * size + 4 * rows
    assert payload <= len(pickle.dumps(reply, protocol=5)) <= 1.01 * payload + 1024


@pytest.mark.parametrize(
    "damaged, words",
    [
        (request(ragged([2, 3]), ragged([1, 0], WIDTH)), ""),
        (request(ragged([]), ragged([], WIDTH)), ""),
        (request(ragged([2, 3]), ragged([1], WIDTH)), "2 sentences it holds 1 translation lengths"),
        (request(Ragged(np.zeros(4, np.int32), np.array([2, 3], np.int32)), ragged([1, 1])), "sum to 5, and 4 pos"),
        (request(ragged([2, 3]), Ragged(np.zeros(4, np.int32), np.array([5, -1], np.int32))), "sum to 4, and 4 pos"),
        (request(ragged([2]), ragged([1]), "fp8"), "precision fp8 is none of fp32, bf16, fp64"),
    ],
)
def test_requests_that_do_not_add_up(damaged: Request, words: str) -> None:
    fault = damaged.fault()
    assert words in fault and bool(fault) == bool(words)
