"""A quality estimator is trained: on an easy judgement, from every start there is, into a folder that serves."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import AutoModel

from energymt.data.batching import collate
from energymt.data.corpus import DataConfig, read_corpus
from energymt.data.vocabulary import SentencePieceVocabulary
from energymt.energies import QualityEnergy
from energymt.errors import ConfigurationError, EnergymtError, StorageError
from energymt.folders import verify_manifest
from energymt.metrics.estimation import correlations
from energymt.models.estimator import QualityEstimator
from energymt.models.estimator_folder import load_estimator
from energymt.models.scoring import score_lines
from energymt.records import Source, StepBatch
from tests import estimators, judged, tiny, toy

METRICS = ("unified_metric", "referenceless_regression_metric")
WORDS = "encoder.embeddings.word_embeddings.weight"
metrics = pytest.mark.parametrize("metric", METRICS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Judged text, and a translator over pieces of it in `masked-toy`."""
    folder = tmp_path_factory.mktemp("judged")
    judged.write(folder / "train.tsv", 300, seed=1)
    judged.write(folder / "dev.tsv", 40, seed=2)
    sources, targets = lines(folder, "train")
    toy.save_model(folder, "masked-toy", SentencePieceVocabulary.train(sources + targets, 55))
    return folder


def fitted(folder: Path, out: Path, stop_at: int | None = None, **changes):
    """One call of `fit`: the trainable, its result and all that was reported."""
    trainable = judged.make(folder, **changes)
    return trainable, *toy.fitted(trainable, out, stop_at)


def lines(folder: Path, name: str = "dev") -> tuple[list[str], list[str]]:
    corpus = read_corpus(DataConfig(path=str(folder / f"{name}.tsv"), source="source", target="translation"))
    return corpus.source, corpus.target or []


def scores(model: QualityEstimator, folder: Path) -> list[float]:
    return score_lines(model, *lines(folder))


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# ------------------------------------------------------------------------------------------------------------- learning


@metrics
def test_it_learns_an_easy_judgement_and_serves(metric: str, folder: Path, tmp_path: Path) -> None:
    model = {"variant": "estimator-toy", "metric": metric}
    vocabulary = {"path": str(folder / "masked-toy")}
    trainable = judged.make(folder, model=model, vocabulary=vocabulary)
    before = toy.weights(trainable)
    trainable, result, reports = fitted(folder, tmp_path / "run", model=model, vocabulary=vocabulary)
    assert result.metrics["dev/pearson"] > 0.95 and result.metrics["dev/kendall"] > 0.8
    assert result.metrics["dev/mse"] < 0.2
    losses = [values["train/mse"] for _, values in reports if "train/mse" in values]
    assert 0.5 < losses[0] < 2.0 and np.mean(losses[-5:]) < 0.2  # 1 is what the mean alone gets
    assert not torch.equal(before[WORDS], toy.weights(trainable)[WORDS])

    trainable.model.save_pretrained(tmp_path / "model", {"steps": 60})
    assert verify_manifest(tmp_path / "model")["steps"] == 60
    served = load_estimator(tmp_path / "model")
    assert served.config.metric == metric
    wanted = scores(trainable.model, folder)
    assert scores(served, folder) == pytest.approx(wanted, abs=1e-4)
    assert result.metrics["dev/pearson"] == pytest.approx(
        correlations(wanted, [judged.judgement(text) for text in lines(folder)[1]])["pearson"], abs=1e-4
    )
    is_energy_over_the_translator(served, folder)


def is_energy_over_the_translator(served: QualityEstimator, folder: Path) -> None:
    """Whose tokens mean the same to both."""
    words = SentencePieceVocabulary.load(folder / "masked-toy", {"segmented": False, "joiner": None})
    energy = QualityEnergy(served, words, "SX", least_coverage=1.0)
    assert energy.bridge.identical
    sources, targets = (texts[:6] for texts in lines(folder))
    source = Source(*tiny.padded([words.encode_source(text) for text in sources], words.pad_id))
    ids_BT, mask_BT = tiny.padded([words.encode(text) for text in targets], words.pad_id)
    assert torch.equal(energy.bridge.rows(ids_BT)[mask_BT], ids_BT[mask_BT])
    found = energy.discrete(source, ids_BT, mask_BT)
    assert found.tolist() == pytest.approx([-score for score in score_lines(served, sources, targets)], abs=1e-3)


# ------------------------------------------------------------------------------------------------------------- the loss


@metrics
@torch.no_grad()
def test_the_loss_is_the_squared_error_in_variances_of_the_judgements(metric: str, folder: Path) -> None:
    short = {"path": str(folder / "train.tsv"), **judged.COLUMNS, "max_target_tokens": 6}
    trainable = judged.make(folder, train=short, model={"variant": "estimator-toy", "metric": metric})
    trainable.model.eval()
    rows = trainable.plan.encoded.rows
    assert 50 < len(rows) < 250, "lines that are too long are left out, and the others keep their judgements"
    batch = collate(trainable.plan.encoded, range(7))
    (step,) = trainable.steps(StepBatch(0, 0, (batch,)))
    (term,) = step.losses(batch)
    sources, targets = lines(folder, "train")
    chosen = [targets[row] for row in rows[:7]]
    found = np.array(score_lines(trainable.model, [sources[row] for row in rows[:7]], chosen))
    wanted = np.array([judged.judgement(text) for text in chosen])
    variance = np.var([judged.judgement(text) for text in targets])
    assert (step.terms, term.name, term.weight) == (("mse",), "mse", 1.0)
    assert term.sum.item() == pytest.approx(((found - wanted) ** 2).sum() / variance, rel=1e-3)
    assert term.count == step.counts(batch)["mse"] == 7


def test_dev_values(folder: Path) -> None:
    trainable = judged.make(folder)
    trainable.model.train()
    values = trainable.evaluate()
    assert trainable.model.training
    found, wanted = np.array(scores(trainable.model, folder)), trainable.dev.scores_N
    assert wanted.tolist() == pytest.approx([judged.judgement(text) for text in lines(folder)[1]], abs=1e-4)
    mse = float(((found - wanted) ** 2).mean() / wanted.var())
    named = {f"dev/{name}": value for name, value in correlations(found, wanted).items()}
    assert values == pytest.approx({**named, "dev/mse": mse})


# --------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("start", ["new", "init"])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(start: str, folder: Path, tmp_path: Path) -> None:
    model = {"variant": "estimator-toy", "changes": {"dropout": 0.2}}
    if start == "init":
        model = {"init": str(estimators.converted("kiwi"))}
    changes = {"model": model, "steps": 5, "evaluate_every": 2, "checkpoint_every": 2}
    whole, wanted, reports = fitted(folder, tmp_path / "whole", **changes)
    _, stopped, before = fitted(folder, tmp_path / "run", stop_at=3, **changes)
    assert stopped.interrupted and stopped.progress.step == 3
    trainable, result, after = fitted(folder, tmp_path / "run", **changes)
    newest = [
        safetensors.torch.load_file(max((tmp_path / name).glob("last-*")) / "weights.safetensors")
        for name in ("whole", "run")
    ]
    assert same(*newest)
    assert same(toy.weights(trainable), toy.weights(whole))
    assert before + after == reports and result.metrics == wanted.metrics


# --------------------------------------------------------------------------------------------------------------- starts


def no_matter(name: str) -> bool:
    """Weights that a score does not feel: the bias of a key, which softmax takes out, and what is no weight."""
    return name.endswith((".key.bias", "position_ids"))


@pytest.mark.parametrize("kind", ["kiwi", "referenceless"])
def test_another_estimator_goes_on_from_its_scores_and_keeps_its_embeddings(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    init = estimators.converted(kind)
    trainable = judged.make(folder, model={"init": str(init)})
    loaded = load_estimator(init)
    assert scores(trainable.model, folder) == scores(loaded, folder)
    trainable, result, _ = fitted(folder, tmp_path, steps=4, evaluate_every=4, model={"init": str(init)})
    before, after = loaded.state_dict(), toy.weights(trainable)
    assert torch.equal(before[WORDS], after[WORDS])
    kept = {name for name in before if torch.equal(before[name], after[name]) and not no_matter(name)}
    assert kept == {WORDS}
    assert scores(trainable.model, folder) != scores(loaded, folder)
    trainable.model.save_pretrained(tmp_path / "model")
    saved = load_estimator(tmp_path / "model")
    assert saved.table_VD.numpy().tobytes() == loaded.table_VD.numpy().tobytes()
    assert result.progress.step == 4


@metrics
def test_an_encoder_gets_a_new_head_and_keeps_its_embeddings(metric: str, folder: Path, tmp_path: Path) -> None:
    model = {"encoder": str(estimators.pretrained()), "metric": metric}
    trainable, _, _ = fitted(folder, tmp_path, steps=2, evaluate_every=2, model=model)
    network = AutoModel.from_pretrained(estimators.pretrained(), add_pooling_layer=False)
    assert trainable.model.config.metric == metric and trainable.model.config.hidden_sizes == (3072, 1024)
    after = toy.weights(trainable)
    for name, tensor in network.state_dict().items():
        assert torch.equal(after[f"encoder.{name}"], tensor) == (f"encoder.{name}" == WORDS) or no_matter(name)
    trainable.model.save_pretrained(tmp_path / "model")
    saved = load_estimator(tmp_path / "model")
    assert saved.vocabulary.encode("ein Hund") == estimators.estimator("kiwi").vocabulary.encode("ein Hund")
    assert scores(saved, folder) == pytest.approx(scores(trainable.model, folder), abs=1e-4)


@pytest.mark.parametrize("start", ["new", "encoder"])
def test_a_new_head_begins_at_the_mean_of_the_judgements_with_their_spread(
    start: str, folder: Path, tmp_path: Path
) -> None:
    """The same weights on the same text, judged on two scales: the scores differ as the judgements do."""
    model = {"encoder": str(estimators.pretrained())} if start == "encoder" else {"variant": "estimator-toy"}
    header, *rows = (folder / "train.tsv").read_text("utf-8").splitlines()
    other = [f"{text}\t{4 * float(score) - 300}" for text, score in (row.rsplit("\t", 1) for row in rows)]
    (tmp_path / "train.tsv").write_text("\n".join([header, *other]) + "\n", "utf-8")
    (tmp_path / "dev.tsv").write_bytes((folder / "dev.tsv").read_bytes())
    first, second = (np.array(scores(judged.make(where, model=model).model, folder)) for where in (folder, tmp_path))
    assert second == pytest.approx(4 * first - 300, abs=1e-3)
    judgements = np.array([judged.judgement(text) for text in lines(folder, "train")[1]])
    assert np.abs(first - judgements.mean()).max() < 4 * judgements.std()
    assert first.std() > 0
    bias = judged.make(folder, model=model).model.head[-1].bias
    assert bias.item() == pytest.approx(judgements.mean(), abs=1e-3)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "changes, kind, parts",
    [
        ({"model": {"init": str(estimators.converted("regression"))}}, ConfigurationError, "regression.* not trained"),
        ({"model": {"init": str(estimators.converted("xcomet"))}}, ConfigurationError, "xcomet.* counts error spans"),
        ({"model": {"init": str(estimators.pretrained())}}, StorageError, "holds no estimator"),
        ({"model": {"variant": "masked-toy"}}, ConfigurationError, "'masked-toy'; choose one of estimator-toy"),
        ({"model": {"changes": {"width": 30}}}, ConfigurationError, "width of 30 does not divide by 4 heads"),
        ({"model": {"changes": {"wdith": 30}}}, ConfigurationError, "'wdith' in model.changes.*mean 'width'"),
        ({"model": {"encoder": "/no/such/encoder"}}, StorageError, "/no/such/encoder does not exist"),
        ({"vocabulary": {"model_type": "bpe", "size": 60}}, ConfigurationError, "unigram"),
        (
            {"model": {"encoder": str(estimators.pretrained())}, "vocabulary": {"path": "teacher"}},
            ConfigurationError,
            "has a vocabulary of its own: drop vocabulary.path teacher",
        ),
        ({"model": {"metric": "regression_metric"}}, ConfigurationError, "'model.metric'.*'regression_metric'"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    changes: dict, kind: type[EnergymtError], parts: str, folder: Path
) -> None:
    if "model" in changes and not {"init", "encoder"} & set(changes["model"]):
        changes = {"model": {"variant": "estimator-toy", **changes["model"]}}
    with pytest.raises(kind, match=parts):
        judged.make(folder, **changes)


def test_an_encoder_that_is_none_is_refused(folder: Path, tmp_path: Path) -> None:
    words = SentencePieceVocabulary.train(judged.ENGLISH, 40)
    translator = toy.save_model(tmp_path, "masked-toy", words)
    with pytest.raises(StorageError, match="masked-toy holds no tokenizer"):
        judged.make(folder, model={"encoder": str(translator)})
    estimators.estimator("kiwi").vocabulary.save(tmp_path / "tokenizer")
    with pytest.raises(StorageError, match="holds no encoder that an estimator can stand on"):
        judged.make(folder, model={"encoder": str(tmp_path / "tokenizer")})
