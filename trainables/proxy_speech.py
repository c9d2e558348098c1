"""A proxy of a recogniser: predicts the word error rate of its greedy transcript from its encoder states (NAP).

As `proxy`, for recordings: `energymt transcribe --proxy` follows its gradient, towards fewer errors.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from energymt.data.batching import Encoded
from energymt.data.speech import SpeechDataConfig, encode_speech
from energymt.errors import ConfigurationError
from energymt.models.loading import AnyTranslator
from energymt.models.speech import SpeechTransformer
from energymt.speech_labels import RATES, label_recordings
from trainables import proxy


class Config(proxy.Config):
    """Training of a proxy that listens. Every recording counts as a window of encoder states."""

    train: SpeechDataConfig
    """Recordings to learn from, with transcripts for a rate."""
    dev: SpeechDataConfig
    """Recordings that choose the checkpoint, and that the proxy is calibrated on."""
    metric: str = "wer"
    """What it predicts of the model's greedy transcripts: wer or cer of a recording, in percent, or `column:NAME`."""
    transfer: dict[str, SpeechDataConfig] = Field(default={})
    """Further recordings by name, more noise or another domain: correlations on them stand beside those on dev."""


class ProxySpeech(proxy.ProxyTraining):
    """A proxy on the states of a frozen recogniser."""

    def lower_is_better(self) -> bool:
        """Every error rate is better when it is lower."""
        return self.config.metric in RATES or super().lower_is_better()

    def labelled(self, model: AnyTranslator, content: str, data: SpeechDataConfig) -> tuple[Encoded, Tensor]:
        """Recordings as a plan reads them, and the label of each row."""
        if not isinstance(model, SpeechTransformer):
            raise ConfigurationError(f"{self.config.translator} reads text: train its proxy by `energymt train proxy`.")
        found = label_recordings(model, content, data, self.config.metric)
        heard = replace(found.corpus, text=None)  # a recording counts whatever is said in it
        return encode_speech(heard, model.vocabulary, model.features), torch.from_numpy(found.labels_N)


TRAINABLE = ProxySpeech
