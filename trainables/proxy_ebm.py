"""QE-EBM with a proxy as energy: the encoder learns states that a proxy expects good outputs of.

    loss = w_S · CE(x_l, y_l)  +  w_U · mean over x_u of E(x_u),      E(x) = −merit(encoder(x)) / error

merit is what the proxy of the start model predicts (`energymt.models.proxy`), error its held-out error. Nothing is
decoded and no estimator is asked in a step: an unlabelled source costs one pass of the encoder. What NAP does to the
states of one sentence while it is decoded, this does to the encoder once for all.

The proxy knows the states of the start model. The further the encoder moves, the less it knows; the estimator
(`quality`) and the `judge` on dev, which do not read states, say when.
"""

from __future__ import annotations

from collections.abc import Iterator

from energymt.decoding.inference import without_dropout
from energymt.errors import ConfigurationError
from energymt.folders import weights_fingerprint
from energymt.models.proxy import load_proxy
from energymt.perturbation import states_width
from energymt.records import Batch, Mixture, Step, StepBatch, Term
from energymt.semisupervised import SemiSupervised, SemiSupervisedConfig
from energymt.storage import fetch


class Config(SemiSupervisedConfig):
    """A proxy instead of an estimator in the training step; nothing is drawn: `samples` and `longest_sample` only bound
    the sources of a micro-batch."""

    proxy: str
    """Address of the proxy of the model to start from (`model.init`)."""


class ProxyEbm(SemiSupervised):
    """Energy of encoder states."""

    def __init__(self, config: Config) -> None:
        if config.model.init is None:
            raise ConfigurationError("A proxy knows the states of one model: name it by model.init.")
        if config.balance.kind == "gradnorm":
            raise ConfigurationError(
                "balance.kind is gradnorm, which follows how much of a loss is left, and a proxy's energy has no "
                "lowest value: use ratio, projection or constant."
            )
        proxy = load_proxy(fetch(config.proxy))
        if not float(proxy.scale) > 0:
            raise ConfigurationError(
                f"The proxy {config.proxy} knows nothing of its metric (its correlation on held-out data was not "
                f"above 0), and its gradient points nowhere: train it longer, or on more sentences."
            )
        super().__init__(config)
        weights = weights_fingerprint(fetch(config.model.init))
        proxy.require_fit(weights, states_width(self.model), config.model.init)
        self.proxy = proxy.to(self.device)

    def steps(self, batch: StepBatch) -> Iterator[Mixture]:
        """One optimizer step a batch."""
        yield self.mixture(batch, Step((self.TERM,), batch.unlabelled, self.losses, self.counts))

    def counts(self, batch: Batch) -> dict[str, float]:
        """Sources."""
        return {self.TERM: float(len(batch))}

    def losses(self, batch: Batch) -> list[Term]:
        """The energy of a micro-batch, in held-out errors of the proxy."""
        with without_dropout(self.model):
            memory = self.model.encode(batch.source)
        merit_B = self.proxy.merit(memory.states_BSD, memory.mask_BS)
        return [Term(self.TERM, -merit_B.sum() / self.proxy.error, float(len(batch)))]


TRAINABLE = ProxyEbm
