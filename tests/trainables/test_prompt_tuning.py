"""Prompt tuning from the command to the finished model, and what can have no prompt."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from energymt.errors import ConfigurationError
from energymt.models import load_translator
from energymt.preparation import open_model
from tests import toy
from tests.terminal import quick

TOKENS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.world(tmp_path_factory.mktemp("world"))


def test_a_trained_prompt_stands_behind_the_words_of_a_plain_model(folder: Path, tmp_path: Path) -> None:
    init = folder / "transformer-toy"
    changes: dict[str, Any] = {"optimizer": {"learning_rate": 0.3, "warmup_steps": 2}, "steps": 10}
    settings = toy.config("supervised", folder, model={"init": str(init)}, **changes).model_dump(mode="json")
    settings["model"] = {"init": str(init)}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    command = ["train", "supervised", "-c", "run.yaml", "--set", f"model.prompt.tokens={TOKENS}"]
    done = quick(*command, "--name", "prompt", "--tracking", "none", folder=tmp_path)
    assert done.code == 0, done.err
    model = tmp_path / "runs" / "prompt" / "model"
    trained, initial = (safetensors.torch.load_file(path / "model.safetensors") for path in (model, init))
    changed = {name for name in initial if trained[name].shape != initial[name].shape}
    assert changed and all("shared" in name or "embed_tokens" in name or "bias" in name for name in changed)
    for name, tensor in initial.items():
        rows = trained[name][..., : tensor.shape[-1]] if "bias" in name else trained[name][: len(tensor)]
        assert torch.equal(rows, tensor)
    again = load_translator(model)
    assert again.prompt == TOKENS
    translated = quick("translate", str(model), folder=tmp_path, stdin=b"ka mu\n")
    assert translated.code == 0, translated.err
    refused = quick("models", "export", str(model), "--kind", "ctranslate2", folder=tmp_path)
    refused.refuses(2, "prompt", "learnt")


@pytest.mark.parametrize(
    "model, what",
    [
        ({"init": "recurrent-toy", "prompt": {"tokens": 2}}, r"recurrent-toy is a recurrent translator: drop model\.p"),
        ({"init": "transformer-toy", "prompt": {"tokens": 2}, "lora": {"rank": 2}}, "two ways to train little"),
        ({"init": None, "prompt": {"tokens": 2}}, r"model\.prompt trains little .* name it by model\.init"),
    ],
)
def test_what_can_have_no_prompt_is_refused(model: dict[str, Any], what: str, folder: Path) -> None:
    init = None if model["init"] is None else str(folder / model["init"])
    config = toy.config("supervised", folder, model={**model, "init": init})
    with pytest.raises(ConfigurationError, match=what):
        open_model(config, toy.vocabulary(folder))
