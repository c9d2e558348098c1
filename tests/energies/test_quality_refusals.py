"""What a quality energy refuses, and what it leaves alone."""

from collections.abc import Callable

import pytest
import torch

from energymt.data.hub import HubVocabulary
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.energies import QualityEnergy
from energymt.errors import ConfigurationError
from energymt.models.scoring import score_lines
from energymt.records import Prediction
from tests import bridged, estimators, tiny
from tests.bridged import ids_of, source_of


@pytest.fixture
def mbart() -> HubVocabulary:
    """The estimator's pieces."""
    return bridged.mbart()


@pytest.fixture
def make(mbart: HubVocabulary) -> Callable[..., QualityEnergy]:
    return lambda vocabulary=mbart, **options: QualityEnergy(estimators.estimator("kiwi"), vocabulary, **options)


def test_what_does_not_fit_is_refused(make: Callable[..., QualityEnergy], mbart: HubVocabulary) -> None:
    with pytest.raises(ConfigurationError, match="'XS'"):
        make(feed="XS")
    with pytest.raises(ConfigurationError, match="says where a word starts"):
        make(tiny.Numbers())
    cyrillic = SentencePieceVocabulary.train(["собака бежит по лугу", "дети играют в саду"], 60)
    with pytest.raises(ConfigurationError, match=r"knows 1 of the .* pieces .* 95\.0% are asked for"):
        make(cyrillic)
    assert make(cyrillic, least_coverage=0.0).bridge.coverage < 0.1
    given = Prediction(torch.zeros(1, 1, 17), torch.ones(1, 1, dtype=torch.bool))
    for call in (lambda: make()(source_of(mbart, ["ein"]), given), lambda: make().covered_mass(given)):
        with pytest.raises(ConfigurationError, match=f"over 17 tokens and the energy's vocabulary has {mbart.size}"):
            call()


def test_a_metric_that_is_no_energy_is_refused(mbart: HubVocabulary) -> None:
    energy = QualityEnergy(estimators.estimator("xcomet"), mbart)
    with pytest.raises(ConfigurationError, match="is no energy"):
        energy.discrete(source_of(mbart, ["ein Buch"]), *ids_of(mbart, ["a book"]))


def test_the_estimator_s_own_table_is_left_alone(mbart: HubVocabulary) -> None:
    model = estimators.estimator("kiwi")
    before_VD = model.table_VD.clone()
    QualityEnergy(model, mbart).table_VD.zero_()
    assert torch.equal(model.table_VD, before_VD)


def test_a_translator_over_the_estimator_s_own_tokens_mixes_the_estimator_s_own_rows() -> None:
    """No copy of them: a table that is mapped into memory is there once for all processes."""
    model = estimators.estimator("kiwi")
    energy = QualityEnergy(model, model.vocabulary)
    assert energy.table_VD.data_ptr() == model.table_VD.data_ptr()
    ids_BT, mask_BT = ids_of(model.vocabulary, bridged.TRANSLATIONS)
    wanted = score_lines(model, bridged.SOURCES, bridged.TRANSLATIONS)
    source = source_of(model.vocabulary, bridged.SOURCES)
    assert energy.discrete(source, ids_BT, mask_BT).tolist() == pytest.approx([-score for score in wanted], abs=1e-6)
