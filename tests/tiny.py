"""Tiny translators of every family over a made-up vocabulary, and batches for them. Their weights are random but not
small: a wrong start token, scale, mask or bias moves every number.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from energymt.data.vocabulary import Vocabulary
from energymt.models.masked import MaskedConfig, MaskedTranslator
from energymt.models.recurrent import RecurrentConfig, RecurrentTranslator, TaggerConfig, TaggerTranslator
from energymt.models.transformer import TransformerConfig, TransformerTranslator, start_tokens
from energymt.models.translator import AutoregressiveModel, NonautoregressiveModel
from energymt.records import Batch, Source

SIZE = 16
CODE = 14  # the token that plays a language code
WORDS = range(6, 14)  # ids that are words in every family


class Numbers(Vocabulary):
    """Words are their own ids: "7 8 9"."""

    kind = "numbers"

    def __init__(
        self, size: int = SIZE, *, pad: int = 0, unk: int = 1, bos: int = 2, eos: int = 3, mask: int = 4
    ) -> None:
        self.size = size
        self.pad_id, self.unk_id, self.bos_id, self.eos_id, self.mask_id = pad, unk, bos, eos, mask
        self.never_ids = tuple(sorted({pad, bos, mask} - {eos}))

    def piece(self, token_id):
        return str(token_id)

    def encode(self, text):
        return [int(word) for word in text.split()]

    def encode_source(self, text):
        return [*self.encode(text), self.eos_id]

    def decode(self, ids):
        return " ".join(str(i) for i in self.words(ids))

    def save(self, folder: Path):
        self.write_description(folder)


def padded(rows: Sequence[Sequence[int]], pad_id: int, width: int = 0) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded to `width` or to the longest row."""
    width = max(width, *(len(row) for row in rows))
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows])
    return ids, torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]


def source_of(rows: Sequence[Sequence[int]], vocabulary: Vocabulary, width: int = 0) -> Source:
    """Sentences without their end token as a batch of sources."""
    return Source(*padded([[*row, vocabulary.eos_id] for row in rows], vocabulary.pad_id, width))


def batch_of(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], vocabulary: Vocabulary, first: int = 0) -> Batch:
    """Pairs of sentences as a micro-batch; sentence ids count from `first`."""
    sources, targets = zip(*pairs, strict=True)
    return Batch(
        torch.arange(first, first + len(pairs)),
        source_of(sources, vocabulary),
        *padded(targets, vocabulary.pad_id),
    )


def sentences(count: int, longest: int = 6, seed: int = 0) -> list[list[int]]:
    """Sentences of different lengths."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=draw).tolist()
    return [torch.randint(WORDS.start, WORDS.stop, (length,), generator=draw).tolist() for length in lengths]


def shake(model: nn.Module, scale: float = 0.1, seed: int = 0) -> None:
    """Move every weight and every logit bias, so that nothing is zero, one or symmetric by its initialisation."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad:  # sinusoids, which no checkpoint holds
                continue
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))
        for name, buffer in model.named_buffers():
            if name.endswith("final_logits_bias"):
                buffer.add_(torch.randn(buffer.shape, generator=draw))


# ------------------------------------------------------------------------------------------------ Hugging Face classes

BART_IDS = {"bos": 0, "pad": 1, "eos": 2, "unk": 3}  # BART, mBART, M2M100, NLLB
BART_SIZES = {
    "vocab_size": SIZE,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12,
    "max_position_embeddings": 32,
    "init_std": 0.4,
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}


def _marian() -> tuple[PreTrainedModel, Numbers, int | None]:
    """As the published Marian checkpoints: eos 0, unk 1, padding last and also the start token."""
    ids = {"eos_token_id": 0, "bos_token_id": 0, "pad_token_id": SIZE - 1, "decoder_start_token_id": SIZE - 1}
    config = MarianConfig(**{**BART_SIZES, **ids}, scale_embedding=True)
    return MarianMTModel(config), Numbers(pad=SIZE - 1, bos=SIZE - 1, eos=0, unk=1), None


def _bart(forced: int | None = None, **changes) -> tuple[PreTrainedModel, Numbers, int | None]:
    network = BartForConditionalGeneration(BartConfig(**{**BART_SIZES, **changes}))
    network.generation_config.forced_bos_token_id = forced
    return network, Numbers(**BART_IDS), None


def _mbart() -> tuple[PreTrainedModel, Numbers, int | None]:
    network = MBartForConditionalGeneration(MBartConfig(**BART_SIZES, scale_embedding=True))
    return network, Numbers(**BART_IDS), CODE


def _m2m100() -> tuple[PreTrainedModel, Numbers, int | None]:
    network = M2M100ForConditionalGeneration(M2M100Config(**BART_SIZES, scale_embedding=True))
    return network, Numbers(**BART_IDS), CODE


def _t5(tied: bool) -> tuple[PreTrainedModel, Numbers, int | None]:
    config = T5Config(
        vocab_size=SIZE,
        d_model=8,
        d_kv=4,
        d_ff=12,
        num_layers=1,
        num_decoder_layers=2,
        num_heads=2,
        relative_attention_num_buckets=8,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        tie_word_embeddings=tied,
        feed_forward_proj="relu" if tied else "gated-gelu",
    )
    return T5ForConditionalGeneration(config), Numbers(pad=0, bos=0, eos=1, unk=2), None


NETWORKS: dict[str, Callable[[], tuple[PreTrainedModel, Numbers, int | None]]] = {
    "marian": _marian,
    "bart": _bart,
    "bart-forced-bos": lambda: _bart(forced=0, scale_embedding=True),
    "mbart": _mbart,
    "m2m100": _m2m100,  # NLLB is of this class
    "t5-tied": lambda: _t5(tied=True),
    "t5-untied": lambda: _t5(tied=False),
}


def network(family: str) -> tuple[PreTrainedModel, Numbers, int | None]:
    """A bare Hugging Face model in eval mode, its vocabulary, and the language code it must be told."""
    torch.manual_seed(5)
    model, vocabulary, code = NETWORKS[family]()
    shake(model)
    return model.eval(), vocabulary, code


# -------------------------------------------------------------------------------------------------- translators of ours


def recurrent(vocabulary: Vocabulary | None = None, **changes) -> RecurrentTranslator:
    """The attentional LSTM."""
    torch.manual_seed(5)
    sizes = {"embedding": 6, "encoder": 5, "decoder": 7, "layers": 2, "dropout": 0.0, **changes}
    model = RecurrentTranslator(RecurrentConfig(**sizes), vocabulary or Numbers())
    shake(model, 0.3)
    return model.eval()


def scratch(vocabulary: Vocabulary | None = None, **changes) -> TransformerTranslator:
    """The transformer as this project makes it from scratch."""
    torch.manual_seed(5)
    sizes = {"width": 8, "feedforward": 12, "encoder_layers": 1, "decoder_layers": 2, "heads": 2, "dropout": 0.0}
    config = TransformerConfig(**{**sizes, "longest": 32, **changes})
    model = TransformerTranslator.from_config(config, vocabulary or Numbers())
    shake(model)
    return model.eval()


def masked(vocabulary: Vocabulary | None = None, **changes) -> MaskedTranslator:
    """The CMLM."""
    torch.manual_seed(6)
    sizes = {"width": 8, "feedforward": 12, "encoder_layers": 1, "decoder_layers": 2, "heads": 2, "dropout": 0.0}
    model = MaskedTranslator(MaskedConfig(**{**sizes, "longest": 16, **changes}), vocabulary or Numbers())
    shake(model)
    return model.eval()


def tagger(vocabulary: Vocabulary | None = None, **changes) -> TaggerTranslator:
    """The BiLSTM tagger."""
    torch.manual_seed(6)
    sizes = {"embedding": 6, "hidden": 5, "layers": 2, "dropout": 0.0, "longest": 16, **changes}
    model = TaggerTranslator(TaggerConfig(**sizes), vocabulary or Numbers())
    shake(model, 0.3)
    return model.eval()


def teacher(family: str) -> AutoregressiveModel:
    """An autoregressive translator of any family, ready to serve."""
    if family == "recurrent":
        return recurrent()
    if family == "scratch":
        return scratch()
    model, vocabulary, code = network(family)
    return TransformerTranslator(model, vocabulary, start_tokens(model, code)).eval()


def student(family: str) -> NonautoregressiveModel:
    """A non-autoregressive translator."""
    return {"masked": masked, "tagger": tagger}[family]()


TEACHERS = ("recurrent", "scratch", *NETWORKS)
STUDENTS = ("masked", "tagger")
