"""Training of adapters alone, from the command to the finished model: what learns, what is kept, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from energymt.checkpoints import Checkpoints
from energymt.data.batching import collate
from energymt.errors import ConfigurationError
from energymt.models import load_translator
from energymt.models.adapters import ADAPTER
from energymt.preparation import open_model
from tests import toy
from tests.terminal import quick
from trainables.supervised import Supervised

LORA = {"rank": 4, "alpha": 8.0, "dropout": 0.2, "targets": ["q_proj", "v_proj", "fc1"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.world(tmp_path_factory.mktemp("world"))


def made(folder: Path, init: str = "transformer-toy", **changes: Any) -> Supervised:
    model = {"init": str(folder / init), "lora": LORA}
    optimizer = {"learning_rate": 0.05, "warmup_steps": 2}
    return toy.make(
        "supervised", toy.config("supervised", folder, **{"model": model, "optimizer": optimizer, **changes})
    )


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def last(out: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(max(out.glob("last-*")) / "weights.safetensors")


def logits_of(model: Any, trainable: Supervised) -> torch.Tensor:
    batch = collate(trainable.text.train, range(7))
    with torch.no_grad():
        return model.decode(model.encode(batch.source), batch.target_BT, batch.target_mask_BT)


def test_it_learns_and_all_else_stays_as_it_was(folder: Path) -> None:
    trainable = made(folder, steps=40)
    before = toy.weights(trainable)
    batches = trainable.plan.iterate()
    reports = toy.train(trainable, [next(batches) for _ in range(40)])
    assert reports[-1]["train/nll"] < 0.95 * reports[0]["train/nll"]  # the rest is random
    after = toy.weights(trainable)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ADAPTER in name} and changed
    initial = load_translator(folder / "transformer-toy").state_dict()
    kept = {name.replace(".base_layer", ""): after[name] for name in after if ADAPTER not in name}
    assert same(kept, initial)


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(at: int, folder: Path, tmp_path: Path) -> None:
    whole, parts = made(folder, keep_best=2), made(folder, keep_best=2)
    wanted, reports = toy.fitted(whole, tmp_path / "whole")
    first, before = toy.fitted(parts, tmp_path / "parts", stop_at=at)
    assert first.interrupted and first.progress.step == at
    again = made(folder, keep_best=2)
    found, after = toy.fitted(again, tmp_path / "parts")
    assert same(last(tmp_path / "parts"), last(tmp_path / "whole"))
    assert same(toy.weights(again), toy.weights(whole))
    assert found.metrics == wanted.metrics and before + after == reports


def test_the_mean_of_kept_checkpoints_is_that_of_the_adapters(folder: Path, tmp_path: Path) -> None:
    trainable = made(folder, keep_best=2, evaluate_every=1, steps=4)
    trainable.METRIC = "dev/length_ratio"  # which moves from the first step on
    result, _ = toy.fitted(trainable, tmp_path)
    kept = [safetensors.torch.load_file(path / "weights.safetensors") for path in sorted(tmp_path.glob("kept-*"))]
    steps = sorted(int(step) for step in result.progress.kept)
    assert len(kept) == 2 == len(steps) and not same(kept[0], kept[1])
    Checkpoints(tmp_path, 2).load_kept(trainable.model, steps)
    for name, tensor in trainable.model.state_dict().items():
        if ADAPTER in name:
            torch.testing.assert_close(tensor, (kept[0][name] + kept[1][name]) / 2)


def test_the_command_leaves_a_plain_model_that_says_what_the_run_did(folder: Path, tmp_path: Path) -> None:
    settings = made(folder).config.model_dump(mode="json", exclude={"model"})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    init, keys = folder / "transformer-toy", ("targets=[q_proj, v_proj, fc1]", "rank=4", "alpha=8", "dropout=0.2")
    sets = [f"model.init={init}", *(f"model.lora.{key}" for key in keys)]
    command = ["train", "supervised", "-c", "run.yaml", *(part for value in sets for part in ("--set", value))]
    done = quick(*command, "--name", "lora", "--tracking", "none", folder=tmp_path)
    assert done.code == 0, done.err
    model = tmp_path / "runs" / "lora" / "model"
    trainable = made(folder)
    toy.fitted(trainable, tmp_path / "here")
    torch.testing.assert_close(
        logits_of(load_translator(model), trainable), logits_of(trainable.model.eval(), trainable), rtol=1e-4, atol=1e-5
    )
    trained, initial = (safetensors.torch.load_file(path / "model.safetensors") for path in (model, init))
    assert trained.keys() == initial.keys()
    changed = {name.rsplit(".", 2)[1] for name in trained if not torch.equal(trained[name], initial[name])}
    assert changed == {"q_proj", "v_proj", "fc1"}
    planned = quick(*command, "--dry-run", folder=tmp_path)
    count = sum(weight.numel() for name, weight in trainable.model.named_parameters() if ADAPTER in name)
    assert planned.code == 0 and f"{count:,}" in planned.out, planned.out
    wrong = quick(*command, "--set", "model.lora.targets=[query]", "--dry-run", folder=tmp_path)
    wrong.refuses(2, "model.lora.targets", "'query'", "MarianMTModel", "q_proj")
    wrong = quick(*command, "--set", "model.lora.rnak=2", "--dry-run", folder=tmp_path)
    wrong.refuses(2, "'model.lora.rnak'", "'rank'")


@pytest.mark.parametrize(
    "model, what",
    [
        ({"init": "recurrent-toy"}, r"recurrent-toy is a recurrent translator: drop model\.lora"),
        ({"init": "masked-toy"}, "masked-toy is a masked translator"),
        ({"init": None}, r"name it by model\.init"),
    ],
)
def test_what_can_have_no_adapters_is_refused(model: dict[str, Any], what: str, folder: Path) -> None:
    init = None if model["init"] is None else str(folder / model["init"])
    config = toy.config("supervised", folder, model={"init": init, "lora": LORA})
    with pytest.raises(ConfigurationError, match=what):
        open_model(config, toy.vocabulary(folder))
