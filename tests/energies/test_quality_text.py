"""An energy that is asked for now and waited for later, and the energy of the text that tokens write."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from energymt.data.vocabulary import Vocabulary
from energymt.models.estimator import QualityEstimator
from energymt.models.scoring import score_lines
from energymt.operators import OPERATORS
from energymt.records import Prediction, SoftTarget, Source
from tests import bridged, estimators, tiny
from tests.bridged import SOURCES, TRANSLATIONS, energy_of, ids_of, logits_of, noise_of, source_of


@pytest.fixture(params=bridged.VOCABULARIES)
def words(request: pytest.FixtureRequest) -> Vocabulary:
    return bridged.VOCABULARIES[request.param]()


class Elsewhere:
    """An estimator that is asked first and computes when somebody waits."""

    def __init__(self, model: QualityEstimator) -> None:
        self.model, self.vocabulary, self.table_VD = model, model.vocabulary, model.table_VD
        self.log: list[str] = []

    def submit(self, source: Source, target: SoftTarget) -> "Promise":
        self.log.append("asked")
        if not target.emb_BTD.shape[-1]:
            target = replace(target, emb_BTD=self.model.lookup(target.ids_BT))
        return Promise(self, source, target)

    def __call__(self, source: Source, target: SoftTarget) -> Tensor:
        return self.submit(source, target).result()


class Promise:
    def __init__(self, owner: Elsewhere, source: Source, target: SoftTarget) -> None:
        self.owner, self.source, self.target = owner, source, target

    def result(self) -> Tensor:
        self.owner.log.append("waited")
        return self.owner.model(self.source, self.target)


def prediction(words: Vocabulary) -> Prediction:
    ids_BT, mask_BT = ids_of(words, TRANSLATIONS)
    return Prediction(logits_of(words, *ids_BT.shape).requires_grad_(), mask_BT, ids_BT, noise_of(len(SOURCES)))


@pytest.mark.parametrize("feed", OPERATORS)
def test_what_was_begun_is_the_energy_with_its_gradient(feed: str, words: Vocabulary) -> None:
    energy, found = energy_of(words, feed), []
    for way in (energy.__call__, lambda source, given: energy.begin(source, given)()):
        given = prediction(words)
        energy_B = way(source_of(words, SOURCES), given)
        (energy_B * torch.arange(1.0, 6.0)).sum().backward()
        found.append((energy_B.detach(), given.logits_BTV.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][1].abs().max() > 0


def test_an_estimator_elsewhere_is_asked_at_once_and_waited_for_later(words: Vocabulary) -> None:
    energy = energy_of(words, "ST")
    wanted = [energy(source_of(words, SOURCES), prediction(words)) for _ in range(2)]
    energy.estimator = elsewhere = Elsewhere(energy.estimator)
    source, given = source_of(words, SOURCES), prediction(words)
    waiting = [energy.begin(source, given), energy.begin(source, given)]
    assert elsewhere.log == ["asked", "asked"]
    found = [begun() for begun in waiting]
    assert elsewhere.log == ["asked", "asked", "waited", "waited"]
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert all(energy_B.requires_grad for energy_B in found)
    text = energy.begin_text(source, *ids_of(words, TRANSLATIONS))
    assert elsewhere.log[4:] == ["asked"]
    assert text().shape == (5,) and elsewhere.log[4:] == ["asked", "waited"]


def test_the_energy_of_text_is_minus_its_score(words: Vocabulary) -> None:
    """As the estimator splits it, whatever the translator's pieces are; what its tokens lost stays lost."""
    energy = energy_of(words, "ST")
    ids_BT, mask_BT = ids_of(words, TRANSLATIONS)
    texts = [words.decode(ids[mask].tolist()) for ids, mask in zip(ids_BT, mask_BT, strict=True)]
    wanted = [-score for score in score_lines(estimators.estimator("kiwi"), SOURCES, texts)]
    found_B = energy.begin_text(source_of(words, SOURCES), ids_BT, mask_BT)()
    assert found_B.tolist() == pytest.approx(wanted, abs=1e-5)
    assert not found_B.requires_grad
    assert max(wanted) - min(wanted) > 0.05


def test_another_segmentation_of_a_text_has_the_same_energy(words: Vocabulary) -> None:
    """Words split after their first letter that is a piece."""
    energy = energy_of(words, "ST")
    pieces = {words.piece(token): token for token in range(words.size)}
    spelled = words.encode("a dog runs over the meadow .")
    other: list[int] = []
    for token in spelled:
        piece = words.piece(token)
        cuts = [
            (pieces[piece[:n]], pieces[piece[n:]]) for n in range(1, len(piece)) if {piece[:n], piece[n:]} <= {*pieces}
        ]
        other += cuts[0] if cuts else [token]
    assert other != spelled and words.decode(other) == words.decode(spelled)
    source = source_of(words, [SOURCES[0]] * 2)
    first, second = energy.begin_text(source, *tiny.padded([spelled, other], words.pad_id))().tolist()
    assert first == pytest.approx(second, abs=1e-6)
    soft = energy.discrete(source, *tiny.padded([spelled, other], words.pad_id)).tolist()
    assert abs(soft[0] - soft[1]) > 1e-4, "to an energy of tokens they are not the same"


def test_padding_changes_nothing_and_empty_ones_have_an_energy(words: Vocabulary) -> None:
    energy = energy_of(words, "ST")
    ids_BT, mask_BT = ids_of(words, TRANSLATIONS)
    wanted_B = energy.begin_text(source_of(words, SOURCES), ids_BT, mask_BT)()
    wide = torch.cat([ids_BT, torch.full((5, 3), 7)], 1), torch.cat([mask_BT, torch.zeros(5, 3, dtype=torch.bool)], 1)
    found_B = energy.begin_text(source_of(words, SOURCES, width=40), *wide)()
    torch.testing.assert_close(found_B, wanted_B, rtol=0, atol=1e-6)
    empty = torch.zeros(5, 1, dtype=torch.long), torch.zeros(5, 1, dtype=torch.bool)
    empty_B = energy.begin_text(source_of(words, SOURCES), *empty)()
    scores = score_lines(estimators.estimator("kiwi"), SOURCES, [""] * 5)
    assert empty_B.tolist() == pytest.approx([-score for score in scores], abs=1e-5)


def test_targets_are_text_in_the_estimators_tokens(words: Vocabulary) -> None:
    bridge = energy_of(words, "ST").bridge
    ids_BT, mask_BT = ids_of(words, TRANSLATIONS)
    found_BT, found_mask_BT = bridge.target(ids_BT, mask_BT)
    rows = [ids[mask].tolist() for ids, mask in zip(found_BT, found_mask_BT, strict=True)]
    texts = [words.decode(ids[mask].tolist()) for ids, mask in zip(ids_BT, mask_BT, strict=True)]
    assert rows == [bridge.estimator.encode(text) for text in texts]
    special = {*bridge.estimator.never_ids, bridge.estimator.eos_id}
    assert not special & {token for row in rows for token in row}
    assert (found_BT[~found_mask_BT] == bridge.estimator.pad_id).all()
    assert found_mask_BT.dtype == torch.bool and found_BT.dtype == torch.int64
    assert rows[3] == [] and not found_mask_BT[3].any()
    for found, wanted in zip(bridge.split(texts), (found_BT, found_mask_BT), strict=True):
        assert torch.equal(found, wanted)


def test_of_no_text_there_is_nothing(words: Vocabulary) -> None:
    bridge = energy_of(words, "ST").bridge
    ids_BT, mask_BT = bridge.split([])
    assert ids_BT.shape == mask_BT.shape == (0, 0)
    assert [part.shape for part in bridge.split(["", ""])] == [(2, 0), (2, 0)]


def test_a_gradient_reaches_the_logits_through_what_was_waited_for(words: Vocabulary) -> None:
    energy = energy_of(words, "SX")
    given = prediction(words)
    energy(source_of(words, SOURCES), given).sum().backward()
    wanted, again = given.logits_BTV.grad, prediction(words)
    energy.estimator = Elsewhere(energy.estimator)
    energy.begin(source_of(words, SOURCES), replace(again, hard_ids_BT=None))().sum().backward()
    assert torch.equal(again.logits_BTV.grad, wanted)
