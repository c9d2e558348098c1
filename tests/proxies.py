"""Small proxies: with random weights that are not small, and in training on an easy label or on recordings."""

from pathlib import Path
from typing import Any

import torch

from energymt.configuration import validate
from energymt.data.corpus import DataConfig, read_corpus
from energymt.folders import weights_fingerprint
from energymt.models.proxy import ProxyConfig, QualityProxy
from tests import tiny, toy
from trainables import proxy_speech
from trainables.proxy import ProxyTraining

LOSSES = ("pearson", "spearman", "mse")
COLUMN = {"source": "source", "target": None}


def proxy(
    width: int,
    *,
    seed: int = 0,
    translator: str = "0" * 64,
    metric: str = "chrf",
    higher: bool = True,
    **changes: Any,
) -> QualityProxy:
    """In eval mode and calibrated: a unit, an offset and an error that are none of 0 and 1."""
    sizes = {"heads": 2, "hidden": 8, "layers": 3, "dropout": 0.3, "activation": "tanh", **changes}
    config = ProxyConfig(width=width, translator=translator, metric=metric, higher_is_better=higher, **sizes)
    torch.manual_seed(seed)
    model = QualityProxy(config)
    tiny.shake(model, 0.3, seed)
    for name, value in (("scale", 2.0), ("shift", 30.0), ("error", 0.5)):
        getattr(model, name).fill_(value)
    return model.eval().requires_grad_(False)


def of_the_start(folder: Path, model: str = "transformer-toy", higher: bool = True) -> Path:
    """The proxy of a model of the toy world, in `folder/proxy`."""
    found = proxy(8, translator=weights_fingerprint(folder / model), higher=higher)
    found.save_pretrained(folder / "proxy")
    return folder / "proxy"


def easy(source: str) -> float:
    """From 60 to 70: the share of the words that are of the first half of the alphabet."""
    words = source.split()
    return 60 + 10 * sum(word[0] < "m" for word in words) / len(words)


def world(folder: Path) -> Path:
    """The toy language, models and estimators; in `train-easy.tsv` and `dev-easy.tsv` a label beside each source."""
    folder = toy.scored_world(folder, train=300, dev=60)
    for name in ("train", "dev"):
        sources = read_corpus(DataConfig(path=str(folder / f"{name}.tsv"), source="source", target="target")).source
        rows = [f"{source}\t{easy(source):.6f}" for source in sources]
        (folder / f"{name}-easy.tsv").write_text("source\teasy\n" + "\n".join(rows) + "\n", "utf-8")
    return folder


def make(folder: Path, double: bool = False, **changes: Any) -> ProxyTraining:
    """The training of a proxy of the easy label."""
    data = {name: {"path": str(folder / f"{name}-easy.tsv"), **COLUMN} for name in ("train", "dev")}
    settings = toy.config("proxy", folder, **{**data, "metric": "column:easy", **changes})
    trainable: ProxyTraining = toy.make("proxy", settings, double)
    return trainable


def listening(folder: Path, **changes: Any) -> ProxyTraining:
    """The training of a proxy of the recogniser in a `sounds.world`, by WER."""
    values: dict[str, Any] = {
        **{name: {"path": str(folder / f"{name}.npz"), "text": "text"} for name in ("train", "dev")},
        **{"translator": str(folder / "model"), "proxy": {"hidden": 8, "heads": 2}},
        **{"optimizer": {"learning_rate": 0.01, "warmup_steps": 2}, "steps": 6, "evaluate_every": 3},
        **{"tokens_per_step": 400, "tokens_per_micro_batch": 200, "checkpoint_every": 2, "log_every": 1},
        **{"precision": "fp32", "device": "cpu"},
    }
    settings = validate(proxy_speech.Config, {**values, **changes}, "a test")
    torch.manual_seed(settings.seed)
    return proxy_speech.TRAINABLE(settings)
