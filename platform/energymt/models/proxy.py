"""A quality proxy: predicts a metric of a frozen model's own output from its encoder states alone (NAP).

Non-Autoregressive Proxies (arXiv 2305.05098) read the encoder's states before anything is decoded: attention pooling
and a small multi-layer perceptron. Their gradient in the states says where each state should move so that a better
output may come out (arXiv 2405.01601); `energymt.decoding.perturbed` follows it.

    w_sh = softmax_s(q_h · e_s) over real states      v = [Σ_s w_sh e_s for every head h]      raw = MLP(v)

A correlation as a loss leaves scale and shift of `raw` open; `calibrate` fixes them on held-out data, so that `predict`
is in units of the metric, and notes how far off it is.

Axes of this room: B sentences, S states, D their width, H pooling heads, N held-out sentences.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Literal

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from safetensors import SafetensorError
from torch import Tensor, nn

from energymt.errors import ConfigurationError, StorageError
from energymt.models.gains import Gain, read_gains
from energymt.models.network import Network
from energymt.models.translator import WEIGHTS_FILE

PROXY_FILE = "proxy.json"
ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU, "tanh": nn.Tanh}


class ProxySizes(BaseModel):
    """Shape of a proxy."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    heads: PositiveInt = 4
    """Poolings side by side, each with a query of its own."""
    hidden: PositiveInt = 256
    """Width of the layers between the pooled vector and the score."""
    layers: PositiveInt = 3
    """Linear layers behind the pooling, the last one to the score (NAP: 3)."""
    activation: Literal["gelu", "relu", "silu", "tanh"] = "gelu"
    """Between the layers. A smooth one has a gradient everywhere."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of the pooled vector and between the layers, in training."""


class ProxyConfig(ProxySizes):
    """A proxy: its shape, the model that it belongs to, and what it predicts."""

    width: PositiveInt
    """Of the encoder states."""
    translator: str
    """sha256 of the weights whose states it reads: the states of any other model mean something else."""
    metric: str
    """What it predicts of the model's own greedy output."""
    higher_is_better: bool
    """Which way is up. The sign of a step along its gradient follows from it, here alone (`QualityProxy.merit`)."""


class QualityProxy(Network):
    """Attention pooling over encoder states and a multi-layer perceptron: states in, a metric out.

    Attributes:
        gains: what steps along its gradient have come to on held-out text, where that was tried.
    """

    architecture = "proxy"
    FILE = PROXY_FILE

    scale: Tensor
    shift: Tensor
    error: Tensor

    def __init__(self, config: ProxyConfig) -> None:
        super().__init__()
        self.config, self.gains = config, dict[tuple[str, int, float], Gain]()
        self.queries = nn.Linear(config.width, config.heads, bias=False)
        nn.init.normal_(self.queries.weight, std=config.width**-0.5)
        widths = [config.heads * config.width, *[config.hidden] * (config.layers - 1), 1]
        parts: list[nn.Module] = []
        for below, above in pairwise(widths):
            parts += [nn.Dropout(config.dropout), nn.Linear(below, above), ACTIVATIONS[config.activation]()]
        self.scorer = nn.Sequential(*parts[:-1])
        for name, value in (("scale", 1.0), ("shift", 0.0), ("error", float("inf"))):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, states_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """The raw score of each sentence, [B]: better, or worse, by the metric's direction; in no unit.

        It is computed in the precision of the weights, whatever that of the states.
        """
        padding_BS1 = ~mask_BS.unsqueeze(-1)
        states_BSD = states_BSD.to(self.queries.weight.dtype)
        states_BSD = states_BSD.masked_fill(padding_BS1, 0.0)  # which may hold anything, and 0 · NaN is NaN
        weights_BSH = self.queries(states_BSD).masked_fill(padding_BS1, float("-inf")).softmax(1)
        pooled_BHD = weights_BSH.transpose(1, 2) @ states_BSD
        raw_B: Tensor = self.scorer(pooled_BHD.flatten(1)).squeeze(-1)
        return raw_B

    def predict(self, states_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """The expected metric of each sentence's output, [B], in the metric's own unit and direction."""
        return self.scale * self(states_BSD, mask_BS) + self.shift

    def merit(self, states_BSD: Tensor, mask_BS: Tensor) -> Tensor:
        """The same with more being better, whatever the metric: a WER is negated; [B]."""
        predicted_B = self.predict(states_BSD, mask_BS)
        return predicted_B if self.config.higher_is_better else -predicted_B

    @torch.no_grad()
    def calibrate(self, raw_N: Tensor, labels_N: Tensor) -> None:
        """Fit scale and shift by least squares on held-out labels; `error` is what is left, root mean square.

        A scale below 0 would turn the gradient round; a proxy that knows nothing gets 0, and predicts the mean.
        """
        raw_N, labels_N = raw_N.double(), labels_N.double()
        centred_N, wanted_N = raw_N - raw_N.mean(), labels_N - labels_N.mean()
        constant = bool(raw_N.min() == raw_N.max())  # whose mean may differ from it by a rounding
        scale = 0.0 if constant else max(0.0, float(centred_N @ wanted_N) / float(centred_N @ centred_N))
        left_N = wanted_N - scale * centred_N
        self.scale.fill_(scale)
        self.shift.fill_(float(labels_N.mean()) - scale * float(raw_N.mean()))
        self.error.fill_(float(left_N.square().mean().sqrt()))

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        safetensors.torch.save_file(state, folder / WEIGHTS_FILE)
        (folder / PROXY_FILE).write_text(self.config.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def require_fit(self, translator: str, width: int, what: str) -> None:
        """Refuse the states of another model than the one that it was trained on.

        Args:
            translator: fingerprint of the model's weights.
            width: of its encoder states.
            what: how to call the model.

        Raises:
            ConfigurationError: another width, or other weights.
        """
        if width != self.config.width:
            raise ConfigurationError(
                f"The proxy reads encoder states of width {self.config.width} and {what} has {width}: it belongs to "
                f"another model; train one for this model (`energymt train proxy --set translator={what}`)."
            )
        if translator != self.config.translator:
            raise ConfigurationError(
                f"The proxy was trained on the states of a model with other weights (sha256 "
                f"{self.config.translator[:12]}) than {what} has ({translator[:12]}): train one for this model "
                f"(`energymt train proxy --set translator={what}`)."
            )


def load_proxy(folder: Path | str) -> QualityProxy:
    """The proxy that `save` wrote into a folder: in eval mode, every weight frozen.

    Raises:
        StorageError: the folder holds no proxy, or a damaged one.
    """
    folder = Path(folder)
    file = folder / PROXY_FILE
    if not file.is_file():
        hint = "name a model that `energymt train proxy` wrote."
        if (folder / "model" / PROXY_FILE).is_file():
            hint = f"did you mean {folder / 'model'}?"
        raise StorageError(f"{folder} holds no proxy ({PROXY_FILE} is missing); {hint}")
    try:
        proxy = QualityProxy(ProxyConfig.model_validate(json.loads(file.read_text(encoding="utf-8"))))
        proxy.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS_FILE), strict=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:  # no JSON, missing, cut, other shapes
        reason = " ".join(str(error).split()).rstrip(".")
        raise StorageError(f"The proxy in {folder} cannot be used ({reason}); copy the whole folder again.") from None
    proxy.gains = read_gains(folder)
    return proxy.eval().requires_grad_(False)
