"""The energy of a quality estimator: one-hot tokens have minus the score of their text, and neither padding nor order
nor another segmentation of the source changes anything.
"""

from dataclasses import replace

import pytest
import torch

from energymt.data.hub import HubVocabulary
from energymt.data.vocabulary import SentencePieceVocabulary, Vocabulary
from energymt.decoding.rerank import rerank
from energymt.energies import AutoregressiveEnergy, Energy, QualityEnergy, WeightedEnergy
from energymt.models.estimator import QualityEstimator
from energymt.models.scoring import score_lines
from energymt.operators import OPERATORS
from energymt.records import Hypothesis, Prediction, SoftTarget, Source
from tests import bridged, estimators, tiny
from tests.bridged import SOURCES, TEXT, TRANSLATIONS, energy_of, ids_of, logits_of, noise_of, source_of

HARD = ("STL", "SG", "ST")
feeds = pytest.mark.parametrize("feed", OPERATORS)


@pytest.fixture
def mbart() -> HubVocabulary:
    """The estimator's pieces."""
    return bridged.mbart()


@pytest.fixture
def other() -> SentencePieceVocabulary:
    """Pieces of its own."""
    return bridged.other()


@pytest.fixture(params=bridged.VOCABULARIES)
def words(request: pytest.FixtureRequest) -> Vocabulary:
    return bridged.VOCABULARIES[request.param]()


class Spy:
    """An estimator in no process and no module: it keeps what it is given."""

    def __init__(self, model: QualityEstimator) -> None:
        self.model, self.vocabulary, self.table_VD = model, model.vocabulary, model.table_VD
        self.calls: list[tuple[Source, SoftTarget]] = []

    def __call__(self, source: Source, target: SoftTarget) -> torch.Tensor:
        self.calls.append((source, target))
        return self.model(source, target)


# ---------------------------------------------------------------------------------------------------- one-hot tokens


@feeds
@pytest.mark.parametrize("kind", ["kiwi", "referenceless"])
def test_one_hot_tokens_have_minus_the_score_of_their_text(kind: str, feed: str, mbart: HubVocabulary) -> None:
    model = estimators.estimator(kind)
    wanted = [-score for score in score_lines(model, SOURCES, TRANSLATIONS)]
    assert max(wanted) - min(wanted) > 0.05
    energy = QualityEnergy(model, mbart, feed)
    assert energy.bridge.identical and isinstance(energy, Energy)
    ids_BT, mask_BT = ids_of(mbart, TRANSLATIONS)
    source = source_of(mbart, SOURCES)
    given = replace(Prediction.of_ids(ids_BT, mask_BT, mbart.size), hard_ids_BT=None, noise=noise_of(len(SOURCES)))
    assert energy(source, given).tolist() == pytest.approx(wanted, abs=1e-6)
    assert energy.discrete(source, ids_BT, mask_BT).tolist() == pytest.approx(wanted, abs=1e-6)


@feeds
def test_pieces_of_its_own_are_read_as_means(feed: str, other: SentencePieceVocabulary) -> None:
    """Worked out without the bridge's table: the same piece, or what the estimator's tokenizer makes of its text."""
    model = estimators.estimator("kiwi")
    energy = QualityEnergy(model, other, feed, least_coverage=0.0)
    assert not energy.bridge.identical and energy.bridge.coverage > 0.9
    line = "ein Hund läuft über die Wiese ."
    ids = [token for token in other.encode(line) if other.piece(token)[0] == "▁" != other.piece(token)]
    own = {model.vocabulary.piece(row): [row] for row in range(model.vocabulary.size)}
    pieces = [other.piece(token) for token in ids]
    spelled = [own.get(piece) or model.vocabulary.encode(piece.replace("▁", " ")) for piece in pieces]
    assert {len(rows) > 1 for rows in spelled} == {True, False}
    emb_1TD = torch.stack([model.table_VD[rows].mean(0) for rows in spelled]).unsqueeze(0)
    ids_BT, mask_BT = torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.bool)
    with torch.no_grad():
        wanted = -model(estimators.source_of(model, [line]), SoftTarget(None, emb_1TD, mask_BT)).item()
    given = replace(Prediction.of_ids(ids_BT, mask_BT, other.size), noise=noise_of(1))
    assert energy(source_of(other, [line]), given).item() == pytest.approx(wanted, abs=1e-6)
    assert energy.discrete(source_of(other, [line]), ids_BT, mask_BT).item() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("feed", HARD)
def test_hard_operators_take_the_tokens_given(feed: str, words: Vocabulary) -> None:
    energy = energy_of(words, feed)
    ids_BT, mask_BT = ids_of(words, TRANSLATIONS)
    source, logits_BTV = source_of(words, SOURCES), logits_of(words, *ids_BT.shape)
    sampled_B = energy(source, Prediction(logits_BTV, mask_BT, hard_ids_BT=ids_BT, noise=noise_of(len(SOURCES))))
    wanted_B = energy.discrete(source, ids_BT, mask_BT)
    torch.testing.assert_close(sampled_B, wanted_B, rtol=0, atol=1e-6)
    without_B = energy(source, Prediction(logits_BTV, mask_BT, noise=noise_of(len(SOURCES))))
    assert (without_B - wanted_B)[mask_BT.any(1)].abs().min() > 1e-4


# ------------------------------------------------------------------------------------- gradients, padding, the source


def test_nothing_frozen_receives_a_gradient(words: Vocabulary) -> None:
    model = estimators.estimator("kiwi").train().requires_grad_(True)
    energy = QualityEnergy(model, words, "SX", least_coverage=0.0)
    assert not model.training
    mask_BT = ids_of(words, TRANSLATIONS)[1]
    logits_BTV = logits_of(words, *mask_BT.shape).requires_grad_()
    energy(source_of(words, SOURCES), Prediction(logits_BTV, mask_BT)).sum().backward()
    assert logits_BTV.grad is not None and logits_BTV.grad.abs().sum() > 0
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.parameters())
    assert not energy.table_VD.requires_grad and energy.table_VD.grad is None


def test_following_the_gradient_lowers_the_discrete_energy(mbart: HubVocabulary) -> None:
    energy = QualityEnergy(estimators.estimator("kiwi"), mbart, "SX")
    source, mask_BT = source_of(mbart, SOURCES), torch.ones(len(SOURCES), 4, dtype=torch.bool)
    logits_BTV = logits_of(mbart, len(SOURCES), 4)
    before_B = energy.discrete(source, logits_BTV.argmax(-1), mask_BT)
    logits_BTV.requires_grad_()
    optimizer = torch.optim.Adam([logits_BTV], lr=0.5)
    for _ in range(30):
        optimizer.zero_grad()
        energy(source, Prediction(logits_BTV, mask_BT)).sum().backward()
        optimizer.step()
    after_B = energy.discrete(source, logits_BTV.argmax(-1), mask_BT)
    assert (after_B < before_B).all() and (before_B - after_B).mean() > 0.05


@feeds
def test_neither_padding_nor_order_changes_energy_or_gradient(feed: str, words: Vocabulary) -> None:
    energy = energy_of(words, feed)
    mask_BT = ids_of(words, TRANSLATIONS)[1]
    logits_BTV, noise = logits_of(words, *mask_BT.shape), noise_of(len(SOURCES))

    def run(rows: list[int], wider: int = 0) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
        logits, mask = logits_BTV[rows], mask_BT[rows]
        logits = torch.cat([logits, logits[:, :1].expand(-1, wider, -1)], 1)
        mask = torch.cat([mask, torch.zeros(len(rows), wider, dtype=torch.bool)], 1)
        logits = torch.where(mask[..., None], logits, logits + 9.0 * wider).requires_grad_()
        source = source_of(words, [SOURCES[row] for row in rows], width=60 if wider else 0)
        given = Prediction(logits, mask, noise=replace(noise, sentence_ids_B=noise.sentence_ids_B[rows]))
        energy_B = energy(source, given)
        (grad,) = torch.autograd.grad(energy_B.sum(), logits)
        return {row: (energy_B[b].detach(), grad[b][mask[b]]) for b, row in enumerate(rows)}

    whole = run([0, 1, 2, 3, 4])
    for part in (run([3, 1, 4, 0, 2]), run([0, 1, 2, 3, 4], wider=3), *(run([row]) for row in range(5))):
        for row, (value, grad) in part.items():
            torch.testing.assert_close(value, whole[row][0], rtol=0, atol=1e-6)
            torch.testing.assert_close(grad, whole[row][1], rtol=1e-3, atol=1e-6)
    assert whole[0][1].abs().max() > 1e-4


def test_the_source_is_read_in_the_estimator_s_own_pieces(words: Vocabulary) -> None:
    spy = Spy(estimators.estimator("kiwi"))
    energy = QualityEnergy(spy, words, least_coverage=0.0)
    ids_BT, mask_BT = ids_of(words, TRANSLATIONS)
    energy.discrete(source_of(words, SOURCES, width=50), ids_BT, mask_BT)
    wanted = estimators.source_of(spy.model, SOURCES)
    assert torch.equal(spy.calls[0][0].ids_BS, wanted.ids_BS) and torch.equal(spy.calls[0][0].mask_BS, wanted.mask_BS)


# ------------------------------------------------------------------------------------- what an estimator is given


@feeds
def test_ids_are_sent_where_they_are_the_value(feed: str, words: Vocabulary) -> None:
    spy = Spy(estimators.estimator("kiwi"))
    energy = QualityEnergy(spy, words, feed, least_coverage=0.0)
    mask_BT = ids_of(words, TRANSLATIONS)[1]
    energy(
        source_of(words, SOURCES),
        Prediction(logits_of(words, *mask_BT.shape), mask_BT, noise=noise_of(len(SOURCES))),
    )
    ((_, target),) = spy.calls
    assert torch.equal(target.mask_BT, mask_BT)
    if feed in HARD and energy.bridge.identical:
        assert target.ids_BT is not None
        torch.testing.assert_close(target.emb_BTD, spy.model.lookup(target.ids_BT), rtol=0, atol=0)
    else:
        assert target.ids_BT is None


def test_padding_may_hold_any_id(mbart: HubVocabulary) -> None:
    spy = Spy(estimators.estimator("kiwi"))
    energy = QualityEnergy(spy, mbart)
    ids_BT, mask_BT = ids_of(mbart, TRANSLATIONS)
    source = source_of(mbart, SOURCES)
    wanted_B = energy.discrete(source, ids_BT, mask_BT)
    assert torch.equal(energy.discrete(source, ids_BT.masked_fill(~mask_BT, -100), mask_BT), wanted_B)
    assert spy.calls[1][1].ids_BT is not None and spy.calls[1][1].ids_BT.min() >= 0


def test_noise_is_its_own(mbart: HubVocabulary) -> None:
    spy = Spy(estimators.estimator("kiwi"))
    energy = QualityEnergy(spy, mbart, "SG")
    flat = torch.zeros(1, 40, mbart.size)
    noise = noise_of(1)
    energy(source_of(mbart, SOURCES[:1]), Prediction(flat, torch.ones(1, 40, dtype=torch.bool), noise=noise))
    picked = {
        stream: energy.bridge.rows(noise.draw(stream).gumbel(40, 0, mbart.size).argmax(-1)) for stream in range(3)
    }
    assert torch.equal(spy.calls[0][1].ids_BT, picked[2])
    assert not torch.equal(picked[2], picked[0]) and not torch.equal(picked[2], picked[1])


# ------------------------------------------------------------------------------------------- beside other rooms


def test_it_adds_up_with_a_teacher_s_energy(other: SentencePieceVocabulary) -> None:
    teacher = AutoregressiveEnergy(tiny.recurrent(other))
    quality = QualityEnergy(estimators.estimator("kiwi"), other, least_coverage=0.0)
    both = WeightedEnergy({"teacher": (1.0, teacher), "quality": (0.3, quality)})
    assert both.unit == "1 × nats per sentence + 0.3 × negative quality score"
    mask_BT = ids_of(other, TRANSLATIONS)[1]
    source = source_of(other, SOURCES)
    logits_BTV = logits_of(other, *mask_BT.shape).requires_grad_()
    given = Prediction(logits_BTV, mask_BT)
    energy_B = both(source, given)
    torch.testing.assert_close(energy_B, teacher(source, given) + 0.3 * quality(source, given))
    grads = [torch.autograd.grad(part(source, given).sum(), logits_BTV)[0] for part in (both, teacher, quality)]
    torch.testing.assert_close(grads[0], grads[1] + 0.3 * grads[2])


def test_reranking_puts_the_best_score_first(mbart: HubVocabulary) -> None:
    model = estimators.estimator("kiwi")
    lines = [line for line in TRANSLATIONS if line]
    candidates = [[Hypothesis(tuple(mbart.encode(line)), 0.0, 0.0) for line in lines] for _ in SOURCES]
    found = rerank(candidates, source_of(mbart, SOURCES), QualityEnergy(model, mbart), mbart.size)
    for source, hypotheses in zip(SOURCES, found, strict=True):
        scores = score_lines(model, [source] * len(lines), lines)
        assert [-item.extra["energy"] for item in hypotheses] == pytest.approx(sorted(scores, reverse=True), abs=1e-6)
        assert mbart.decode(hypotheses[0].ids) == lines[scores.index(max(scores))]


def test_covered_mass_by_hand(other: SentencePieceVocabulary) -> None:
    words = SentencePieceVocabulary.train([*TEXT, "字 字 字 字"], 90)
    energy = QualityEnergy(estimators.estimator("kiwi"), words, least_coverage=0.0)
    foreign = next(token for token in range(words.size) if "字" in words.piece(token))
    known = words.encode("Hund")[-1]
    assert not energy.bridge.covered_V[foreign] and energy.bridge.covered_V[known]
    probs_BTV = torch.zeros(3, 2, words.size)
    probs_BTV[0, 0, [foreign, known]] = torch.tensor([0.25, 0.75])
    probs_BTV[0, 1, [known, words.eos_id]] = torch.tensor([0.9, 0.1])
    probs_BTV[1:, :, foreign] = 1.0
    mask_BT = torch.tensor([[True, True], [True, False], [False, False]])
    mass_B = energy.covered_mass(Prediction(probs_BTV.log().requires_grad_(), mask_BT))
    torch.testing.assert_close(mass_B, torch.tensor([(0.75 + 0.9) / 2, 0.0, 1.0]))
    assert not mass_B.requires_grad


# -------------------------------------------------------------------------------------------------------- bad input
