"""Requests in, replies out: what the estimator gives in this process, whatever stands beside it in the batch."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from energymt.models.estimator import QualityEstimator
from energymt.pool import server as server_room
from energymt.pool.server import DeviceError, Server
from energymt.pool.wire import Ragged, Reply, Request, from_numpy
from energymt.records import SoftTarget, Source
from tests import estimators
from tests.pool.pools import LINES, Disturbed, locally, mixed, request_of, require_close, rows_of, shipped, tensors

B = len(LINES)
MARK = 3  # the unknown token, which no sentence below holds


def asked(server: Server, *requests: Request) -> list[Reply]:
    return shipped(server.answer(shipped(requests)))


def part(name: str, batch: tuple[Source, SoftTarget], rows: Sequence[int], **more) -> Request:
    return request_of(name, *rows_of(*batch, rows), **more)


@pytest.fixture(scope="module")
def model() -> QualityEstimator:
    return estimators.estimator("kiwi")


@pytest.mark.parametrize("kind", estimators.ENERGIES)
def test_one_request_is_the_local_estimator_to_the_last_bit(kind: str) -> None:
    model = estimators.estimator(kind)
    batch = mixed(model)
    [reply] = asked(Server(model, "one", 3), request_of("a", *batch))
    require_close(tensors(reply), locally(model, *batch), atol=0)
    assert (reply.id, reply.replica, reply.version, reply.flags) == ("a", "one", 3, {})
    [scored] = asked(Server(model), request_of("b", *batch, gradient=False))
    assert scored.gradient is None
    assert scored.scores.tolist() == reply.scores.tolist()


@pytest.mark.parametrize("kind", estimators.ENERGIES)
def test_requests_computed_together(kind: str) -> None:
    """Ragged, in any order, cut anywhere; one of them without a sentence."""
    model = estimators.estimator(kind)
    batch = mixed(model)
    parts = [[4], [0, 3], [], [2, 1]]
    replies = asked(Server(model), *(part(str(n), batch, rows) for n, rows in enumerate(parts)))
    assert [reply.id for reply in replies] == ["0", "1", "2", "3"]
    for rows, reply in zip(parts, replies, strict=True):
        assert len(reply.scores) == len(rows)
        if rows:
            require_close(tensors(reply), locally(model, *rows_of(*batch, rows)), atol=1e-6)


def test_nothing_to_compute(model: QualityEstimator) -> None:
    server = Server(model)
    [reply] = asked(server, part("a", mixed(model), []))
    scores, gradient = tensors(reply)
    assert scores.shape == (0,) and gradient.shape == (0, estimators.WIDTH)
    assert asked(server, part("a", mixed(model), [], gradient=False))[0].gradient is None


def test_translations_without_a_token(model: QualityEstimator) -> None:
    empty = LINES.index(("ein Buch .", ""))
    batch = rows_of(*mixed(model), [empty, empty])
    [reply] = asked(Server(model), request_of("a", *batch))
    scores, gradient = tensors(reply)
    require_close([scores], [locally(model, *batch)[0]], atol=1e-6)
    assert gradient.shape == (0, estimators.WIDTH) and not reply.flags


def test_ids_in_are_embeddings_in(model: QualityEstimator) -> None:
    source, target = estimators.source_of(model, estimators.SOURCES), estimators.target_of(model, estimators.REFERENCES)
    hard, soft = request_of("hard", source, target), request_of("soft", source, replace(target, ids_BT=None))
    assert hard.target.values.dtype == np.int32 and soft.target.values.dtype == np.float32
    one, other = (asked(Server(model), request)[0] for request in (hard, soft))
    require_close(tensors(one), tensors(other), atol=1e-6)
    assert torch.tensor(one.gradient).abs().sum(1).min() > 0


@pytest.mark.parametrize("order", ["hard first", "soft first"])
def test_hard_and_soft_translations_in_one_batch(order: str, model: QualityEstimator) -> None:
    """To the last bit what they are beside each other as embeddings, ragged and with an empty one among them."""
    source, target = (
        estimators.source_of(model, estimators.SOURCES),
        estimators.target_of(model, estimators.TRANSLATIONS),
    )
    _, soft = mixed(model)
    requests = [request_of("hard", source, target), request_of("soft", source, soft)]
    as_soft = [request_of("hard", source, replace(target, ids_BT=None)), requests[1]]
    if order == "soft first":
        requests, as_soft = requests[::-1], as_soft[::-1]
    assert {request.target.values.ndim for request in requests} == {1, 2}
    for found, wanted in zip(asked(Server(model), *requests), asked(Server(model), *as_soft), strict=True):
        require_close(tensors(found), tensors(wanted), atol=0)


@pytest.mark.parametrize("precision, dtype", [("fp32", torch.float64), ("fp64", torch.float32)])
def test_scores_are_as_exact_as_the_estimator(precision: str, dtype: torch.dtype) -> None:
    """Whatever travels, and whatever it computes with: a gradient comes back as embeddings went out."""
    model = estimators.estimator("kiwi").to(dtype)
    batch = mixed(model)
    [reply] = asked(Server(model), request_of("a", *batch, precision=precision))
    scores, gradient = tensors(reply)
    assert (scores.dtype, gradient.dtype) == (dtype, {"fp32": torch.float32, "fp64": torch.float64}[precision])
    wanted = [values.double() for values in locally(model, *batch)]
    require_close([scores.double(), gradient.double()], wanted, atol=1e-6)


def test_bfloat16_is_close(model: QualityEstimator) -> None:
    batch = mixed(model)
    wanted, wanted_gradient = locally(model, *batch)
    for server, tolerance in ((Server(model), 0.02), (Server(estimators.estimator("kiwi").bfloat16()), 0.1)):
        [reply] = asked(server, request_of("a", *batch, precision="bf16"))
        gradient = from_numpy(reply.gradient, "bf16")
        assert gradient.dtype == torch.bfloat16 and reply.scores.dtype == np.float32
        off = (gradient.float() - wanted_gradient).norm() / wanted_gradient.norm()
        assert 0 < off < tolerance
        assert np.abs(reply.scores - wanted.numpy()).max() < tolerance * np.abs(wanted.numpy()).max()


# -------------------------------------------------------------------------------------------------------------- poison


def changed(rows: Ragged, row: int, value: float) -> Ragged:
    values = rows.values.copy()
    values[int(rows.lengths[:row].sum())] = value
    return Ragged(values, rows.lengths)


def narrower(rows: Ragged) -> Ragged:
    return Ragged(rows.values[:, :-1].copy(), rows.lengths)


# What is done to a request that holds the sentence of row 2 alone, and what the flag says.
POISON: dict[str, tuple[Callable[[Request], Request], str]] = {
    "source id": (lambda r: replace(r, source=changed(r.source, 0, 777)), "source holds the token id 777, but"),
    "negative id": (lambda r: replace(r, source=changed(r.source, 0, -3)), "source holds the token id -3, but"),
    "NaN": (lambda r: replace(r, target=changed(r.target, 0, np.nan)), "score or its gradient is not finite"),
    "infinity": (lambda r: replace(r, target=changed(r.target, 0, np.inf)), "score or its gradient is not finite"),
    "width": (lambda r: replace(r, target=narrower(r.target)), "embeddings are 11 wide and the estimator's 12: mix"),
    "exception": (lambda r: replace(r, source=changed(r.source, 0, MARK)), "KeyError: 'no such word'"),
}


def stumbles(source: Source, target: SoftTarget) -> None:
    if (source.ids_BS == MARK).any():
        raise KeyError("no such word")


@pytest.mark.parametrize("poison", POISON)
@pytest.mark.parametrize("before, after", [([0, 1], [4, 3]), ([], [0]), ([3], [])])
def test_a_bad_sentence_is_flagged_and_the_others_are_not(
    poison: str, before: list[int], after: list[int], model: QualityEstimator
) -> None:
    """The bad one in the middle of a batch, at its start and at its end; in a request of its own and beside others."""
    server, batch = Server(Disturbed(model, stumbles)), mixed(model)
    spoil, words = POISON[poison]
    bad, first, last = spoil(part("bad", batch, [2])), part("first", batch, before), part("last", batch, after)
    found = asked(server, first, bad, last)
    assert [list(reply.flags) for reply in found] == [[], [0], []]
    assert words in found[1].flags[0]
    scores, gradient = tensors(found[1])
    assert scores.isnan().all()
    assert gradient.shape == (len(bad.target.values), estimators.WIDTH) and not gradient.any()
    exactly = poison in ("source id", "negative id", "width")  # these do not enter a batch
    for reply, alone in zip((found[0], found[2]), asked(server, first, last), strict=True):
        require_close(tensors(reply), tensors(alone), atol=0 if exactly else 1e-6)


@pytest.mark.parametrize("row", range(B))
def test_a_bad_id_within_a_request(row: int, model: QualityEstimator) -> None:
    source, target = estimators.source_of(model, estimators.SOURCES), estimators.target_of(model, estimators.REFERENCES)
    server, others = Server(model), [n for n in range(B) if n != row]
    ahead, spoilt, behind = (request_of(name, source, target) for name in ("0", "a", "1"))
    spoilt = replace(spoilt, target=changed(spoilt.target, row, model.vocabulary.size))
    _, found, after = asked(server, ahead, spoilt, behind)
    size = model.vocabulary.size
    assert found.flags == {
        row: f"the translation holds the token id {size}, but the estimator has {size} tokens: encode it with the "
        f"estimator's own vocabulary"
    }
    assert not after.flags
    [wanted] = asked(server, request_of("a", *rows_of(source, target, others)))
    kept_N = torch.arange(B).repeat_interleave(target.mask_BT.sum(1)) != row
    scores, gradient = tensors(found)
    assert scores[row].isnan() and not gradient[~kept_N].any()
    require_close([scores[others], gradient[kept_N]], tensors(wanted), atol=1e-6)


def test_two_bad_sentences_and_one_that_raises(model: QualityEstimator) -> None:
    batch = mixed(model)
    request = request_of("a", *batch)
    at = np.cumsum([0, *request.source.lengths])
    values = request.source.values.copy()
    values[at[0]], values[at[4]] = 5_000, -1
    values[at[2] + 1] = MARK
    spoilt = replace(request, source=Ragged(values, request.source.lengths))
    [found] = asked(Server(Disturbed(model, stumbles)), spoilt)
    assert sorted(found.flags) == [0, 2, 4]
    assert "5000" in found.flags[0] and "no such word" in found.flags[2] and "-1" in found.flags[4]
    assert np.isnan(found.scores).tolist() == [True, False, True, False, True]
    wanted, _ = locally(model, *rows_of(*batch, [1, 3]))
    require_close([torch.tensor(found.scores[[1, 3]])], [wanted], atol=1e-6)


# -------------------------------------------------------------------------------------------------------------- memory


class SmallMemory:
    """Raises as a device does that cannot hold more than so many padded positions."""

    def __init__(self, room: int) -> None:
        self.room, self.batches, self.failures = room, [], 0

    def __call__(self, source: Source, target: SoftTarget) -> None:
        lengths_B = source.mask_BS.sum(1) + target.mask_BT.sum(1)
        taken = len(lengths_B) * int(lengths_B.max())
        if taken > self.room:
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        self.batches.append(len(lengths_B))


def test_out_of_memory_halves_and_stays_small(model: QualityEstimator, caplog: pytest.LogCaptureFixture) -> None:
    batch = mixed(model)
    memory = SmallMemory(100)
    server = Server(Disturbed(model, memory))
    with caplog.at_level(logging.WARNING):
        [found] = asked(server, request_of("a", *batch))
    require_close(tensors(found), locally(model, *batch), atol=1e-6)
    assert not found.flags and memory.failures >= 1
    assert server.most_positions is not None and server.most_positions <= 100
    assert "needs too much memory" in caplog.text
    failures = memory.failures
    [again] = asked(server, request_of("b", *batch))
    require_close(tensors(again), tensors(found), atol=1e-6)
    assert memory.failures == failures  # not tried again

    # Short sentences go together as before: the limit is in positions.
    memory.batches.clear()
    short = rows_of(*batch, [3, 3, 3, 3])
    asked(server, request_of("c", *short))
    assert memory.batches == [4]


def test_more_is_tried_again_by_and_by(model: QualityEstimator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_room, "PATIENCE", 4)
    batch, memory = mixed(model), SmallMemory(60)
    server = Server(Disturbed(model, memory))
    asked(server, request_of("a", *batch))
    memory.room = 10_000  # whoever else took the memory has gone
    memory.batches.clear()
    for n in range(20):
        asked(server, request_of(str(n), *batch))
    assert memory.batches[0] < B and memory.batches[-1] == B


def test_a_sentence_that_is_too_large_alone(model: QualityEstimator) -> None:
    """Its neighbours are scored, it is flagged, and the batches after it are no smaller than they can be."""
    long = (estimators.LONG, estimators.LONG)
    batch = mixed(model, [LINES[0], long, LINES[2]])
    memory = SmallMemory(80)
    server = Server(Disturbed(model, memory))
    [found] = asked(server, request_of("a", *batch))
    assert found.flags == {1: "it needs more memory than the replica has"}
    wanted, _ = locally(model, *rows_of(*batch, [0, 2]))
    require_close([torch.tensor(found.scores[[0, 2]])], [wanted], atol=1e-6)
    server = Server(Disturbed(model, memory))
    [alone] = asked(server, part("b", batch, [1]))
    assert alone.flags == {0: "it needs more memory than the replica has"}
    assert server.most_positions is None  # one sentence says nothing of batches


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 12 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.AcceleratorError("CUDA error: out of memory"),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[:12]}",
)
def test_what_lack_of_memory_is_called(error: Exception, model: QualityEstimator) -> None:
    def fails(source: Source, target: SoftTarget) -> None:
        raise error

    [found] = asked(Server(Disturbed(model, fails)), part("a", mixed(model), [0]))
    assert found.flags == {0: "it needs more memory than the replica has"}


def test_a_real_allocation_that_fails(model: QualityEstimator) -> None:
    def fails(source: Source, target: SoftTarget) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    [found] = asked(Server(Disturbed(model, fails)), part("a", mixed(model), [0]))
    assert found.flags == {0: "it needs more memory than the replica has"}


def test_a_device_that_fails_for_good_flags_nobody(model: QualityEstimator) -> None:
    def fails(source: Source, target: SoftTarget) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(DeviceError, match="illegal memory access"):
        asked(Server(Disturbed(model, fails)), request_of("a", *mixed(model)))


def test_long_texts_are_cut_as_the_estimator_cuts_them(model: QualityEstimator) -> None:
    long = (estimators.LONG, " ".join(estimators.TRANSLATIONS * 4))
    batch = mixed(model, [LINES[0], long])
    [found] = asked(Server(model), request_of("a", *batch))
    wanted, wanted_gradient = locally(model, *batch)
    require_close(tensors(found), (wanted, wanted_gradient), atol=1e-6)
    assert not wanted_gradient[-1].any() and not found.flags  # the end is not read
