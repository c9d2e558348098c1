"""What every translator promises: cached decoding is teacher forcing, padding and order change nothing."""

import pytest
import torch

from energymt.models.translator import LengthHead
from tests import tiny

SOURCES = [[6, 7, 8], [9], [10, 11, 12, 13, 6]]
TARGETS = [[8, 9], [10, 11, 12, 7], [13]]


def close(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.allclose(left, right, rtol=1e-5, atol=1e-5)


def logits_of(model, sources, targets, source_width=0, target_width=0):
    """Logits of each sentence up to its end token, as a list."""
    target_BT, mask_BT = tiny.padded(targets, model.vocabulary.pad_id, target_width)
    memory = model.encode(tiny.source_of(sources, model.vocabulary, source_width))
    logits_BUV = model.decode(memory, target_BT, mask_BT)
    return [logits_UV[: len(target) + 1] for logits_UV, target in zip(logits_BUV, targets, strict=True)]


# ------------------------------------------------------------------------------------------------------ autoregressive


@pytest.mark.parametrize("family", tiny.TEACHERS)
@torch.no_grad()
def test_soft_decoding_of_one_hot_tokens_is_decoding(family: str) -> None:
    model = tiny.teacher(family)
    memory = model.encode(tiny.source_of(SOURCES, model.vocabulary))
    target_BT, mask_BT = tiny.padded(TARGETS, model.vocabulary.pad_id)
    hard_BUV = model.decode(memory, target_BT, mask_BT)
    soft_BUV = model.decode_soft(memory, model.embedding_VD[target_BT], mask_BT)
    real_BU = torch.cat([torch.ones_like(mask_BT[:, :1]), mask_BT], dim=1)
    assert hard_BUV.shape == (3, 5, tiny.SIZE)
    assert close(hard_BUV[real_BU], soft_BUV[real_BU])
    assert hard_BUV[real_BU].std(0).min() > 0.01  # the context counts, or the comparison says nothing


@pytest.mark.parametrize("family", tiny.TEACHERS)
@torch.no_grad()
def test_step_by_step_with_cache_is_teacher_forcing(family: str) -> None:
    model = tiny.teacher(family)
    memory = model.encode(tiny.source_of(SOURCES, model.vocabulary))
    target_BT = torch.tensor([[6, 9, 7], [8, 8, 10], [12, 6, 11]])
    wanted_BUV = model.decode(memory, target_BT, torch.ones_like(target_BT, dtype=torch.bool))
    state, logits_RV = model.start(memory)
    assert close(logits_RV, wanted_BUV[:, 0])
    for t in range(3):
        state, logits_RV = model.step(state, target_BT[:, t])
        assert close(logits_RV, wanted_BUV[:, t + 1])


@pytest.mark.parametrize("family", tiny.TEACHERS)
@torch.no_grad()
def test_select_takes_rows_of_everything(family: str) -> None:
    model = tiny.teacher(family)
    state, _ = model.start(model.encode(tiny.source_of(SOURCES, model.vocabulary)))
    state, _ = model.step(state, torch.tensor([6, 7, 8]))
    state = state.select(torch.tensor([2, 0, 2, 1]))  # reordered and repeated
    state, _ = model.step(state, torch.tensor([9, 10, 11, 12]))
    state = state.select(torch.tensor([3, 0]))  # dropped
    state, logits_RV = model.step(state, torch.tensor([13, 6]))
    for row, (source, target) in enumerate([(SOURCES[1], [7, 12, 13]), (SOURCES[2], [8, 9, 6])]):
        assert close(logits_RV[row], logits_of(model, [source], [target])[0][-1])


@pytest.mark.parametrize("family", tiny.TEACHERS)
@torch.no_grad()
def test_reorder_swaps_histories_of_one_sentence(family: str) -> None:
    model = tiny.teacher(family)
    state, _ = model.start(model.encode(tiny.source_of(SOURCES[:2], model.vocabulary)))
    state = state.select(torch.tensor([0, 0, 1, 1]))
    state, _ = model.step(state, torch.tensor([6, 7, 8, 9]))
    state = state.reorder(torch.tensor([1, 1, 3, 2]))
    state, logits_RV = model.step(state, torch.tensor([10, 11, 12, 13]))
    histories = [(0, [7, 10]), (0, [7, 11]), (1, [9, 12]), (1, [8, 13])]
    for row, (sentence, target) in enumerate(histories):
        assert close(logits_RV[row], logits_of(model, [SOURCES[sentence]], [target])[0][-1])


@pytest.mark.parametrize("family", tiny.TEACHERS)
@torch.no_grad()
def test_padding_and_order_change_no_logits(family: str) -> None:
    model = tiny.teacher(family)
    alone = [logits_of(model, [source], [target])[0] for source, target in zip(SOURCES, TARGETS, strict=True)]
    padded = logits_of(model, SOURCES, TARGETS, source_width=9, target_width=8)
    backwards = logits_of(model, SOURCES[::-1], TARGETS[::-1])[::-1]
    for one, two, three in zip(alone, padded, backwards, strict=True):
        assert close(one, two)
        assert close(one, three)


@pytest.mark.parametrize("family", tiny.TEACHERS)
@torch.no_grad()
def test_no_position_sees_what_comes_after_it(family: str) -> None:
    model = tiny.teacher(family)
    (left,) = logits_of(model, [SOURCES[0]], [[8, 9, 10]])
    (right,) = logits_of(model, [SOURCES[0]], [[8, 9, 11]])
    assert close(left[:3], right[:3])
    assert not close(left[3], right[3])


@pytest.mark.parametrize("family", tiny.TEACHERS)
@torch.no_grad()
def test_padding_of_the_soft_target_is_never_read(family: str) -> None:
    model = tiny.teacher(family)
    memory = model.encode(tiny.source_of(SOURCES, model.vocabulary))
    target_BT, mask_BT = tiny.padded(TARGETS, model.vocabulary.pad_id)
    emb_BTD = model.embedding_VD[target_BT]
    noisy_BTD = torch.where(mask_BT[..., None], emb_BTD, torch.full_like(emb_BTD, 50.0))
    real_BU = torch.cat([torch.ones_like(mask_BT[:, :1]), mask_BT], dim=1)
    left, right = (model.decode_soft(memory, emb, mask_BT)[real_BU] for emb in (emb_BTD, noisy_BTD))
    assert close(left, right)


# --------------------------------------------------------------------------------------------------- non-autoregressive


def predictions(model, sources, lengths, source_width=0, target_width=0):
    """Logits of each sentence at its real positions, and its length distribution, in a single pass."""
    _, mask_BT = tiny.padded([[0] * length for length in lengths], 0, target_width)
    memory = model.encode(tiny.source_of(sources, model.vocabulary, source_width))
    logits_BTV = model.predict(memory, model.unseen(mask_BT), mask_BT)
    return [row[:length] for row, length in zip(logits_BTV, lengths, strict=True)], memory.length_logp_BL


def exact(left: torch.Tensor, right: torch.Tensor) -> bool:
    finite = left.isfinite()
    return torch.equal(finite, right.isfinite()) and close(left[finite], right[finite])


@pytest.mark.parametrize("family", tiny.STUDENTS)
@torch.no_grad()
def test_padding_and_order_change_no_prediction(family: str) -> None:
    model = tiny.student(family)
    lengths = [4, 2, 3]
    padded, padded_lengths = predictions(model, SOURCES, lengths, source_width=9, target_width=8)
    backwards, backwards_lengths = predictions(model, SOURCES[::-1], lengths[::-1])
    for b, (source, length) in enumerate(zip(SOURCES, lengths, strict=True)):
        (alone,), length_logp = predictions(model, [source], [length])
        for other in (padded[b], backwards[::-1][b]):
            assert exact(alone, other)
        for other in (padded_lengths[b], backwards_lengths.flip(0)[b]):
            assert exact(length_logp[0], other)


@pytest.mark.parametrize("family", tiny.STUDENTS)
@torch.no_grad()
def test_exactly_what_cannot_stand_has_no_mass(family: str) -> None:
    model = tiny.student(family)
    (logits_TV,), _ = predictions(model, SOURCES[:1], [3])
    words = model.vocabulary
    forbidden = {words.pad_id, words.bos_id, words.mask_id, words.eos_id}
    assert {v for v in range(tiny.SIZE) if logits_TV[0, v] == float("-inf")} == forbidden
    assert (logits_TV == float("-inf")).sum() == 3 * len(forbidden)


def test_a_single_pass_reads_masks_and_padding() -> None:
    model = tiny.masked()
    _, mask_BT = tiny.padded([[0] * 3, [0]], 0)
    assert model.unseen(mask_BT).tolist() == [[4, 4, 4], [4, 0, 0]]


@pytest.mark.parametrize("family", tiny.STUDENTS)
@torch.no_grad()
def test_selected_memory_predicts_as_its_sentences(family: str) -> None:
    model = tiny.student(family)
    mask_BT = torch.ones(3, 3, dtype=torch.bool)
    memory = model.encode(tiny.source_of(SOURCES, model.vocabulary))
    rows_R = torch.tensor([2, 2, 0])
    chosen = memory.select(rows_R)
    whole_BTV = model.predict(memory, model.unseen(mask_BT), mask_BT)
    assert exact(model.predict(chosen, model.unseen(mask_BT), mask_BT), whole_BTV[rows_R])
    assert exact(chosen.length_logp_BL, memory.length_logp_BL[rows_R])


@pytest.mark.parametrize("family", tiny.STUDENTS)
def test_training_reaches_every_weight(family: str) -> None:
    model = tiny.student(family).train()
    mask_BT = torch.ones(3, 3, dtype=torch.bool)
    memory = model.encode(tiny.source_of(SOURCES, model.vocabulary))
    model.predict(memory, model.unseen(mask_BT), mask_BT).logsumexp(-1).square().sum().backward(retain_graph=True)
    (-memory.length_logp_BL[:, 3]).sum().backward()
    missing = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert missing == []


def test_the_length_head_is_a_distribution_over_lengths_from_one() -> None:
    logp_BL = LengthHead(6, 9)(torch.randn(4, 6))
    assert logp_BL.shape == (4, 10)
    assert (logp_BL[:, 0] == float("-inf")).all()
    assert torch.allclose(logp_BL.exp().sum(1), torch.ones(4))


def test_the_length_head_stays_in_float32_under_bf16() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert LengthHead(6, 9)(torch.randn(4, 6)).dtype == torch.float32
