"""Small runs on the toy language: text in files, models in folders, configurations, and a quiet loop."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from energymt.configuration import validate
from energymt.data.hub_pieces import hub_vocabulary
from energymt.data.toy import ToyLanguage
from energymt.data.vocabulary import SentencePieceVocabulary, Vocabulary
from energymt.models import make_translator
from energymt.models.estimator_folder import write_estimator
from energymt.models.estimator_variants import make_estimator
from energymt.optimisation import learning_rate, make_optimizer, optimise
from energymt.training import Result, Stop, fit
from tests import tiny
from trainables import distilled, engine, masked, ppo, proxy, proxy_ebm, qe_ebm, reinforce, supervised

TRAINABLES = {
    **{"supervised": supervised, "masked": masked, "engine": engine, "distilled": distilled},
    **{"qe_ebm": qe_ebm, "reinforce": reinforce, "ppo": ppo, "proxy": proxy, "proxy_ebm": proxy_ebm},
}
METHODS = ("supervised", "masked", "engine")  # `distilled` trains as `masked` does
SCORED = ("qe_ebm", "reinforce", "ppo")  # trained by a quality estimator, in a `scored_world`
SEMISUPERVISED = (*SCORED, "proxy_ebm")  # beside them a proxy, in `folder/proxy` (`tests.proxies.of_the_start`)
SMALL = {
    "recurrent-toy": {"embedding": 8, "encoder": 6, "decoder": 10, "layers": 1},
    "transformer-toy": {"width": 8, "feedforward": 12, "encoder_layers": 1, "decoder_layers": 1, "heads": 2},
    "masked-toy": {"width": 8, "feedforward": 12, "encoder_layers": 1, "decoder_layers": 1, "heads": 2},
    "tagger-toy": {"embedding": 8, "hidden": 6, "layers": 1},
}


def write_corpora(folder: Path, train: int = 40, dev: int = 6) -> None:
    """`train.tsv` and `dev.tsv` with the columns `source` and `target`."""
    corpora = ToyLanguage(1).corpora(train=train, dev=dev, test=0, seed=2)
    for name in ("train", "dev"):
        corpus = corpora[name]
        lines = [f"{source}\t{target}\n" for source, target in zip(corpus.source, corpus.target, strict=True)]
        (folder / f"{name}.tsv").write_text("source\ttarget\n" + "".join(lines), encoding="utf-8")


def vocabulary(folder: Path, size: int = 200, model_type: str = "word") -> SentencePieceVocabulary:
    """Whole words of the training text, or pieces."""
    lines = (folder / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return SentencePieceVocabulary.train(
        (part for line in lines for part in line.split("\t")), size, model_type=model_type
    )


def save_model(folder: Path, variant: str, words: Vocabulary, seed: int = 3) -> Path:
    """A small model with random weights, in `folder/<variant>`."""
    torch.manual_seed(seed)
    model = make_translator(variant, words, **SMALL[variant])
    if variant.startswith(("recurrent", "tagger")):  # whose first weights are so small that inputs hardly count
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(2.0)
    model.save(folder / variant)
    return folder / variant


def world(folder: Path, train: int = 40, dev: int = 6) -> Path:
    """Text, and a teacher and a student over one vocabulary: all that a run needs."""
    folder.mkdir(parents=True, exist_ok=True)
    write_corpora(folder, train, dev)
    words = vocabulary(folder)
    for variant in ("recurrent-toy", "transformer-toy", "masked-toy", "tagger-toy"):
        save_model(folder, variant, words)
    return folder


def save_estimator(folder: Path, words: SentencePieceVocabulary, seed: int = 4) -> Path:
    """A small quality estimator over the same pieces, whose random weights are not small."""
    torch.manual_seed(seed)
    sizes = {"width": 8, "feedforward": 12, "layers": 1, "heads": 2}
    estimator = make_estimator("estimator-toy", hub_vocabulary(words), "unified_metric", **sizes)
    tiny.shake(estimator, 1.0, seed)
    folder.mkdir(parents=True, exist_ok=True)
    write_estimator(folder, estimator.config, estimator.encoder.config, estimator.state_dict(), estimator.vocabulary)
    return folder


def scored_world(folder: Path, train: int = 40, dev: int = 6) -> Path:
    """Text, translators over pieces of it, an estimator that trains them and a judge."""
    folder.mkdir(parents=True, exist_ok=True)
    write_corpora(folder, train, dev)
    words = vocabulary(folder, 48, "unigram")
    for variant in ("recurrent-toy", "transformer-toy", "masked-toy"):
        save_model(folder, variant, words)
    for seed, name in ((4, "estimator"), (5, "judge")):
        save_estimator(folder / name, words, seed)
    return folder


def config(name: str, folder: Path, **changes: Any) -> Any:
    """The configuration of a small run on the text in `folder`."""
    column = {"source": "source", "target": "target"}
    values: dict[str, Any] = {
        "train": {"path": str(folder / "train.tsv"), **column},
        "dev": {"path": str(folder / "dev.tsv"), **column},
        "model": {"init": str(folder / ("recurrent-toy" if name == "supervised" else "masked-toy"))},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 2},
        "steps": 6,
        "tokens_per_step": 64,
        "tokens_per_micro_batch": 32,
        "evaluate_every": 3,
        "checkpoint_every": 2,
        "log_every": 1,
        "precision": "fp32",
        "device": "cpu",
    }
    if name in ("engine", "distilled"):
        values["teacher"] = str(folder / "recurrent-toy")
    if name == "engine":
        values["target_lengths"] = "reference"
    if name == "proxy":
        values |= {"model": {}, "translator": str(folder / "transformer-toy"), "proxy": {"hidden": 8, "heads": 2}}
    if name == "proxy_ebm":
        values["proxy"] = str(folder / "proxy")
    if name in SEMISUPERVISED:
        values |= {"model": {"init": str(folder / "transformer-toy")}, "quality": str(folder / "estimator")}
        values |= {"samples": 2, "longest_sample": 6, "unlabelled_tokens_per_step": 48}
    return validate(TRAINABLES[name].Config, {**values, **changes}, "a test")


def make(name: str, settings: Any, double: bool = False) -> Any:
    """The trainable, initial weights a function of the seed; in double precision for comparisons that must be exact."""
    torch.manual_seed(settings.seed)
    trainable = TRAINABLES[name].TRAINABLE(settings)
    if double:
        trainable.model.double()
        if name in SEMISUPERVISED:
            trainable.start.double()
            trainable.quality.estimator.double()
            trainable.energy.table_VD = trainable.energy.table_VD.double()
        with contextlib.suppress(AttributeError):
            trainable.energy.teacher.double()
        with contextlib.suppress(AttributeError):
            trainable.translator.double()
        with contextlib.suppress(AttributeError):
            trainable.proxy.double()
    return trainable


def ready(name: str, folder: Path, **changes: Any) -> Any:
    """A trainable of `config`, without dropout."""
    trainable = make(name, config(name, folder, **changes))
    trainable.model.eval()
    return trainable


def fabric() -> Fabric:
    """One process on the CPU."""
    return Fabric(accelerator="cpu", devices=1, precision="32-true")


def train(trainable: Any, batches: Any, on: Fabric | None = None) -> list[dict[str, float]]:
    """The optimizer steps of these batches and nothing else; what each of them reports."""
    on, settings = on or fabric(), trainable.config
    trainable.model.train()
    optimizer = make_optimizer(trainable.model, settings.optimizer)
    reports = []
    for batch in batches:
        rate = learning_rate(settings.optimizer, batch.step, settings.steps)
        for step in trainable.steps(batch):
            reports.append(optimise(step, trainable.model, optimizer, on, settings, batch.step, rate))
    return reports


def fitted(trainable: Any, out: Path, stop_at: int | None = None) -> tuple[Result, list[tuple[int, dict[str, float]]]]:
    """One call of `fit`, asked to stop behind a step or not: its result and what was reported, but for times."""
    stop, reports = Stop(), []

    def report(step: int, values: dict[str, float]) -> None:
        kept = {name: value for name, value in values.items() if not name.startswith("time/") and name[-2:] != "_s"}
        reports.append((step, kept))
        stop.requested = step == stop_at

    return fit(trainable, fabric(), out, report, stop), reports


def weights(trainable: Any) -> dict[str, torch.Tensor]:
    """A copy of the model's weights."""
    return {name: tensor.detach().clone() for name, tensor in trainable.model.state_dict().items()}
