"""What the dev set says of a translator: values against plain loops, and alarms that end a run where they shall."""

import copy
import logging
import math
from collections.abc import Sequence

import pytest
import torch

from energymt.data.corpus import Corpus
from energymt.data.hub import HubVocabulary
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.decoding.rerank import Translation
from energymt.decoding.sampling import possible
from energymt.decoding.translate import DecodingOptions, Translator
from energymt.energies import QualityEnergy
from energymt.metrics.alarms import AlarmConfig
from energymt.models import AutoregressiveModel, NonautoregressiveModel
from energymt.models.loading import AnyTranslator
from energymt.models.scoring import score_lines
from energymt.monitor import Monitor
from energymt.operators import OPERATORS
from energymt.records import Hypothesis, Prediction
from tests import bridged, estimators, tiny

SOURCES, REFERENCES = estimators.SOURCES, estimators.REFERENCES
TEXTS = ["a dog runs over the meadow .", "children play", "", "a book .", "the children play , and a dog ."]
FAR = {"kl_to_start": 1e-4}
SILENT = {name: math.inf for name in AlarmConfig.model_fields if name not in ("translates", "least_chrf")}
SILENT = {name: value for name, value in SILENT.items() if name != "scorers_fall"}


def by_length(sources: Sequence[str], texts: Sequence[str]) -> list[float]:
    return [len(text) / 10 for text in texts]


@pytest.fixture(scope="module")
def words() -> HubVocabulary:
    return bridged.mbart()


@pytest.fixture(params=["recurrent", "transformer"])
def model(request: pytest.FixtureRequest, words: HubVocabulary) -> AutoregressiveModel:
    if request.param == "recurrent":
        return tiny.recurrent(words, dropout=0.4)
    return tiny.scratch(words, dropout=0.4, longest=64)


def outputs(words: HubVocabulary, texts: Sequence[str] = TEXTS) -> list[Translation]:
    return [(text, Hypothesis(tuple(words.encode(text)), -1.0, -2.0)) for text in texts]


def monitor(model: AnyTranslator, feed: str = "SX", stops: bool = False, config=None, **judges) -> Monitor:
    start = copy.deepcopy(model).eval().requires_grad_(False)
    estimator = estimators.estimator("kiwi")
    energy = QualityEnergy(estimator, model.vocabulary, feed)
    judges = {"quality": lambda s, t: score_lines(estimator, s, t), **judges}
    config = AlarmConfig(**{**SILENT, **(config or {})})
    return Monitor(model, start, Corpus(SOURCES, REFERENCES, "dev.tsv (de → en)"), energy, judges, config, stops)


@torch.no_grad()
def distributions(model: AutoregressiveModel, source: str, ids: Sequence[int]) -> list[dict[int, float]]:
    """p of each word that may stand, at each position of a translation: one token after the other."""
    words = model.vocabulary
    never = set(words.never_ids)
    state, logits_1V = model.start(model.encode(bridged.source_of(words, [source])))
    found = []
    for token in [*ids, words.eos_id]:
        weights = {v: math.exp(x) for v, x in enumerate(logits_1V[0].double().tolist()) if v not in never}
        total = sum(weights.values())
        found.append({v: weight / total for v, weight in weights.items()})
        state, logits_1V = model.step(state, torch.tensor([token]))
    return found


def test_entropy_and_divergence_are_means_over_tokens(model: AutoregressiveModel, words: HubVocabulary) -> None:
    look = monitor(model)
    tiny.shake(model, 0.05, seed=7)
    values = look.look(outputs(words), {})
    entropy = divergence = 0.0
    tokens = 0
    for source, text in zip(SOURCES, TEXTS, strict=True):
        if not text:  # it says nothing
            continue
        pairs = [distributions(m, source, words.encode(text)) for m in (model.eval(), look.start)]
        for now, start in zip(*pairs, strict=True):
            entropy -= sum(p * math.log(p) for p in now.values())
            divergence += sum(p * math.log(p / start[v]) for v, p in now.items())
            tokens += 1
    assert values["dev/entropy"] == pytest.approx(entropy / tokens, rel=1e-4)
    assert values["dev/kl_to_start"] == pytest.approx(divergence / tokens, rel=1e-3)
    assert values["dev/kl_to_start"] > 0.001


def test_the_start_is_not_far_from_itself(model: AutoregressiveModel, words: HubVocabulary) -> None:
    model.train()
    values = monitor(model).look(outputs(words), {})
    assert values["dev/kl_to_start"] == pytest.approx(0.0, abs=1e-6)
    assert model.training


@pytest.mark.parametrize("feed", OPERATORS)
def test_the_soft_score_leads_that_of_the_text_by_what_the_energy_says(
    feed: str, model: AutoregressiveModel, words: HubVocabulary
) -> None:
    values = (look := monitor(model, feed)).look(outputs(words), {})
    lead = values["dev/quality_soft"] - values["dev/quality"]
    if feed in ("STL", "SG", "ST"):  # the value of a hard operator is the text
        assert lead == pytest.approx(0.0, abs=1e-5)
    if feed == "SX":
        there = [row for row, text in enumerate(TEXTS) if text]
        ids_BT, mask_BT = bridged.ids_of(words, [TEXTS[row] for row in there])
        source = bridged.source_of(words, [SOURCES[row] for row in there])
        with torch.no_grad():
            logits_BTV = possible(model, model.decode(model.encode(source), ids_BT, mask_BT)[:, :-1], end=False)
            soft = -look.energy(source, Prediction(logits_BTV, mask_BT))
        hard = torch.tensor(look.judges["quality"]([SOURCES[r] for r in there], [TEXTS[r] for r in there]))
        assert lead == pytest.approx(float(soft.mean() - hard.mean()), abs=1e-5)
        assert abs(lead) > 1e-4
    assert math.isfinite(lead)


def test_scores_of_every_judge(model: AutoregressiveModel, words: HubVocabulary) -> None:
    frozen = [0.5, 0.1, 0.2, math.nan, 0.4]
    look = monitor(model, judge=by_length, quality_frozen=lambda s, t: frozen)
    values = look.look(outputs(words), {"dev/chrf": 40.0})
    scores = look.judges["quality"](SOURCES, TEXTS)
    assert values["dev/quality"] == pytest.approx(sum(scores) / 5)
    assert values["dev/judge"] == pytest.approx(sum(map(len, TEXTS)) / 50)
    assert values["dev/quality_frozen"] == pytest.approx(0.3)
    gaps = [abs(a - b) for a, b in zip(scores, frozen, strict=True) if not math.isnan(b)]
    assert values["dev/drift"] == pytest.approx(sum(gaps) / 4)
    assert values["gaming/empty"] == 0.2
    assert "dev/chrf" not in values, "what is known is not said again"
    assert look.history == [{name: value for name, value in values.items() if "alarm" not in name} | {"dev/chrf": 40.0}]


def test_prefixes_are_read_by_the_translator_and_by_no_judge(model: AutoregressiveModel, words: HubVocabulary) -> None:
    heard: list[str] = []
    look = monitor(model, judge=lambda s, t: (heard.extend(s), by_length(s, t))[1])
    tiny.shake(model, 0.05, seed=7)
    plain = look.look(outputs(words), {})
    prefixes = [f"{text.split()[0]} " * 2 for text in SOURCES[1:] + SOURCES[:1]]
    look.corpus = Corpus(SOURCES, REFERENCES, "dev.tsv", prefixes=prefixes)
    look.energy = QualityEnergy(look.energy.estimator, words, "ST", prefixes=prefixes)
    found = look.look(outputs(words), {})
    assert heard[:5] == SOURCES and set(heard) == set(SOURCES)
    look.corpus = Corpus(look.corpus.inputs, REFERENCES, "dev.tsv")
    given = look.look(outputs(words), {})
    for name in ("dev/entropy", "dev/kl_to_start"):
        assert found[name] == given[name] != plain[name]
    assert found["dev/quality"] == plain["dev/quality"] != given["dev/quality"]
    assert found["dev/quality_soft"] == pytest.approx(found["dev/quality"], abs=1e-5)


def test_a_sentence_without_a_score_is_left_out(model: AutoregressiveModel, words: HubVocabulary) -> None:
    def judge(sources: Sequence[str], texts: Sequence[str]) -> list[float]:
        return [math.nan if text == TEXTS[1] else len(text) / 10 for text in texts]

    look = monitor(model)
    look.judges = {"quality": judge}
    values = look.look(outputs(words), {})
    assert values["dev/quality"] == pytest.approx(sum(len(text) for text in TEXTS if text != TEXTS[1]) / 40)
    assert all(math.isfinite(value) for value in values.values())


def test_without_a_word_there_is_no_soft_score(model: AutoregressiveModel, words: HubVocabulary) -> None:
    values = monitor(model, judge=by_length).look(outputs(words, [""] * 5), {})
    assert "dev/quality_soft" not in values
    assert values["dev/entropy"] == values["dev/kl_to_start"] == 0.0


def test_the_start_says_what_the_estimator_knows(caplog: pytest.LogCaptureFixture) -> None:
    words = SentencePieceVocabulary.train([*bridged.TEXT, "字 字 字 字"], 90)
    look = monitor(tiny.masked(words, longest=64))
    assert 0.95 < look.energy.bridge.coverage < 1.0
    first = look.look(one_pass(look.model), {})
    assert first["dev/coverage"] == look.energy.bridge.coverage
    line = f"knows {100 * look.energy.bridge.coverage:.1f} % of the translator's pieces"
    assert line in caplog.text
    caplog.clear()
    assert "dev/coverage" not in look.look(one_pass(look.model), {})
    assert line not in caplog.text


@torch.no_grad()
def test_covered_mass_is_a_mean_over_translations() -> None:
    words = SentencePieceVocabulary.train([*bridged.TEXT, "字 字 字 字"], 90)
    look = monitor(tiny.masked(words, longest=64))
    model, shares = look.model, []
    found = one_pass(model)
    for text, (_, hypothesis) in zip(SOURCES, found, strict=True):
        mask_1T = torch.ones(1, len(hypothesis.ids), dtype=torch.bool)
        logits_TV = model.predict(model.encode(bridged.source_of(words, [text])), model.unseen(mask_1T), mask_1T)[0]
        shares.append(float(logits_TV.softmax(-1)[:, look.energy.bridge.covered_V].sum(1).mean()))
    assert look.look(found, {})["dev/covered_mass"] == pytest.approx(sum(shares) / len(shares), abs=1e-5)
    assert 0.1 < sum(shares) / len(shares) < 0.999


def test_where_ids_map_to_ids_all_mass_is_covered(model: AutoregressiveModel, words: HubVocabulary) -> None:
    values = monitor(model).look(outputs(words), {})
    assert values["dev/coverage"] == values["dev/covered_mass"] == 1.0


# -------------------------------------------------------------------------------------------------- non-autoregressive


@pytest.fixture(params=["masked", "tagger"])
def parallel(request: pytest.FixtureRequest) -> NonautoregressiveModel:
    return {"masked": tiny.masked, "tagger": tiny.tagger}[request.param](bridged.other(), longest=64)


def one_pass(model: NonautoregressiveModel) -> list[Translation]:
    options = DecodingOptions(length_beam=1, iterations=1)
    return [found[0] for found in Translator(model, options).translate(SOURCES)]


@torch.no_grad()
def test_one_pass_is_compared_with_that_of_the_start(parallel: NonautoregressiveModel) -> None:
    look = monitor(parallel)
    first = look.look(one_pass(parallel), {})
    assert first["dev/kl_to_start"] == pytest.approx(0.0, abs=1e-6)
    tiny.shake(parallel, 0.05, seed=7)
    found = one_pass(parallel)
    values = look.look(found, {})
    entropy = divergence = 0.0
    for text, (_, hypothesis) in zip(SOURCES, found, strict=True):
        mask_1T = torch.ones(1, len(hypothesis.ids), dtype=torch.bool)
        source = bridged.source_of(parallel.vocabulary, [text])
        now_TV, start_TV = (
            model.predict(model.encode(source), model.unseen(mask_1T), mask_1T)[0].double().softmax(-1)
            for model in (parallel.eval(), look.start)
        )
        assert now_TV.argmax(-1).tolist() == list(hypothesis.ids)
        entropy -= float(torch.xlogy(now_TV, now_TV).sum())
        divergence += float((torch.xlogy(now_TV, now_TV) - torch.xlogy(now_TV, start_TV)).sum())
    tokens = sum(len(hypothesis.ids) for _, hypothesis in found)
    assert values["dev/entropy"] == pytest.approx(entropy / tokens, rel=1e-4)
    assert values["dev/kl_to_start"] == pytest.approx(divergence / tokens, rel=1e-3)
    assert values["dev/kl_to_start"] > 0.001


@pytest.mark.parametrize("feed", OPERATORS)
def test_the_soft_score_of_one_pass(feed: str, parallel: NonautoregressiveModel) -> None:
    values = monitor(parallel, feed).look(one_pass(parallel), {})
    lead = values["dev/quality_soft"] - values["dev/quality"]
    assert math.isfinite(lead)
    if feed in ("STL", "ST"):  # whose value is the argmax, the text
        assert lead == pytest.approx(0.0, abs=0.1)


def test_only_a_length_that_is_bounded_is_at_its_limit(parallel: NonautoregressiveModel) -> None:
    found = one_pass(parallel)
    values = monitor(parallel).look(found, {})
    if parallel.longest is None:
        assert "gaming/at_limit" not in values
    else:
        assert values["gaming/at_limit"] == sum(len(item.ids) >= parallel.longest for _, item in found) / len(found)


def test_the_estimator_is_probed_again_only_where_it_learns(model: AutoregressiveModel, words: HubVocabulary) -> None:
    """By length the empty and the halved text are told apart from the right one, and a longer one is liked as well."""
    many = Corpus(SOURCES * 15, REFERENCES * 15, "dev.tsv (de → en)")
    asked: list[int] = []

    def scored(sources: Sequence[str], texts: Sequence[str]) -> list[float]:
        asked.append(len(texts))
        return by_length(sources, texts)

    found = []
    for others in ({}, {"quality_frozen": by_length}):
        look = monitor(model, quality=scored, **others)
        look.corpus = many
        asked.clear()
        given = outputs(words, TEXTS * 15)
        first, before = look.look(given, {}), len(asked)
        assert look.look(given, {})["gaming/fooled"] == first["gaming/fooled"]
        found.append(2 * before - len(asked))
    assert found[0] > 5 and found[1] == 0, "questions that the second look did not ask"
    kinds = {name: value for name, value in first.items() if name.startswith("gaming/fooled/")}
    assert kinds["gaming/fooled/empty"] == kinds["gaming/fooled/second_half_left_out"] == 0.0
    assert kinds["gaming/fooled/words_shuffled"] == kinds["gaming/fooled/said_twice"] == 1.0 == first["gaming/fooled"]
    assert not any("fooled" in name for name in monitor(model).look(outputs(words), {})), "too few sentences"


# -------------------------------------------------------------------------------------------------------------- alarms


@pytest.mark.parametrize("stops", [True, False])
def test_an_alarm_is_said_and_ends_the_run_where_it_is_told_to(
    stops: bool, model: AutoregressiveModel, words: HubVocabulary, caplog: pytest.LogCaptureFixture
) -> None:
    look = monitor(model, stops=stops, config=FAR)
    first = look.look(outputs(words), {})
    assert first["gaming/alarms"] == 0.0 and "dev/stop" not in first
    tiny.shake(model, 0.05, seed=7)
    with caplog.at_level(logging.WARNING):
        second = look.look(outputs(words), {})
    assert {name for name in second if "alarm" in name} == {"gaming/alarms", "gaming/alarm/kl_to_start"}
    assert second["gaming/alarms"] == second["gaming/alarm/kl_to_start"] == 1.0
    assert second.get("dev/stop") == (1.0 if stops else None)
    assert "kl_to_start: dev/kl_to_start is" in caplog.text
    assert len(look.history) == 2


def test_a_history_that_is_taken_over_goes_on(model: AutoregressiveModel, words: HubVocabulary) -> None:
    """A resumed run compares with the start, and not with where it was resumed."""
    interrupted = monitor(model, config={"empty": 0.1})
    interrupted.look(outputs(words, ["a dog .", *TEXTS[:2], *TEXTS[3:]]), {})
    resumed = monitor(model, config={"empty": 0.1})
    resumed.history = interrupted.history
    assert resumed.look(outputs(words), {})["gaming/alarm/empty"] == 1.0
    assert monitor(model, config={"empty": 0.1}).look(outputs(words), {})["gaming/alarms"] == 0.0


def test_known_values_raise_alarms_too(model: AutoregressiveModel, words: HubVocabulary) -> None:
    look = monitor(model, config={"gradient_ratio": 10.0})
    assert look.look(outputs(words), {"train/gradient_ratio": 3.0})["gaming/alarms"] == 0.0
    assert look.look(outputs(words), {"train/gradient_ratio": 30.0})["gaming/alarm/gradient_ratio"] == 1.0
