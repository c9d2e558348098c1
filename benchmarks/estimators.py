"""Quality estimators with random weights, as large as a benchmark needs them: the shape of COMET-KIWI on an XLM-R."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import XLMRobertaConfig, XLMRobertaModel

from energymt.data.hub import HubVocabulary
from energymt.models.estimator import QualityEstimator
from energymt.models.estimator_config import EstimatorConfig
from energymt.models.estimator_folder import write_estimator

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # in XLM-R's order; `<mask>` comes last
KIWI = EstimatorConfig(
    metric="unified_metric",
    parts=("mt", "src"),
    layer="mix",
    transformation="softmax",
    layer_norm=False,
    pool="cls",
    hidden_sizes=(3072, 1024),
    activation="tanh",
    final_activation=None,
    dropout=0.1,
)


class Shape(NamedTuple):
    """Of an XLM-R."""

    vocabulary: int
    width: int
    layers: int


def write_random_estimator(folder: Path, shape: Shape) -> None:
    """An estimator folder whose vocabulary is made-up words; the same weights for the same shape."""
    folder.mkdir()
    write_tokenizer(folder, made_up_words(shape.vocabulary))
    config = encoder_config(shape)
    torch.manual_seed(1)
    estimator = QualityEstimator(KIWI, XLMRobertaModel(config, add_pooling_layer=False), HubVocabulary.open(folder))
    write_estimator(folder, KIWI, config, estimator.state_dict(), estimator.vocabulary)


def encoder_config(shape: Shape) -> XLMRobertaConfig:
    """XLM-R of that shape, with 514 positions."""
    return XLMRobertaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=max(1, shape.width // 64),
        intermediate_size=4 * shape.width,
        max_position_embeddings=514,
        type_vocab_size=1,
        pad_token_id=SPECIAL.index("<pad>"),
    )


def made_up_words(size: int) -> Tokenizer:
    """A tokenizer with that many tokens, special ones included: the words w0, w1, and so on."""
    words = [(f"▁w{number}", -10.0) for number in range(size - len(SPECIAL) - 1)]
    specials = [(token, 0.0) for token in SPECIAL]
    return _dressed(Tokenizer(models.Unigram([*specials, *words, ("<mask>", 0.0)], unk_id=SPECIAL.index("<unk>"))))


def trained_on(lines: Iterable[str], size: int) -> Tokenizer:
    """A tokenizer of at most that many pieces of these lines."""
    tokenizer = _dressed(Tokenizer(models.Unigram()))
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=[*SPECIAL, "<mask>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    return _dressed(tokenizer)


def write_tokenizer(folder: Path, tokenizer: Tokenizer) -> None:
    """The files of an XLM-R tokenizer, which COMET and energymt read alike."""
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {
        "bos": "<s>",
        "cls": "<s>",
        "eos": "</s>",
        "sep": "</s>",
        "pad": "<pad>",
        "unk": "<unk>",
        "mask": "<mask>",
    }
    settings = {"tokenizer_class": "XLMRobertaTokenizerFast", **{f"{name}_token": tokens[name] for name in tokens}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _dressed(tokenizer: Tokenizer) -> Tokenizer:
    """Words begin with ▁, and <s> and </s> stand around a text."""
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    marks = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    if None not in dict(marks).values():  # an untrained one has no tokens yet
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=marks
        )
    return tokenizer
