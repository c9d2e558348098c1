"""Tiny encoders with a real XLM-R tokenizer, and COMET folders as they are published, written here by hand. Weights are
random but not small, so that a wrong position, order, mask or share moves every score.
"""

import io
import json
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from sentencepiece import SentencePieceTrainer
from torch import Tensor, nn
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel, XLMRobertaXLConfig, XLMRobertaXLModel

from energymt.data.hub import HubVocabulary
from energymt.models.comet_checkpoint import convert_comet
from energymt.models.estimator import QualityEstimator
from energymt.models.estimator_folder import load_estimator
from energymt.records import SoftTarget, Source
from tests import tiny

SOURCES = [
    "ein Hund läuft über die Wiese .",
    "zwei Kinder spielen im Garten .",
    "eine Frau liest ein Buch .",
    "ein Buch .",
    "die Kinder spielen , und der Hund läuft über die Wiese .",
]
TRANSLATIONS = [
    "a dog runs over the meadow .",
    "children children play",
    "a woman reads a book .",
    "",
    "the children play , and a dog reads a book .",
]
REFERENCES = [
    "a dog is running over the meadow .",
    "two children play in the garden .",
    "a woman is reading a book .",
    "a book .",
    "the children play , and the dog runs over the meadow .",
]
LONG = " ".join(SOURCES * 3)  # beyond every limit below
POSITIONS = 90  # of which two are lost to RoBERTa's numbering: 88 for an input, 84 for a text
WIDTH, LAYERS = 12, 2
HIDDEN = [10, 6]
ROOT = TemporaryDirectory(prefix="energymt-estimators-")  # goes with the process
FAMILIES = {"XLM-RoBERTa": XLMRobertaModel, "XLM-RoBERTa-XL": XLMRobertaXLModel, "MiniLM": BertModel}
CONFIGURATIONS = {"XLM-RoBERTa": XLMRobertaConfig, "XLM-RoBERTa-XL": XLMRobertaXLConfig, "MiniLM": BertConfig}
KINDS: dict[str, dict[str, Any]] = {
    "kiwi": {"metric": "unified_metric", "input_segments": ["mt", "src"], "layer_transformation": "sparsemax"},
    "kiwi-softmax": {"metric": "unified_metric", "input_segments": ["mt", "src"], "layer_transformation": "softmax"},
    "unified": {"metric": "unified_metric", "layer_norm": True},
    "referenceless": {"metric": "referenceless_regression_metric", "layer_norm": True},
    "regression": {"metric": "regression_metric"},
    "xcomet": {"metric": "xcomet_metric", "word_layer": 1},
}
ENERGIES = ("kiwi", "kiwi-softmax", "unified", "referenceless")


def tokenizer_files(folder: Path) -> int:
    """The files of an XLM-R tokenizer, trained on the sentences above; how many tokens it has."""
    out = io.BytesIO()
    lines = iter(SOURCES + TRANSLATIONS + REFERENCES)
    SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=out, vocab_size=120, hard_vocab_limit=False, minloglevel=2
    )
    (folder / "sentencepiece.bpe.model").write_bytes(out.getvalue())
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
    vocabulary = HubVocabulary.open(folder)
    vocabulary.tokenizer.save_pretrained(folder)  # tokenizer.json
    return vocabulary.size


def pretrained(family: str = "XLM-RoBERTa") -> Path:
    """An encoder as the hub holds it: tokenizer, configuration and weights."""
    return _pretrained(family)


@cache
def _pretrained(family: str) -> Path:
    folder = Path(ROOT.name) / family
    folder.mkdir()
    torch.manual_seed(3)
    config = CONFIGURATIONS[family](
        vocab_size=tokenizer_files(folder) + (3 if family == "XLM-RoBERTa-XL" else 0),  # whose table has spare rows
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=POSITIONS,
        type_vocab_size=1,
        pad_token_id=1,
        initializer_range=0.4,
    )
    network = FAMILIES[family](config, add_pooling_layer=False)
    tiny.shake(network)
    network.save_pretrained(folder)
    return folder


def weights(kind: str, family: str = "XLM-RoBERTa") -> dict[str, Tensor]:
    """Encoder, layer mix and head under the names that COMET gives them."""
    metric = KINDS[kind]["metric"]
    draw = torch.Generator().manual_seed(7)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    network = FAMILIES[family].from_pretrained(pretrained(family), add_pooling_layer=False)
    state = {f"encoder.model.{name}": tensor for name, tensor in network.state_dict().items()}
    state |= {f"layerwise_attention.scalar_parameters.{n}": random(1) * 0.5 for n in range(LAYERS + 1)}
    state["layerwise_attention.gamma"] = random(1)
    state |= {"layerwise_attention.dropout_mask": torch.zeros(LAYERS + 1)}
    state |= {"layerwise_attention.dropout_fill": torch.full((LAYERS + 1,), -1e20)}
    vectors = {"regression_metric": 6, "referenceless_regression_metric": 4}.get(metric, 1)
    sizes = [vectors * WIDTH, *HIDDEN, 1]
    for number, (wide, narrow) in enumerate(pairwise(sizes)):
        state[f"estimator.ff.{3 * number}.weight"] = random(narrow, wide) * 0.4
        state[f"estimator.ff.{3 * number}.bias"] = random(narrow) * 0.4
    if metric == "xcomet_metric":
        # Spans of every severity, fewer than cost all points, and no score that is cut at 1.
        state |= {"hidden2tag.weight": random(4, WIDTH), "hidden2tag.bias": torch.tensor([2.5, 2.0, 1.0, -1.5])}
        state["wordloss.weight"] = random(4)
        state["estimator.ff.6.bias"] -= 0.8
    return state


def settings(kind: str, family: str = "XLM-RoBERTa", **changes: Any) -> dict[str, Any]:
    """The hparams of such a checkpoint."""
    chosen = {**KINDS[kind], **changes}
    return {
        "class_identifier": chosen.pop("metric"),
        "encoder_model": family,
        "pretrained_model": str(pretrained(family)),
        "hidden_sizes": HIDDEN,
        "layer_norm": False,
        **chosen,
    }


def official(
    folder: Path, kind: str, state: dict[str, Tensor] | None = None, family: str = "XLM-RoBERTa", **changes: Any
) -> Path:
    """A COMET folder; `changes` are of its settings."""
    listed = settings(kind, family, **changes)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "hparams.yaml").write_text(yaml.safe_dump(listed))
    state = weights(kind, family) if state is None else state
    content = {"state_dict": state, "hyper_parameters": listed, "epoch": 2, "global_step": 30}
    torch.save({**content, "pytorch-lightning_version": "2.0.0"}, folder / "checkpoints" / "model.ckpt")
    return folder


def converted(kind: str, family: str = "XLM-RoBERTa") -> Path:
    """The estimator folder of such a checkpoint."""
    return _converted(kind, family)


@cache
def _converted(kind: str, family: str) -> Path:
    folder = Path(ROOT.name) / f"{kind}-{family}"
    convert_comet(official(folder / "comet", kind, family=family), folder / "estimator", pretrained(family))
    return folder / "estimator"


def estimator(kind: str, family: str = "XLM-RoBERTa", **options: Any) -> QualityEstimator:
    """A loaded estimator."""
    return load_estimator(converted(kind, family), **options)


def source_of(model: QualityEstimator, lines: Sequence[str]) -> Source:
    """Sources as an encoder reads them: with start and end tokens."""
    return Source(*tiny.padded([model.vocabulary.encode_source(line) for line in lines], model.vocabulary.pad_id))


def target_of(model: QualityEstimator, lines: Sequence[str]) -> SoftTarget:
    """Translations as soft tokens that put all mass on one row."""
    rows = [model.vocabulary.encode(line)[: model.longest_text + 3] for line in lines]
    ids_BT, mask_BT = tiny.padded(rows, model.vocabulary.pad_id)
    one_hot_BTV = nn.functional.one_hot(ids_BT.long(), model.vocabulary.size).to(model.table_VD)
    return SoftTarget(ids_BT, one_hot_BTV @ model.table_VD, mask_BT)
