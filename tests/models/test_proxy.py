"""A proxy: padding says nothing, its folder is whole or refused, and its unit and direction are those of the metric."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from energymt.errors import ConfigurationError, StorageError
from energymt.folders import verify_manifest
from energymt.models.proxy import ACTIVATIONS, ProxyConfig, QualityProxy, load_proxy
from tests import proxies

WIDTH = 5
LENGTHS = (3, 1, 4)


def states(width: int = max(LENGTHS), padding: float = 7.0) -> tuple[Tensor, Tensor]:
    """States of three sentences, the same whatever stands behind them."""
    draw = torch.Generator().manual_seed(1)
    states_BSD = torch.full((len(LENGTHS), width, WIDTH), padding)
    for row, length in enumerate(LENGTHS):
        states_BSD[row, :length] = torch.randn(length, WIDTH, generator=draw)
    return states_BSD, torch.arange(width) < torch.tensor(LENGTHS)[:, None]


def gradients(proxy: QualityProxy, states_BSD: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Raw scores, and the gradients of their squares in the states and in the weights."""
    states_BSD = states_BSD.clone().requires_grad_(True)
    weights = dict(proxy.requires_grad_(True).named_parameters())
    raw_B = proxy(states_BSD, mask_BS)
    found = torch.autograd.grad(raw_B.square().sum(), [states_BSD, *weights.values()])
    return raw_B.detach(), found[0], dict(zip(weights, found[1:], strict=True))


# ------------------------------------------------------------------------------------------------------------ the score


@pytest.mark.parametrize("padding", [7.0, float("nan"), float("inf")])
@pytest.mark.parametrize("width", [4, 9])
def test_padding_changes_neither_the_score_nor_a_gradient(width: int, padding: float) -> None:
    proxy = proxies.proxy(WIDTH)
    wanted, by_state, by_weight = gradients(proxy, *states(padding=0.0))
    raw_B, gradient_BSD, found = gradients(proxy, *states(width, padding))
    assert torch.allclose(raw_B, wanted, atol=1e-6)
    assert torch.allclose(gradient_BSD[:, :4], by_state, atol=1e-6)
    assert torch.equal(gradient_BSD[~states(width)[1]], torch.zeros_like(gradient_BSD[~states(width)[1]]))
    assert by_state.abs().amax((1, 2)).min() > 1e-3
    for name, gradient in found.items():
        assert torch.allclose(gradient, by_weight[name], atol=1e-5), name


def test_a_sentence_is_scored_by_itself() -> None:
    proxy, (states_BSD, mask_BS) = proxies.proxy(WIDTH), states()
    together = proxy(states_BSD, mask_BS)
    for row, length in enumerate(LENGTHS):
        alone = proxy(states_BSD[row : row + 1, :length], mask_BS[row : row + 1, :length])
        assert alone.item() == pytest.approx(together[row].item(), abs=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layers", [1, 3])
def test_it_is_attention_pooling_and_a_perceptron(layers: int, activation: str) -> None:
    proxy, (states_BSD, mask_BS) = proxies.proxy(WIDTH, layers=layers, activation=activation), states()
    act = ACTIVATIONS[activation]()
    linear = [part for part in proxy.scorer if isinstance(part, torch.nn.Linear)]
    assert len(linear) == layers
    for row, length in enumerate(LENGTHS):
        e_SD = states_BSD[row, :length]
        x = torch.cat([(e_SD @ query_D).softmax(0) @ e_SD for query_D in proxy.queries.weight])
        for number, layer in enumerate(linear):
            x = layer(act(x) if number else x)
        assert proxy(states_BSD, mask_BS)[row].item() == pytest.approx(x.item(), abs=1e-5)


def test_dropout_is_of_training_alone() -> None:
    proxy, given = proxies.proxy(WIDTH), states()
    assert torch.equal(proxy(*given), proxy(*given))
    proxy.train()
    assert not torch.equal(proxy(*given), proxy(*given))


# ----------------------------------------------------------------------------------------------------- unit, direction


def test_more_merit_is_better_whatever_the_metric() -> None:
    given = states()
    up, down = (proxies.proxy(WIDTH, higher=higher) for higher in (True, False))
    assert torch.allclose(up.predict(*given), 2.0 * up(*given) + 30.0)
    assert torch.equal(up.predict(*given), down.predict(*given))
    assert torch.equal(up.merit(*given), up.predict(*given))
    assert torch.equal(down.merit(*given), -down.predict(*given))


def test_calibration_is_least_squares() -> None:
    draw = np.random.default_rng(3)
    raw_N = draw.normal(5.0, 0.01, 60)
    labels_N = 300 * raw_N + draw.normal(0, 1.0, 60) - 70
    proxy = proxies.proxy(WIDTH)
    proxy.calibrate(torch.tensor(raw_N), torch.tensor(labels_N))
    slope, intercept = np.polyfit(raw_N, labels_N, 1)
    assert proxy.scale.item() == pytest.approx(slope, rel=1e-5)
    assert proxy.shift.item() == pytest.approx(intercept, rel=1e-5)
    left_N = labels_N - slope * raw_N - intercept
    assert proxy.error.item() == pytest.approx(np.sqrt((left_N**2).mean()), rel=1e-5)


@pytest.mark.parametrize(
    "raw",
    [[3.0, 2.0, 1.0, 0.0], [0.1] * 4, [1e8 / 3] * 4],
    ids=["turned round", "constant", "constant and large"],
)
def test_a_proxy_that_knows_nothing_predicts_the_mean(raw: list[float]) -> None:
    labels_N = torch.tensor([61.0, 62.5, 63.0, 65.5])
    proxy = proxies.proxy(WIDTH)
    proxy.calibrate(torch.tensor(raw), labels_N)
    assert proxy.scale.item() == 0.0
    assert proxy.predict(*states()).tolist() == pytest.approx([63.0] * 3)
    assert proxy.error.item() == pytest.approx(labels_N.std(correction=0).item())


# ----------------------------------------------------------------------------------------------------------- its folder


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    proxy, given = proxies.proxy(WIDTH, higher=False), states()
    proxy.train().requires_grad_(True).save_pretrained(tmp_path / "proxy", {"steps": 3})
    assert verify_manifest(tmp_path / "proxy")["steps"] == 3
    loaded = load_proxy(tmp_path / "proxy")
    assert loaded.config == proxy.config
    assert torch.equal(loaded.merit(*given), proxy.eval().merit(*given))
    assert loaded.error.item() == 0.5
    assert not loaded.training and not any(weight.requires_grad for weight in loaded.parameters())


def test_a_proxy_that_was_never_calibrated_can_be_saved(tmp_path: Path) -> None:
    proxies.proxy(WIDTH).save(tmp_path / "a")
    proxy = QualityProxy(load_proxy(tmp_path / "a").config)
    proxy.save(tmp_path / "b")
    assert load_proxy(tmp_path / "b").error.item() == float("inf")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-40])


def without_a_weight(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["scale"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


def rewritten(**changes: object) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        file = folder / "proxy.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return rewrite


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights gone": (lambda folder: (folder / "model.safetensors").unlink(), "cannot be used"),
    "weights cut": (cut, "cannot be used"),
    "a weight gone": (without_a_weight, "scale"),
    "another shape": (rewritten(hidden=9), "size mismatch"),
    "no JSON": (lambda folder: (folder / "proxy.json").write_text("{"), "cannot be used"),
    "no text": (lambda folder: (folder / "proxy.json").write_bytes(b"\xff\xfe"), "cannot be used"),
    "a key too many": (rewritten(depth=3), "depth"),
    "no proxy": (lambda folder: (folder / "proxy.json").unlink(), "holds no proxy"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_one_sentence(damage: str, tmp_path: Path) -> None:
    proxies.proxy(WIDTH).save(tmp_path / "proxy")
    change, part = DAMAGE[damage]
    change(tmp_path / "proxy")
    with pytest.raises(StorageError, match=part) as caught:
        load_proxy(tmp_path / "proxy")
    assert str(tmp_path / "proxy") in str(caught.value) and "\n" not in str(caught.value)


def test_the_folder_of_a_run_names_that_of_its_proxy(tmp_path: Path) -> None:
    proxies.proxy(WIDTH).save(tmp_path / "run" / "model")
    with pytest.raises(StorageError, match=f"did you mean {tmp_path / 'run' / 'model'}"):
        load_proxy(tmp_path / "run")


# ------------------------------------------------------------------------------------------------------ whose states


def test_states_of_another_model_are_refused() -> None:
    proxy = proxies.proxy(WIDTH, translator="a" * 64)
    proxy.require_fit("a" * 64, WIDTH, "runs/mine")
    with pytest.raises(ConfigurationError, match="width 5 and runs/other has 6"):
        proxy.require_fit("a" * 64, 6, "runs/other")
    with pytest.raises(ConfigurationError, match=r"aaaaaaaaaaaa\) than runs/other has \(bbbbbbbbbbbb\).*train proxy"):
        proxy.require_fit("b" * 64, WIDTH, "runs/other")


@pytest.mark.parametrize("change", [{"layers": 0}, {"heads": 0}, {"dropout": 1.0}, {"activation": "sine"}])
def test_impossible_shapes_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        ProxyConfig(**{"width": 4, "translator": "", "metric": "chrf", "higher_is_better": True, **change})
