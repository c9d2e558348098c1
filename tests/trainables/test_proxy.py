"""A proxy learns what a frozen model's outputs are worth, from its states alone, and a step is one step however cut."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from energymt.data.batching import collate
from energymt.errors import ConfigurationError, EnergymtError, StorageError
from energymt.folders import weights_fingerprint
from energymt.metrics.estimation import pearson, spearman
from energymt.models import load_translator
from energymt.models.proxy import load_proxy
from energymt.plan import describe
from tests import proxies, toy
from trainables.proxy import ProxyTraining

every_loss = pytest.mark.parametrize("loss", proxies.LOSSES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return proxies.world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENERGYMT_RUNS", str(folder / "runs"))


def run(folder: Path, out: Path, stop_at: int | None = None, **changes: Any) -> tuple[ProxyTraining, Any, list[Any]]:
    """One call of `fit`: the trainable, the result and all that was reported."""
    trainable = proxies.make(folder, **changes)
    return trainable, *toy.fitted(trainable, out, stop_at)


def raw_on_dev(trainable: ProxyTraining) -> tuple[np.ndarray, np.ndarray]:
    """What the proxy says of each sentence of dev, one by one, and its label."""
    encoded, labels_N = trainable.held_out["dev"]
    trainable.model.eval()
    with torch.no_grad():
        memories = [trainable.states(collate(encoded, [row])) for row in range(len(encoded))]
        raw_N = torch.cat([trainable.model(memory.states_BSD, memory.mask_BS) for memory in memories])
    return raw_N.double().numpy(), labels_N[torch.from_numpy(encoded.rows)].numpy()


# ------------------------------------------------------------------------------------------------------------- learning

LEARN = {
    "proxy": {"hidden": 32, "heads": 4},
    "steps": 90,
    "evaluate_every": 30,
    "tokens_per_step": 256,
    "tokens_per_micro_batch": 128,
    "keep_best": 2,
}


@every_loss
def test_it_learns_an_easy_label_and_serves(loss: str, folder: Path, tmp_path: Path) -> None:
    before = load_translator(folder / "transformer-toy").state_dict()
    trainable, result, reports = run(folder, tmp_path / "run", loss=loss, **LEARN)
    raw_N, labels_N = raw_on_dev(trainable)
    assert result.metrics["dev/pearson"] > 0.5
    assert result.metrics["dev/pearson"] == pytest.approx(pearson(raw_N, labels_N), abs=1e-5)
    assert result.metrics["dev/spearman"] == pytest.approx(spearman(raw_N, labels_N), abs=1e-5)
    assert result.metrics["dev/error"] < 0.9 * labels_N.std()
    losses = [values["train/loss"] for _, values in reports if "train/loss" in values]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    after = trainable.translator.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())

    trainable.model.save_pretrained(tmp_path / "proxy")
    served = load_proxy(tmp_path / "proxy")
    served.require_fit(weights_fingerprint(folder / "transformer-toy"), 8, "it")
    assert (served.config.metric, served.config.higher_is_better) == ("column:easy", True)
    slope, intercept = np.polyfit(raw_N, labels_N, 1)
    assert float(served.scale) == pytest.approx(slope, rel=1e-3)
    assert float(served.shift) == pytest.approx(intercept, rel=1e-3)


def test_each_kept_model_has_its_own_calibration(folder: Path, tmp_path: Path) -> None:
    trainable, result, _ = run(folder, tmp_path, **{**LEARN, "keep_best": 3})
    assert len(result.progress.kept) == 3
    found = {}
    for path in sorted(tmp_path.glob("kept-*")):
        kept = safetensors.torch.load_file(path / "weights.safetensors")
        trainable.model.load_state_dict(kept)
        raw_N, labels_N = raw_on_dev(trainable)
        slope, intercept = np.polyfit(raw_N, labels_N, 1)
        assert kept["scale"].item() == pytest.approx(max(0.0, slope), rel=1e-3)
        left_N = labels_N - slope * raw_N - intercept
        assert kept["error"].item() == pytest.approx(np.sqrt((left_N**2).mean()), rel=1e-3)
        found[path.name] = kept["scale"].item()
    assert len(set(found.values())) == 3


def test_an_error_rate_is_better_where_it_is_lower(folder: Path) -> None:
    trainable = proxies.make(folder, lower_is_better=True)
    assert not trainable.model.config.higher_is_better
    trainable.evaluate()
    memory = trainable.states(collate(trainable.plan.encoded, [0, 1]))
    predicted_B = trainable.model.predict(memory.states_BSD, memory.mask_BS)
    assert torch.equal(trainable.model.merit(memory.states_BSD, memory.mask_BS), -predicted_B)


@pytest.mark.parametrize("translator", ["recurrent-toy", "masked-toy"])
def test_it_reads_the_states_of_any_translator_and_its_own_outputs(translator: str, folder: Path) -> None:
    data = {
        name: {"path": str(folder / f"{name}.tsv"), "source": "source", "target": "target", "rows": 30}
        for name in ("train", "dev")
    }
    trainable = proxies.make(folder, translator=str(folder / translator), metric=str(folder / "estimator"), **data)
    batches = trainable.plan.iterate()
    reports = toy.train(trainable, [next(batches) for _ in range(3)])
    assert all(-1 <= report["train/loss"] <= 1 and report["train/gradient_norm"] > 0 for report in reports)
    assert -1 <= trainable.evaluate()["dev/pearson"] <= 1


def test_other_text_is_reported_beside_dev(folder: Path) -> None:
    other = {"path": str(folder / "train-easy.tsv"), **proxies.COLUMN, "rows": 25}
    trainable = proxies.make(folder, transfer={"other": other})
    values = trainable.evaluate()
    names = {"dev/pearson", "dev/spearman", "dev/error", "dev/pearson_other", "dev/spearman_other"}
    assert values.keys() == names
    scale = trainable.model.scale.item()
    plain = proxies.make(folder)
    assert plain.evaluate() == {name: value for name, value in values.items() if "other" not in name}
    assert plain.model.scale.item() == scale, "dev alone calibrates"
    trainable.held_out["dev"] = trainable.held_out["other"]
    assert trainable.evaluate()["dev/pearson"] == pytest.approx(values["dev/pearson_other"])


def test_sentences_that_are_too_long_keep_their_labels_in_step(folder: Path) -> None:
    data = {
        name: {"path": str(folder / f"{name}-easy.tsv"), **proxies.COLUMN, "max_source_tokens": 12}
        for name in ("train", "dev")
    }
    trainable = proxies.make(folder, **data)
    encoded, labels_N = trainable.held_out["dev"]
    assert 5 < len(encoded) < 60
    words = trainable.translator.vocabulary
    sources = [words.decode(ids.tolist()) for ids in encoded.source_ids]
    raw_N, found = raw_on_dev(trainable)
    assert found.tolist() == pytest.approx([proxies.easy(source) for source in sources], abs=1e-5)
    assert len(labels_N) == 60 and trainable.evaluate()["dev/pearson"] == pytest.approx(pearson(raw_N, found), abs=1e-5)
    for step in trainable.plan.epoch(0):
        for chosen in step:
            batch = collate(trainable.plan.encoded, chosen)
            texts = [
                words.decode(ids[kept].tolist())
                for ids, kept in zip(batch.source.ids_BS, batch.source.mask_BS, strict=True)
            ]
            assert trainable.labels_N[batch.sentence_ids_B].tolist() == pytest.approx(
                [proxies.easy(text) for text in texts]
            )


def test_the_first_weights_are_a_function_of_the_seed(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """And not of who computed the labels."""
    monkeypatch.setenv("ENERGYMT_RUNS", str(tmp_path))
    data = {part: {"path": str(folder / f"{part}.tsv"), "source": "source"} for part in ("train", "dev")}
    first, second = (toy.weights(proxies.make(folder, metric=str(folder / "estimator"), **data)) for _ in range(2))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    other = toy.weights(proxies.make(folder, metric=str(folder / "estimator"), seed=2, **data))
    assert not torch.equal(first["queries.weight"], other["queries.weight"])


def test_a_plan_needs_no_translations(folder: Path) -> None:
    shown = describe("proxy", proxies.make(folder).config, 1)
    assert "training text  300 sentences" in shown and "dev text       60 sentences of" in shown
    assert "made first" not in shown and "Nothing was trained" in shown


# --------------------------------------------------------------------------------------------------------------- resume


def left(out: Path) -> dict[str, torch.Tensor]:
    newest = max(out.glob("last-*"))
    return {
        f"{file.name}.{k}": v
        for file in newest.glob("*.safetensors")
        for k, v in safetensors.torch.load_file(file).items()
    }


def test_a_resumed_run_is_the_undisturbed_one(folder: Path, tmp_path: Path) -> None:
    changes = {"steps": 9, "evaluate_every": 4, "checkpoint_every": 3, "keep_best": 2}
    whole, wanted, reports = run(folder, tmp_path / "whole", **changes)
    before = []
    for at in (2, 5):  # before and behind the first calibration
        _, first, some = run(folder, tmp_path / "cut", stop_at=at, **changes)
        assert first.interrupted and first.progress.step == at
        before += some
    resumed, result, after = run(folder, tmp_path / "cut", **changes)
    assert before + after == reports and result.metrics == wanted.metrics
    theirs, own = left(tmp_path / "cut"), left(tmp_path / "whole")
    assert theirs.keys() == own.keys() and all(torch.equal(theirs[name], own[name]) for name in own)
    assert {"weights.safetensors.scale", "weights.safetensors.shift", "weights.safetensors.error"} < own.keys()
    assert json.loads((max((tmp_path / "cut").glob("last-*")) / "progress.json").read_text())["step"] == 9
    for name, weight in toy.weights(whole).items():
        assert torch.equal(weight, toy.weights(resumed)[name]), name


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "changes, kind, parts",
    [
        ({"model": {"variant": "transformer-toy"}}, ConfigurationError, "drop `model`.*translator=ADDRESS"),
        ({"vocabulary": {"size": 90}}, ConfigurationError, "no vocabulary to choose"),
        ({"metric": "chrf", "lower_is_better": True}, ConfigurationError, "direction of chrf is known"),
        ({"metric": "/no/such/metric"}, StorageError, "/no/such/metric does not exist"),
        ({"translator": "/no/such/model"}, StorageError, "/no/such/model does not exist"),
        ({"transfer": {"dev": {"path": "a.tsv"}}}, ConfigurationError, "'dev' in transfer is taken"),
        ({"loss": "kendall"}, ConfigurationError, "kendall"),
        ({"proxy": {"depth": 2}}, ConfigurationError, "depth"),
        ({"metric": "column:wer"}, EnergymtError, "wer"),
        ({"metric": "chrf"}, ConfigurationError, "name that of the translations in target"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    changes: dict[str, Any], kind: type[EnergymtError], parts: str, folder: Path
) -> None:
    with pytest.raises(kind, match=parts):
        proxies.make(folder, **changes)
