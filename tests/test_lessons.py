"""Lessons: the gold first in each group, what differs from it behind, and how probable the translator finds each."""

from collections.abc import Sequence

import pytest
import torch

from energymt.data.bridge import Bridge
from energymt.data.hub import HubVocabulary
from energymt.decoding.sampling import sample
from energymt.energies import QualityEnergy
from energymt.lessons import LESSON_STREAM, chosen_pairs, make_lesson
from energymt.models import AutoregressiveModel
from energymt.models.learning import EstimatorLearner, Lesson
from energymt.noise import Noise
from energymt.records import Batch, StepBatch
from tests import bridged, estimators, tiny

SAMPLES, LONGEST = 4, 6
SOURCES, GOLD = estimators.SOURCES, estimators.REFERENCES


@pytest.fixture(scope="module")
def words() -> HubVocabulary:
    return bridged.mbart()


@pytest.fixture(scope="module")
def bridge(words: HubVocabulary) -> Bridge:
    return Bridge(words, estimators.estimator("kiwi").vocabulary)


@pytest.fixture(scope="module", params=["recurrent", "transformer"])
def model(request: pytest.FixtureRequest, words: HubVocabulary) -> AutoregressiveModel:
    if request.param == "recurrent":
        return tiny.recurrent(words, dropout=0.4)
    return tiny.scratch(words, dropout=0.4, longest=64)


def batch_of(words: HubVocabulary, rows: Sequence[int]) -> Batch:
    source = bridged.source_of(words, [SOURCES[row] for row in rows])
    return Batch(torch.tensor(rows), source, *bridged.ids_of(words, [GOLD[row] for row in rows]))


def lesson_of(model: AutoregressiveModel, bridge: Bridge, cut: Sequence[Sequence[int]], **changes) -> Lesson:
    options = {"seed": 1, "step": 3, "chosen": torch.arange(5), "samples": SAMPLES, "longest": LONGEST, **changes}
    return make_lesson(model, bridge, [batch_of(bridge.translator, rows) for rows in cut], **options)


def texts(lesson: Lesson, bridge: Bridge) -> list[list[str]]:
    """The candidates of each group, read back."""
    lines = [
        bridge.estimator.decode(ids[mask].tolist()) for ids, mask in zip(lesson.ids_CT, lesson.mask_CT, strict=True)
    ]
    ends = lesson.sizes_G.cumsum(0).tolist()
    return [lines[end - size : end] for end, size in zip(ends, lesson.sizes_G.tolist(), strict=True)]


def drawn(model: AutoregressiveModel, words: HubVocabulary, row: int) -> list[list[int]]:
    """The samples of one sentence, drawn alone."""
    batch = batch_of(words, [row])
    found = sample(model, batch.source, Noise(1, 3, batch.sentence_ids_B, LESSON_STREAM), SAMPLES, max_length=LONGEST)
    return [ids[mask].tolist() for ids, mask in zip(found.ids_RT, found.mask_RT, strict=True)]


@torch.no_grad()
def mean_log_prob(model: AutoregressiveModel, source: str, ids: list[int], ended: bool) -> float:
    """One token after the other, by `start` and `step`; the end of a sample that was cut was not drawn."""
    words = model.vocabulary
    state, logits_1V = model.start(model.encode(bridged.source_of(words, [source])))
    total = 0.0
    for token in [*ids, words.eos_id][: len(ids) + ended]:
        logits_1V[:, list(words.never_ids)] = -torch.inf  # they are never drawn
        total += float(logits_1V[0].double().log_softmax(0)[token])
        state, logits_1V = model.step(state, torch.tensor([token]))
    return total / (len(ids) + ended)


def test_groups_hold_gold_and_samples_and_how_probable_they_are(model: AutoregressiveModel, bridge: Bridge) -> None:
    words = bridge.translator
    model.train()
    lesson = lesson_of(model, bridge, [[0, 1], [2, 3, 4]])
    assert model.training
    model.eval()
    groups, wanted, log_probs, cut = texts(lesson, bridge), [], [], 0
    for row in range(5):
        ids = [words.encode(GOLD[row]), *drawn(model, words, row)]
        ids = [candidate for place, candidate in enumerate(ids) if not place or words.decode(candidate) != GOLD[row]]
        wanted.append([words.decode(candidate) for candidate in ids])
        whole = [True, *(len(candidate) < LONGEST for candidate in ids[1:])]
        log_probs += [mean_log_prob(model, SOURCES[row], own, end) for own, end in zip(ids, whole, strict=True)]
        cut += whole.count(False)
    again = [[bridge.estimator.decode(bridge.estimator.encode(text)) for text in group] for group in wanted]
    assert groups == again
    assert [group[0] for group in groups] == GOLD
    assert lesson.sizes_G.tolist() == [len(group) for group in wanted]
    assert lesson.sizes_G.dtype == torch.long
    assert lesson.log_probs_C.tolist() == pytest.approx(log_probs, abs=1e-4)
    assert 0 < cut < len(log_probs) - 5, "some samples are cut, and some end by themselves"
    sources = [
        bridge.estimator.decode(ids[mask].tolist())
        for ids, mask in zip(lesson.source.ids_BS, lesson.source.mask_BS, strict=True)
    ]
    assert sources == SOURCES


def test_a_lesson_does_not_depend_on_how_it_is_cut(model: AutoregressiveModel, bridge: Bridge) -> None:
    whole, cut = lesson_of(model, bridge, [range(5)]), lesson_of(model, bridge, [[0], [1, 2], [3, 4]])
    assert torch.equal(whole.ids_CT, cut.ids_CT) and torch.equal(whole.mask_CT, cut.mask_CT)
    assert torch.equal(whole.source.ids_BS, cut.source.ids_BS)
    torch.testing.assert_close(whole.log_probs_C, cut.log_probs_C, rtol=0, atol=1e-5)


def test_seed_and_step_name_the_samples(model: AutoregressiveModel, bridge: Bridge) -> None:
    first = texts(lesson_of(model, bridge, [range(5)]), bridge)
    assert texts(lesson_of(model, bridge, [range(5)], seed=2), bridge) != first
    assert texts(lesson_of(model, bridge, [range(5)], step=4), bridge) != first


@pytest.mark.parametrize("chosen, rows", [([1, 4], [4, 1]), ([0], [0]), ([0, 1, 2, 4, 9], [4, 0, 2, 1])])
def test_the_chosen_pairs_are_taken(
    chosen: list[int], rows: list[int], model: AutoregressiveModel, bridge: Bridge
) -> None:
    lesson = lesson_of(model, bridge, [[4, 0], [2, 1]], chosen=torch.tensor(chosen))
    assert len(lesson) == len(lesson.source) == len(rows)
    assert [group[0] for group in texts(lesson, bridge)] == [GOLD[row] for row in rows]


def test_pairs_are_chosen_from_the_whole_step_however_it_is_cut(bridge: Bridge) -> None:
    def step(cut: Sequence[Sequence[int]], number: int = 3, ids: Sequence[int] = ()) -> StepBatch:
        batches = tuple(batch_of(bridge.translator, rows) for rows in cut)
        return StepBatch(number, 0, batches, sentence_ids=tuple(ids))

    whole = set(chosen_pairs(step([range(5)]), 1, 3).tolist())
    assert len(whole) == 3 and whole < set(range(5))
    assert set(chosen_pairs(step([[3], [1, 0], [4, 2]]), 1, 3).tolist()) == whole
    assert set(chosen_pairs(step([[3]], ids=[4, 3, 0, 1, 2]), 1, 3).tolist()) == whole
    assert len({tuple(chosen_pairs(step([range(5)], number), 1, 3).tolist()) for number in range(8)}) > 3
    assert set(chosen_pairs(step([range(5)]), 1, 9).tolist()) == set(range(5))


def test_a_gold_with_a_special_token_is_left_out(
    model: AutoregressiveModel, bridge: Bridge, caplog: pytest.LogCaptureFixture
) -> None:
    """The tokenizer reads a literal `<mask>` as its own, which no translation holds."""
    words = bridge.translator
    gold = [GOLD[0], "a <mask> dog", GOLD[2]]
    batch = Batch(torch.arange(3), bridged.source_of(words, SOURCES[:3]), *bridged.ids_of(words, gold))
    lesson = make_lesson(model, bridge, [batch], seed=1, step=3, chosen=torch.arange(3), samples=2, longest=6)
    assert [group[0] for group in texts(lesson, bridge)] == [GOLD[0], GOLD[2]]
    sources = zip(lesson.source.ids_BS, lesson.source.mask_BS, strict=True)
    assert [bridge.estimator.decode(ids[mask].tolist()) for ids, mask in sources] == [SOURCES[0], SOURCES[2]]
    assert lesson.log_probs_C.isfinite().all()
    assert "Special tokens stand in 1 translations of step 3" in caplog.text
    for form in ("binary", "ranking"):
        assert EstimatorLearner(estimators.estimator("kiwi"), "head").differentiate(lesson, form).loss > 0

    batch = Batch(torch.arange(1), bridged.source_of(words, SOURCES[:1]), *bridged.ids_of(words, ["<mask>"]))
    none = make_lesson(model, bridge, [batch], seed=1, step=3, chosen=torch.arange(1), samples=2, longest=6)
    assert len(none) == len(none.source) == len(none.ids_CT) == 0


def test_samples_that_are_the_gold_are_dropped(bridge: Bridge) -> None:
    """A translator that knows one text alone: `a`, whatever the source is."""
    words, model = bridge.translator, tiny.recurrent(bridge.translator)
    source = bridged.source_of(words, SOURCES[:2])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        [token] = words.encode("a")
        model.bias[token], model.bias[words.eos_id] = 40.0, 41.0
    batch = Batch(torch.arange(2), source, *bridged.ids_of(words, ["a", "a dog"]))
    lesson = make_lesson(model, bridge, [batch], seed=1, step=3, chosen=torch.arange(2), samples=8, longest=1)
    first, second = texts(lesson, bridge)
    assert first[0] == "a" and second[0] == "a dog"
    assert set(first[1:]) == {""}, "`a` was drawn too, and is the gold"
    assert set(second[1:]) == {"", "a"} and len(second) == 9
    assert 1 < len(first) < 9


def test_samples_may_be_empty(bridge: Bridge) -> None:
    model = tiny.recurrent(bridge.translator)
    with torch.no_grad():
        model.bias[bridge.translator.eos_id] = 1e3
    lesson = lesson_of(model, bridge, [range(5)])
    assert [group[1:] for group in texts(lesson, bridge)] == [[""] * SAMPLES] * 5
    assert lesson.log_probs_C.isfinite().all()


def test_an_estimator_can_learn_it(model: AutoregressiveModel, bridge: Bridge) -> None:
    lesson = lesson_of(model, bridge, [range(5)])
    assert lesson.to(torch.device("meta")).ids_CT.shape == lesson.ids_CT.shape
    learner = EstimatorLearner(estimators.estimator("kiwi"), "head")
    found = learner.differentiate(lesson, "binary")
    assert found.totals["gold"][1] == 5 and found.totals["sample"][1] == len(lesson.log_probs_C) - 5
    # Its scores are those of the text.
    energy = QualityEnergy(estimators.estimator("kiwi"), bridge.translator)
    ids_BT, mask_BT = bridged.ids_of(bridge.translator, GOLD)
    energy_B = energy.begin_text(bridged.source_of(bridge.translator, SOURCES), ids_BT, mask_BT)()
    assert found.totals["gold"][0] == pytest.approx(-float(energy_B.sum()), abs=1e-4)
