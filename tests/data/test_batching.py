import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from energymt.data.batching import EncodedCorpus, StepPlan, collate, encode_corpus, pad
from energymt.data.corpus import Corpus, DataConfig, read_corpus
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.errors import ConfigurationError, DataError
from energymt.records import Batch, StepBatch

Lengths = list[tuple[int, int]]


def encoded(lengths: Lengths) -> EncodedCorpus:
    """Sentences of (source, target) lengths; every token of pair i is i + 5, and its row is 10 · i."""
    return EncodedCorpus(
        source_ids=[np.full(s, i + 5, dtype=np.int32) for i, (s, _) in enumerate(lengths)],
        target_ids=[np.full(t, i + 5, dtype=np.int32) for i, (_, t) in enumerate(lengths)],
        rows=10 * np.arange(len(lengths), dtype=np.int64),
        pad_id=0,
        origin="made",
        fingerprint="made",
        dropped=0,
    )


def random_lengths(count: int, longest: int = 60) -> Lengths:
    random = np.random.default_rng(0)
    sources = random.integers(2, longest, count)
    return [(int(s), max(1, int(s + random.integers(-2, 3)))) for s in sources]


def same(left: Batch, right: Batch) -> bool:
    pairs = zip(
        (left.sentence_ids_B, left.source.ids_BS, left.source.mask_BS, left.target_BT, left.target_mask_BT),
        (right.sentence_ids_B, right.source.ids_BS, right.source.mask_BS, right.target_BT, right.target_mask_BT),
        strict=True,
    )
    return all(torch.equal(a, b) for a, b in pairs)


def same_steps(left: list[StepBatch], right: list[StepBatch]) -> bool:
    return len(left) == len(right) and all(
        (a.step, a.epoch, len(a.micro_batches)) == (b.step, b.epoch, len(b.micro_batches))
        and all(same(x, y) for x, y in zip(a.micro_batches, b.micro_batches, strict=True))
        for a, b in zip(left, right, strict=True)
    )


corpora = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=80)


@given(lengths=corpora, per_step=st.integers(1, 300), per_micro_batch=st.integers(1, 300), epoch=st.integers(0, 5))
def test_every_sentence_once_within_the_budgets(
    lengths: Lengths, per_step: int, per_micro_batch: int, epoch: int
) -> None:
    plan = StepPlan(encoded(lengths), per_step, per_micro_batch, seed=1)
    steps = plan.epoch(epoch)
    assert len(steps) == plan.steps_per_epoch
    assert sorted(i for step in steps for micro in step for i in micro) == list(range(len(lengths)))
    for step in steps:
        assert step and all(step), "no step and no micro-batch is empty"
        for micro in step:
            width = max(max(lengths[i][0], lengths[i][1] + 1) for i in micro)
            tokens = sum(lengths[i][1] + 1 for i in micro)
            assert len(micro) == 1 or (width * len(micro) <= per_micro_batch and tokens <= plan._most_tokens)


@pytest.mark.parametrize("per_step, per_micro_batch", [(1000, 1000), (4000, 500), (300, 4000)])
def test_steps_hold_their_tokens(per_step: int, per_micro_batch: int) -> None:
    lengths = random_lengths(3000)
    steps = StepPlan(encoded(lengths), per_step, per_micro_batch, seed=3).epoch(0)
    tokens = [sum(lengths[i][1] + 1 for micro in step for i in micro) for step in steps]
    assert per_step <= np.mean(tokens) < 1.05 * per_step
    assert max(tokens) <= 2 * per_step and min(tokens) > 0


def test_micro_batches_hold_like_lengths() -> None:
    lengths = random_lengths(5000)
    steps = StepPlan(encoded(lengths), 2000, 1000, seed=3).epoch(0)
    micro_batches = [micro for step in steps for micro in step]
    real = sum(lengths[i][1] + 1 for micro in micro_batches for i in micro)
    padded = sum(len(micro) * max(lengths[i][1] + 1 for i in micro) for micro in micro_batches)
    assert real > 0.85 * padded
    means = [np.mean([lengths[i][0] for micro in step for i in micro]) for step in steps]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3, "short and long steps alternate"


def test_long_sentence_goes_alone() -> None:
    lengths = [(5, 5)] * 20 + [(5, 99), (99, 5)]
    steps = StepPlan(encoded(lengths), 30, 30, seed=0).epoch(0)
    micro_batches = [micro for step in steps for micro in step]
    assert [20] in micro_batches and [21] in micro_batches


def test_order_is_a_function_of_seed_and_epoch() -> None:
    data = encoded(random_lengths(500))

    def epoch(seed: int, number: int) -> list[list[list[int]]]:
        return StepPlan(data, 500, 250, seed).epoch(number)

    assert epoch(1, 0) == epoch(1, 0)
    assert epoch(1, 0) != epoch(1, 1) != epoch(2, 1) != epoch(1, 0)


@settings(max_examples=20)
@given(start=st.integers(0, 40), world=st.integers(1, 4), lengths=corpora)
def test_any_start_goes_on_as_if_never_interrupted(start: int, world: int, lengths: Lengths) -> None:
    plan = StepPlan(encoded(lengths), 60, 30, seed=5)
    for rank in range(world):
        whole = list(islice(plan.iterate(0, rank, world), start + 6))
        assert [step.step for step in whole] == list(range(start + 6))
        assert [step.epoch for step in whole] == [step // plan.steps_per_epoch for step in range(start + 6)]
        assert same_steps(list(islice(plan.iterate(start, rank, world), 6)), whole[start:])


@pytest.mark.parametrize("world", [2, 3])
def test_workers_share_the_micro_batches_of_one_worker(world: int) -> None:
    plan = StepPlan(encoded(random_lengths(200)), 400, 100, seed=2)
    alone = list(islice(plan.iterate(), 2 * plan.steps_per_epoch))
    workers = [list(islice(plan.iterate(0, rank, world), 2 * plan.steps_per_epoch)) for rank in range(world)]
    for whole, *shares in zip(alone, *workers, strict=True):
        together: list[Batch | None] = [None] * len(whole.micro_batches)
        for rank, share in enumerate(shares):
            together[rank::world] = share.micro_batches
            assert (share.step, share.epoch) == (whole.step, whole.epoch)
        assert all(b is not None and same(a, b) for a, b in zip(whole.micro_batches, together, strict=True))


def test_worker_without_a_micro_batch_still_gets_the_step() -> None:
    plan = StepPlan(encoded([(3, 3)] * 4), 1000, 1000, seed=0)
    steps = list(islice(plan.iterate(0, rank=1, world=2), 3))
    assert [(step.step, step.micro_batches) for step in steps] == [(0, ()), (1, ()), (2, ())]


def test_resuming_collates_nothing_that_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = StepPlan(encoded(random_lengths(20_000)), 2000, 1000, seed=0)
    calls = []
    monkeypatch.setattr("energymt.data.batching.collate", lambda *given: calls.append(given) or collate(*given))
    monkeypatch.setattr(plan, "epoch", lambda number, original=plan.epoch: calls.append(number) or original(number))
    started = time.perf_counter()
    step = next(plan.iterate(1_000_003))
    assert step.step == 1_000_003
    assert len(calls) == 1 + len(step.micro_batches)
    assert time.perf_counter() - started < 2


def test_collate_pads_and_keeps_rows() -> None:
    data = encoded([(2, 1), (3, 4), (1, 2)])
    batch = collate(data, [2, 1])
    assert batch.sentence_ids_B.tolist() == [20, 10]
    assert batch.source.ids_BS.tolist() == [[7, 0, 0], [6, 6, 6]]
    assert batch.source.mask_BS.tolist() == [[True, False, False], [True, True, True]]
    assert batch.target_BT.tolist() == [[7, 7, 0, 0], [6, 6, 6, 6]]
    assert batch.target_lengths_B.tolist() == [2, 4]
    assert {t.dtype for t in (batch.sentence_ids_B, batch.source.ids_BS, batch.target_BT)} == {torch.int64}
    assert batch.target_mask_BT.dtype == batch.source.mask_BS.dtype == torch.bool
    batch.target_BT.zero_()
    assert data.target_ids[1].tolist() == [6, 6, 6, 6], "a batch is a copy"


@given(rows=st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=6))
def test_pad_keeps_every_row(rows: list[list[int]]) -> None:
    ids, mask = pad(rows, pad_id=77)
    assert ids.shape == mask.shape == (len(rows), max(map(len, rows), default=0))
    assert [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)] == rows
    assert (ids[~mask] == 77).all()


@pytest.fixture(scope="module")
def words() -> SentencePieceVocabulary:
    return SentencePieceVocabulary.train(["a b c d e f g h"] * 2, 100, model_type="word")


def test_encoding_drops_long_pairs_and_keeps_row_numbers(words: SentencePieceVocabulary) -> None:
    sources, targets = ["a b", "a b c", "a", "a b"], ["c", "c", "d e f", "\u200b"]
    corpus = Corpus(sources, targets, "made")
    data = encode_corpus(corpus, words, max_source=3, max_target=4)
    assert data.rows.tolist() == [0, 2] and data.dropped == 2 and len(data) == 2
    assert data.fingerprint == corpus.fingerprint and data.pad_id == words.pad_id
    assert [words.decode(ids) for ids in data.target_ids] == ["c", "d e f"]
    assert all(ids[-1] == words.eos_id for ids in data.source_ids)
    assert len(encode_corpus(corpus, words, 4, 4)) == 3
    assert len(encode_corpus(corpus, words, 3, 3)) == 1
    assert collate(data, [1]).sentence_ids_B.tolist() == [2]


def test_nothing_left_is_an_error(words: SentencePieceVocabulary) -> None:
    with pytest.raises(DataError, match="No pair of made has at most 2 source and 9 target tokens"):
        encode_corpus(Corpus(["a b"], ["a"], "made"), words, 2, 9)


def test_segmented_text_needs_its_vocabulary(words: SentencePieceVocabulary) -> None:
    corpus = Corpus(["a@@ b"], ["a@@ b"], "made", segmented=True)
    with pytest.raises(ConfigurationError, match="made is marked as segmented"):
        encode_corpus(corpus, words, 9, 9)
    fitting = SentencePieceVocabulary.train(corpus.source, 50, segmented=True)
    assert len(encode_corpus(corpus, fitting, 9, 9)) == 1


def test_sources_without_targets(words: SentencePieceVocabulary) -> None:
    data = encode_corpus(Corpus(["a b", "c"], None, "made"), words, 9, 9)
    plan = StepPlan(data, 5, 5, seed=0)
    assert plan.steps_per_epoch == 1
    batches = next(plan.iterate()).micro_batches
    assert sum(len(batch) for batch in batches) == 2
    assert all(batch.target_BT.shape == (len(batch), 0) for batch in batches)


def test_multi30k(data_folder: Path) -> None:
    path = str(data_folder / "multi30k" / "train.tsv.gz")
    corpus = read_corpus(DataConfig(path=path, source="de", target="en", rows=5000))
    assert corpus.target is not None
    vocabulary = SentencePieceVocabulary.train([*corpus.source[:500], *corpus.target[:500]], 1000)
    data = encode_corpus(corpus, vocabulary, 250, 250)
    plan = StepPlan(data, 4096, 4096, seed=1)
    started = time.perf_counter()
    steps = list(islice(plan.iterate(), plan.steps_per_epoch))
    assert time.perf_counter() - started < 5
    rows = torch.cat([batch.sentence_ids_B for step in steps for batch in step.micro_batches])
    assert sorted(rows.tolist()) == data.rows.tolist()
    row = int(rows[0])
    first = steps[0].micro_batches[0]
    assert first.target_BT[0][first.target_mask_BT[0]].tolist() == vocabulary.encode(corpus.target[row])
