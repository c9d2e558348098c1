"""Supervised training of a speech recogniser: from log-mel features to the words of the transcript.

    loss = Σ_t −log p(y_t | y_<t, x)   with label smoothing, the end token counted

x is the sound in one window, y its transcript (Whisper, Radford et al. 2022, arXiv:2212.04356). The best checkpoint is
that of the lowest dev word error rate of greedy transcripts.
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from energymt.configuration import ModelConfig, TrainingConfig
from energymt.data.batching import StepPlan
from energymt.data.speech import SpeechCorpus, SpeechDataConfig, encode_speech, read_speech
from energymt.data.vocabulary import SentencePieceVocabulary, Vocabulary, load_vocabulary
from energymt.decoding.transcribe import Transcriber
from energymt.decoding.translate import DecodingOptions
from energymt.errors import ConfigurationError
from energymt.metrics.speech import character_errors, error_report, word_errors
from energymt.models.speech import SpeechTransformer
from energymt.preparation import open_model
from energymt.records import Batch, Step, StepBatch, Term
from energymt.storage import fetch
from energymt.teacher_forcing import negative_log_likelihood


class RecogniserConfig(ModelConfig):
    """Which recogniser is trained, and from which weights."""

    variant: str = "whisper-laptop"
    """A named size: whisper-toy, -laptop (windows of 4 seconds), -tiny (Whisper's own)."""
    init: str | None = None
    """Address of a model folder to start from (`energymt models import` makes one of a Whisper checkpoint). It
    overrides `variant`."""


class Config(TrainingConfig):
    """Training of a speech recogniser."""

    train: SpeechDataConfig
    """Recordings and transcripts to learn from; those that do not fit the model are left out and counted."""
    dev: SpeechDataConfig
    """Recordings and transcripts that choose the checkpoint."""
    model: RecogniserConfig = RecogniserConfig()
    """The recogniser that is trained."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Probability mass spread over all tokens."""


class Recognition:
    """Maximum likelihood of transcripts with label smoothing. A recording counts as many tokens as its window has
    encoder states in `tokens_per_micro_batch`, and those of its transcript in `tokens_per_step`.
    """

    METRIC = "dev/wer"
    HIGHER_IS_BETTER = False

    def __init__(self, config: Config) -> None:
        self.config = config
        train, dev = read_speech(config.train), read_speech(config.dev)
        model = open_model(config, open_transcripts(config, train))
        if not isinstance(model, SpeechTransformer):
            raise ConfigurationError(
                f"speech trains recognisers and {config.model.init or config.model.variant} reads text: "
                f"take a whisper- variant, or train it by `energymt train supervised`."
            )
        self.model = model
        self.train = encode_speech(train, model.vocabulary, model.features, model.longest)
        self.dev = encode_speech(dev, model.vocabulary, model.features, model.longest)
        assert dev.text is not None
        self.references = [dev.text[row] for row in self.dev.rows]
        self.plan = StepPlan(self.train, config.tokens_per_step, config.tokens_per_micro_batch, config.seed)

    def steps(self, batch: StepBatch) -> Iterator[Step]:
        """One optimizer step a batch."""
        yield Step(("nll",), batch.micro_batches, self.losses, self.counts)

    def counts(self, batch: Batch) -> dict[str, float]:
        """Tokens of the transcripts, end tokens counted."""
        return {"nll": float(batch.target_mask_BT.sum() + len(batch))}

    def losses(self, batch: Batch) -> list[Term]:
        """The label-smoothed cross-entropy of a micro-batch."""
        nll = negative_log_likelihood(self.model, batch, self.config.label_smoothing)
        return [Term("nll", nll, self.counts(batch)["nll"])]

    def evaluate(self) -> dict[str, float]:
        """Dev WER and its kinds of errors, and CER, of greedy transcripts, in percent."""
        transcriber = Transcriber(self.model, DecodingOptions(beam=1))
        found = [candidates[0][0] for candidates in transcriber.stream(self.dev.clips)]
        words, characters = word_errors(found, self.references), character_errors(found, self.references)
        report = error_report(words, characters).to_dict()
        return {f"dev/{name}": report[name] for name in ("wer", "cer", "substitutions", "insertions", "deletions")}


def open_transcripts(config: Config, train: SpeechCorpus) -> Vocabulary:
    """The vocabulary that the configuration names, that of the model to start from, or a new one of the transcripts."""
    address = config.vocabulary.path or config.model.init
    if address is not None:
        return load_vocabulary(fetch(address))
    assert train.text is not None
    return SentencePieceVocabulary.train(train.text, config.vocabulary.size, model_type=config.vocabulary.model_type)


TRAINABLE = Recognition
