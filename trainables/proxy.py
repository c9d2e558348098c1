"""A quality proxy: predicts a metric of a frozen model's own greedy output from its encoder states (NAP).

    loss = −Pearson(raw, label) over all sentences of a step        (or a smooth Spearman, or the squared error)

The labels are computed once and kept (`energymt.labels`). The proxy's gradient in the states is what
`energymt translate --proxy` follows (arXiv 2405.01601).

A correlation is no sum over sentences. Its derivatives by all raw scores of a step are; they are computed once, from
the scores of all workers, and each micro-batch goes backward through its own share.

The best checkpoint is that of the highest Pearson correlation on dev.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field, PositiveFloat
from torch import Tensor

from energymt.configuration import ModelConfig, TrainingConfig, VocabularyConfig
from energymt.correlation_losses import CorrelationLoss, loss_gradient
from energymt.data.batching import Encoded, StepPlan, encode_corpus
from energymt.data.corpus import DataConfig
from energymt.data.selection import folder_fingerprint
from energymt.devices import choose_device
from energymt.errors import ConfigurationError
from energymt.folders import weights_fingerprint
from energymt.labels import COLUMN, label_text
from energymt.metrics.estimation import correlations
from energymt.models import Memory, load_translator
from energymt.models.loading import AnyTranslator
from energymt.models.proxy import ProxyConfig, ProxySizes, QualityProxy
from energymt.models.speech import SpeechTransformer
from energymt.optimisation import seed_dropout
from energymt.records import Batch, Step, StepBatch, Term
from energymt.storage import fetch

TOKENS_AT_ONCE = 8192
TERM = "loss"


class Config(TrainingConfig):
    """Training of a proxy. A step and a micro-batch are cut by source tokens: there are no targets."""

    translator: str
    """Address of the frozen model whose encoder states the proxy reads."""
    metric: str = "chrf"
    """What it predicts of the model's greedy outputs: chrf or bleu of a sentence, the address of an estimator or
    another metric of the COMET family, `pool:NAME`, or `column:NAME`, numbers beside the text (NAP: COMET, WER)."""
    lower_is_better: bool = False
    """Of the numbers in a column: whether fewer is better (an error rate)."""
    loss: CorrelationLoss = "pearson"
    """`pearson` (NAP), `spearman` (smooth ranks; Fathullah et al. 2023), or `mse`, in variances of the labels."""
    temperature: PositiveFloat = 0.1
    """Of the smooth ranks, in standard deviations of the raw scores."""
    proxy: ProxySizes = ProxySizes()
    """Shape of the proxy."""
    transfer: dict[str, DataConfig] = Field(default={})
    """Further text by name, another direction or domain: correlations on it are reported beside those on dev."""


class ProxyTraining:
    """A proxy on frozen encoder states."""

    METRIC = "dev/pearson"
    HIGHER_IS_BETTER = True

    def __init__(self, config: Config) -> None:
        if config.model != ModelConfig() or config.vocabulary != VocabularyConfig():
            raise ConfigurationError(
                "A proxy has no model and no vocabulary to choose: drop `model` and `vocabulary`; name the frozen "
                "model by translator=ADDRESS, and the proxy's shape by proxy.hidden, proxy.layers, proxy.heads, "
                "proxy.activation."
            )
        taken = {"train", "dev"} & set(config.transfer)
        if taken:
            raise ConfigurationError(f"The name {min(taken)!r} in transfer is taken: give this text another one.")
        if config.lower_is_better and not config.metric.startswith(COLUMN):
            raise ConfigurationError(f"The direction of {config.metric} is known: drop lower_is_better.")
        self.config = config
        self.device = choose_device(config.device)
        folder = fetch(config.translator)
        self.translator = load_translator(folder).to(self.device).requires_grad_(False)
        weights, content = weights_fingerprint(folder), folder_fingerprint(folder)
        read = {"train": config.train, "dev": config.dev, **config.transfer}
        found = {name: self.labelled(self.translator, content, data) for name, data in read.items()}
        encoded, self.labels_N = found.pop("train")
        self.plan = StepPlan(encoded, config.tokens_per_step, config.tokens_per_micro_batch, config.seed)
        self.variance = float(self.labels_N.var())
        self.held_out = found
        width = self.states(encoded.batch([0])).states_BSD.shape[-1]
        shape = ProxyConfig(
            **config.proxy.model_dump(),
            width=width,
            translator=weights,
            metric=config.metric,
            higher_is_better=not self.lower_is_better(),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # a worker that found all labels has drawn less than one that made them
            self.model = QualityProxy(shape)
        bias_1 = self.model.scorer[-1].bias
        if config.loss == "mse":
            torch.nn.init.constant_(bias_1, float(self.labels_N.mean()))
        else:  # no correlation feels it: its gradient is a rounding, of which Adam would make a whole step
            bias_1.requires_grad_(False)
        self.raw: dict[int, Tensor] = {}  # of the micro-batches of this step, by their first sentence
        self.slopes: dict[int, Tensor] = {}
        self.value = 0.0

    def lower_is_better(self) -> bool:
        """Of the metric."""
        return self.config.lower_is_better

    def labelled(self, model: AnyTranslator, content: str, data: Any) -> tuple[Encoded, Tensor]:
        """Sources as a plan reads them, and the label of each row.

        Args:
            model: the frozen one.
            content: the fingerprint of its folder.
            data: where the sources stand.
        """
        if isinstance(model, SpeechTransformer):
            raise ConfigurationError(
                f"{self.config.translator} hears recordings: train its proxy by `energymt train proxy_speech`."
            )
        found = label_text(model, content, data, self.config.metric, self.device)
        limits = (data.max_source_tokens, data.max_target_tokens)
        sources = encode_corpus(replace(found.corpus, target=None), model.vocabulary, *limits)
        return sources, torch.from_numpy(found.labels_N)

    @torch.no_grad()
    def states(self, batch: Batch) -> Memory:
        """What the frozen encoder says of a batch."""
        return self.translator.encode(batch.source.to(self.device))

    def steps(self, batch: StepBatch) -> Iterator[Step]:
        """One optimizer step a batch."""
        raw, labels = [], []
        for number, micro in enumerate(batch.micro_batches):
            memory = self.states(micro)
            seed_dropout(self.config.seed, batch.step, batch.rank + number * batch.world)
            raw.append(self.model(memory.states_BSD, memory.mask_BS))
            labels.append(self.labels_N[micro.sentence_ids_B].to(raw[-1].device))
        self.value, slopes = loss_gradient(
            self.config.loss, raw, labels, scale=self.variance, temperature=self.config.temperature
        )
        firsts = [int(micro.sentence_ids_B[0]) for micro in batch.micro_batches]
        self.raw = dict(zip(firsts, raw, strict=True))
        self.slopes = dict(zip(firsts, slopes, strict=True))
        yield Step((TERM,), batch.micro_batches, self.losses, self.counts)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Sentences."""
        return {TERM: float(len(batch))}

    def losses(self, batch: Batch) -> list[Term]:
        """A share of the step's loss whose gradient is this micro-batch's."""
        first = int(batch.sentence_ids_B[0])
        raw_B, slope_B = self.raw.pop(first), self.slopes.pop(first)
        share = (slope_B * (raw_B - raw_B.detach())).sum() + self.value * len(batch)
        return [Term(TERM, share, float(len(batch)))]

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Correlations on dev, where the proxy is also brought to the metric's unit, and on the text of `transfer`."""
        values: dict[str, float] = {}
        for name, (encoded, labels_N) in self.held_out.items():
            raw_N, chosen_N = self._read(encoded), labels_N[torch.from_numpy(encoded.rows)]
            found = correlations(raw_N.numpy(), chosen_N.numpy())
            if name == "dev":
                self.model.calibrate(raw_N, chosen_N)
                values["dev/error"] = float(self.model.error)
            suffix = "" if name == "dev" else f"_{name}"
            values |= {f"dev/{kind}{suffix}": found[kind] for kind in ("pearson", "spearman")}
        return values

    def _read(self, encoded: Encoded) -> Tensor:
        """The raw score of every sentence, in the order of `encoded`; [N] in float64."""
        self.model.eval()
        plan = StepPlan(encoded, TOKENS_AT_ONCE, TOKENS_AT_ONCE, seed=0)
        raw_N = torch.zeros(len(encoded), dtype=torch.float64)
        for step in plan.epoch(0):
            for chosen in step:
                memory = self.states(encoded.batch(chosen))
                raw_N[chosen] = self.model(memory.states_BSD, memory.mask_BS).double().cpu()
        return raw_N


TRAINABLE = ProxyTraining
