"""What every trainable needs before its first step: vocabulary, encoded text, the plan of batches, the network."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from energymt.configuration import ModelConfig, TrainingConfig
from energymt.data.batching import EncodedCorpus, StepPlan, encode_corpus
from energymt.data.corpus import Corpus, DataConfig, read_corpus
from energymt.data.vocabulary import SentencePieceVocabulary, Vocabulary, load_vocabulary, require_same
from energymt.errors import ConfigurationError
from energymt.models import TranslationModel, load_translator, make_translator
from energymt.models.adapters import adapt_translator
from energymt.models.transformer import TransformerTranslator
from energymt.storage import fetch


@dataclass(frozen=True)
class Text:
    """Training and development text, and the same as token ids."""

    vocabulary: Vocabulary
    train_corpus: Corpus
    train: EncodedCorpus
    dev_corpus: Corpus
    dev: EncodedCorpus
    plan: StepPlan


def prepare_text(config: TrainingConfig) -> Text:
    """Read and encode the data of a run.

    Raises:
        DataError: a file is missing or malformed, or no pair is left after the length limits.
    """
    train_corpus, dev_corpus = read_corpus(config.train), read_corpus(config.dev)
    vocabulary = open_vocabulary(config, train_corpus)
    train = encode_corpus(train_corpus, vocabulary, config.train.max_source_tokens, config.train.max_target_tokens)
    dev = encode_corpus(dev_corpus, vocabulary, config.dev.max_source_tokens, config.dev.max_target_tokens)
    plan = StepPlan(train, config.tokens_per_step, config.tokens_per_micro_batch, config.seed)
    return Text(vocabulary, train_corpus, train, dev_corpus, dev, plan)


def open_vocabulary(config: TrainingConfig, corpus: Corpus) -> Vocabulary:
    """The vocabulary that the configuration names, that of the model to start from, or a new one."""
    address = config.vocabulary.path or config.model.init
    if address is not None:
        return load_vocabulary(fetch(address))
    lines = itertools.chain(corpus.inputs, corpus.target or [])
    return SentencePieceVocabulary.train(
        lines,
        config.vocabulary.size,
        model_type=config.vocabulary.model_type,
        segmented=config.train.segmented,
        joiner=config.train.joiner,
    )


def open_model(config: TrainingConfig, vocabulary: Vocabulary) -> TranslationModel:
    """The network to train: a copy of `model.init`, with adapters where they are asked for, or a new one.

    Raises:
        ConfigurationError: `vocabulary.path` is not the vocabulary of `model.init`, a size is impossible, or the
            network cannot have the adapters.
    """
    if config.model.init is not None:
        model = load_translator(fetch(config.model.init))
        require_same(vocabulary, model.vocabulary, f"vocabulary.path {config.vocabulary.path}", config.model.init)
        _adapt(model, config.model)
        return model
    for name in _adaptations(config.model):
        raise ConfigurationError(
            f"{name} trains little beside the frozen weights of a model that has learnt something: name it by "
            f"model.init, or drop {name}."
        )
    return make_translator(config.model.variant, vocabulary, **config.model.changes)


def _adaptations(config: ModelConfig) -> list[str]:
    """What is to be trained instead of all weights."""
    return [f"model.{name}" for name in ("lora", "prompt") if getattr(config, name) is not None]


def _adapt(model: TranslationModel, config: ModelConfig) -> None:
    wanted = _adaptations(config)
    if not wanted:
        return
    if type(model) is not TransformerTranslator:
        raise ConfigurationError(
            f"{wanted[0]} is for Hugging Face encoder-decoders, and {config.init} is a {model.architecture} "
            f"translator: drop {wanted[0]}."
        )
    if len(wanted) > 1:
        raise ConfigurationError("model.lora and model.prompt are two ways to train little: drop one of them.")
    if config.lora is not None:
        adapt_translator(model.network, config.lora)
    if config.prompt is not None:
        model.learn_prompt(config.prompt.tokens)


def require_room(
    encoded: EncodedCorpus,
    config: TrainingConfig,
    part: Literal["train", "dev", "unlabelled"],
    network: TranslationModel,
    name: str | None = None,
) -> None:
    """Refuse text that is longer than a network can take: it would fail at that sentence, hours later.

    Args:
        encoded: the text.
        config: of the run.
        part: where the configuration limits this text.
        network: what reads and says it.
        name: what to call the network; None is the one that is trained.
    """
    if network.longest is None:
        return
    limits: DataConfig = getattr(config, part)
    grow = ", or raise model.changes.longest" if name is None and config.model.init is None else ""
    # The limits count the end token on both sides, `longest` that of the source alone.
    for side, limit, found, room in (
        ("source", limits.max_source_tokens, max(map(len, encoded.source_ids)), network.longest),
        ("target", limits.max_target_tokens, max(map(len, encoded.target_ids)) + 1, network.longest + 1),
    ):
        if found > room:
            raise ConfigurationError(
                f"{part}.max_{side}_tokens is {limit} and {encoded.origin} has a {side} of {found} tokens (end token "
                f"counted), but {name or 'the model'} takes {room}: lower {part}.max_{side}_tokens to {room}{grow}."
            )
