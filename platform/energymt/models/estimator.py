"""Quality estimators of the COMET family as one differentiable module: encoder, mix of its layers, regression head.

    unified_metric                   one joint input <s> translation </s></s> source </s>, the first token's vector
                                     (COMET-KIWI; UniTE, Wan et al. 2022); with a reference: the mean of three inputs
    xcomet_metric                    the same, and error spans counted into the score: scores text, is no energy
    referenceless_regression_metric  [t; s; t·s; |t−s|] of separately encoded translation and source
    regression_metric                [t; r; t·r; |t−r|; t·s; |t−s|], with a reference r: scores text, is no energy

A relaxed token enters as a mixture of rows of the word embeddings and nowhere else, so mixtures that are single rows
give the score of those tokens. Scores are as the metric gives them: higher is better. An encoder in bf16 or half
precision has its layers mixed and scored in float32: beside scores near 0.8, bf16 knows no steps below 1/256.

Axes of this room: J positions of an encoder's input, special tokens included; N layers, embeddings first; C labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from energymt.data.hub import HubVocabulary
from energymt.data.vocabulary import Vocabulary
from energymt.errors import ConfigurationError, DataError
from energymt.models.estimator_config import ACTIVATIONS, FEATURES, SEVERITIES, EstimatorConfig, Order, require_fit
from energymt.models.layer_mix import POOLS, LayerMix, exact
from energymt.models.network import Network
from energymt.records import SoftTarget, Source

Segment = tuple[Tensor, Tensor]
"""Embeddings [B, L, D] of a text without special tokens, and the mask [B, L] of its real positions."""


MARKERS = 4  # special tokens of two texts


def longest_input(encoder: PretrainedConfig) -> int:
    """`QualityEstimator.longest` of one with this encoder."""
    return int(encoder.max_position_embeddings) - 2


class Estimator(Protocol):
    """Scores relaxed translations, here or somewhere else: nobody who calls it can tell."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Its own, which the rows of `table_VD` belong to."""
        ...

    @property
    def table_VD(self) -> Tensor:
        """Its frozen token embeddings."""
        ...

    def __call__(self, source: Source, target: SoftTarget) -> Tensor:
        """score_B, higher is better; differentiable in `target.emb_BTD`."""
        ...


class QualityEstimator(Network):
    """An estimator of the COMET family; `energymt.models.estimator_folder.load_estimator` reads one.

    Args:
        config: of the checkpoint.
        encoder: XLM-R, InfoXLM, XLM-R-XL or MiniLM, without its own pooling layer.
        vocabulary: the encoder's tokenizer.
        order: of a joint input: `comet`, translation first, as the metric was trained; `published`, source first, as
            in the code of QE-EBM. (That code also leaves the source's padding inside and numbers positions through it,
            by which a score depends on the other sentences of a batch. This is not repeated.)

    Raises:
        ConfigurationError: a layer that the encoder has not, or parts that do not belong together.
    """

    architecture = "estimator"
    FILE = "estimator.json"
    vocabulary: HubVocabulary

    def __init__(
        self, config: EstimatorConfig, encoder: PreTrainedModel, vocabulary: HubVocabulary, order: Order = "comet"
    ) -> None:
        super().__init__()
        self.config, self.vocabulary, self.order = config, vocabulary, order
        self.learns_embeddings = False  # only one that is trained from scratch does: who mixes rows has a copy of them
        require_fit(config, encoder, vocabulary, order)
        layers, width = encoder.config.num_hidden_layers + 1, encoder.config.hidden_size
        self.encoder = encoder
        self.mix: LayerMix | None = None
        if config.layer == "mix":
            self.mix = LayerMix(layers, config.transformation, layer_norm=config.layer_norm, dropout=config.dropout)
        self.head = _head(FEATURES[config.metric] * width, config)
        self.labels = nn.Linear(width, len(SEVERITIES)) if config.metric == "xcomet_metric" else None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to` and `bfloat16` do, and to the encoder alone where float32 would be lost."""

        def no_less(values: Tensor) -> Tensor:
            moved = fn(values)
            if not moved.is_floating_point() or moved.dtype.itemsize >= torch.float32.itemsize:
                return moved
            return values.to(moved.device, torch.float32)

        for name, module in self.named_children():
            module._apply(fn if name == "encoder" else no_less, recurse)
        return super()._apply(no_less, recurse=False)  # type: ignore[no-untyped-call]

    @property
    def table_VD(self) -> Tensor:
        """The word embeddings, one row a token of the vocabulary, for whoever mixes them."""
        return self._rows_VD.detach()

    @property
    def _rows_VD(self) -> Tensor:
        """The same rows, as a parameter where they are learnt."""
        weight: Tensor = self.encoder.get_input_embeddings().weight
        rows_VD = weight[: self.vocabulary.size]
        return rows_VD if self.learns_embeddings else rows_VD.detach()

    def save(self, folder: Path) -> None:
        """Write everything that `load_estimator` reads; adapters that it has learnt are merged."""
        from energymt.models.adapters import without_adapters
        from energymt.models.estimator_folder import ENCODER, write_estimator

        state = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith(ENCODER)}
        plain = without_adapters(self.encoder).state_dict()
        state |= {f"{ENCODER}{name}": tensor for name, tensor in plain.items()}
        write_estimator(folder, self.config, self.encoder.config, state, self.vocabulary)

    @property
    def longest(self) -> int:
        """Most positions of one input, special tokens included (XLM-R: 512); a longer one loses its end."""
        return longest_input(self.encoder.config)

    @property
    def longest_text(self) -> int:
        """Most tokens of one text, special tokens not included (XLM-R: 508): COMET cuts each text at 510 with them."""
        return self.longest - MARKERS

    @property
    def differentiable(self) -> bool:
        """Whether it can serve as an energy: neither a reference nor the counting of error spans is in its score."""
        without_reference = self.config.metric in ("unified_metric", "referenceless_regression_metric")
        return without_reference and "src" in self.config.parts

    def forward(self, source: Source, target: SoftTarget) -> Tensor:
        """The score of relaxed translations, [B]; its gradient in `target.emb_BTD` is exact.

        Args:
            source: ids of the estimator's own vocabulary. Start, end and padding tokens are left out wherever they
                stand: the input gets its own.
            target: mixtures of `table_VD`, no special tokens.

        Raises:
            ConfigurationError: the metric is no energy, or the embeddings are of another width.
            DataError: a source id outside of the vocabulary.
        """
        self._check(source, target)
        translation, original = (target.emb_BTD, target.mask_BT), self._source_segment(source)
        if self.config.metric == "unified_metric":
            segments = (translation, original) if self.order == "comet" else (original, translation)
            features_BF, _ = self.read(*self.join(segments))
        else:
            target_BD, _ = self.read(*self.join((translation,)))
            source_BD, _ = self.read(*self.join((original,)))
            features_BF = compare(target_BD, source_BD)
        return self.head(features_BF).squeeze(-1)

    def lookup(self, ids_BL: Tensor) -> Tensor:
        """The embeddings [B, L, D] of token ids."""
        return nn.functional.embedding(ids_BL, self._rows_VD)

    def join(self, segments: Sequence[Segment]) -> tuple[Tensor, Tensor]:
        """<s> first </s></s> second </s>, padded at the end: embeddings [B, J, D] and mask [B, J].

        Every text is cut at `longest_text`, and the whole at `longest`, as COMET does.
        """
        rows_VD, words, rows = self._rows_VD, self.vocabulary, len(segments[0][0])
        parts: list[Segment] = []
        for number, (emb_BLD, mask_BL) in enumerate(segments):
            kept_BL = mask_BL & (mask_BL.cumsum(1) <= self.longest_text)
            opening = self._marker(words.eos_id if number else words.bos_id, rows)
            parts += [opening, (emb_BLD.to(rows_VD), kept_BL), self._marker(words.eos_id, rows)]
        emb_BJD, mask_BJ = torch.cat([emb for emb, _ in parts], 1), torch.cat([mask for _, mask in parts], 1)
        # Real positions move to the left, in their order; what stands behind them is padding, whatever it was.
        width = min(self.longest, int(mask_BJ.sum(1).max()))
        places_BJ = (~mask_BJ).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
        mask_BJ = mask_BJ.gather(1, places_BJ)
        emb_BJD = emb_BJD.gather(1, places_BJ.unsqueeze(-1).expand(-1, -1, emb_BJD.shape[-1]))
        return torch.where(mask_BJ.unsqueeze(-1), emb_BJD, rows_VD[words.pad_id]), mask_BJ

    def states(self, emb_BJD: Tensor, mask_BJ: Tensor) -> Sequence[Tensor]:
        """The N states [B, J, D] of an input padded at the end, numbered as the encoder numbers token ids."""
        if self.encoder.config.model_type == "bert":
            positions_BJ = torch.arange(mask_BJ.shape[1], device=mask_BJ.device).expand_as(mask_BJ)
        else:  # RoBERTa counts from the padding id on, and gives that to padding
            positions_BJ = mask_BJ.cumsum(1) * mask_BJ + self.encoder.config.pad_token_id
        output = self.encoder(
            inputs_embeds=emb_BJD,
            attention_mask=mask_BJ.long(),
            position_ids=positions_BJ,
            output_hidden_states=True,
        )
        return output.hidden_states

    def read(self, emb_BJD: Tensor, mask_BJ: Tensor) -> tuple[Tensor, Tensor | None]:
        """One vector an input, [B, D], and XCOMET's label probabilities [B, J, C]."""
        states_N = self.states(emb_BJD, mask_BJ)
        if self.mix is not None:
            pooled_BJD = self.mix(states_N, mask_BJ, first_only=self.config.pool == "cls")
        else:
            assert self.config.layer != "mix"
            pooled_BJD = exact(states_N[self.config.layer])
        labels_BJC = None
        if self.labels is not None:
            assert self.config.word_layer is not None
            with _as_it_is(emb_BJD):
                labels_BJC = self.labels(exact(states_N[self.config.word_layer])).softmax(-1)
        return POOLS[self.config.pool](pooled_BJD, mask_BJ), labels_BJC

    def _marker(self, token_id: int, rows: int) -> Segment:
        emb_B1D = self._rows_VD[token_id].expand(rows, 1, -1)
        return emb_B1D, torch.ones(rows, 1, dtype=torch.bool, device=emb_B1D.device)

    def _source_segment(self, source: Source) -> Segment:
        words = self.vocabulary
        special = torch.tensor([words.bos_id, words.eos_id, words.pad_id], device=source.ids_BS.device)
        mask_BS = source.mask_BS & ~torch.isin(source.ids_BS, special)
        return self.lookup(source.ids_BS.masked_fill(~mask_BS, words.pad_id)), mask_BS

    def _check(self, source: Source, target: SoftTarget) -> None:
        if not self.differentiable:
            raise ConfigurationError(
                f"A {self.config.metric} on {', '.join(self.config.parts)} scores text but is no energy: it needs a "
                f"reference or counts error spans; use a COMET-KIWI checkpoint, or score text with it."
            )
        width = self.table_VD.shape[1]
        if target.emb_BTD.shape[-1] != width:
            raise ConfigurationError(
                f"The soft translation holds embeddings of width {target.emb_BTD.shape[-1]}, and this estimator's are "
                f"{width} wide: mix rows of its own table_VD."
            )
        # On a GPU an index outside of the table would take the whole process down.
        size = self.vocabulary.size
        foreign = source.ids_BS[source.mask_BS & ((source.ids_BS < 0) | (source.ids_BS >= size))]
        if len(foreign):
            raise DataError(
                f"A source holds the token id {int(foreign[0])}, but the estimator has {size:,} tokens: encode the "
                f"source with the estimator's own vocabulary."
            )


def compare(target_BD: Tensor, source_BD: Tensor, reference_BD: Tensor | None = None) -> Tensor:
    """The features of separately encoded texts: products and distances of the translation with the others."""
    with_source = [target_BD * source_BD, (target_BD - source_BD).abs()]
    if reference_BD is None:
        return torch.cat([target_BD, source_BD, *with_source], 1)
    with_reference = [target_BD * reference_BD, (target_BD - reference_BD).abs()]
    return torch.cat([target_BD, reference_BD, *with_reference, *with_source], 1)


def _as_it_is(values: Tensor) -> torch.autocast:
    """No autocast inside the block."""
    return torch.autocast(values.device.type, enabled=False)


class _Head(nn.Sequential):
    """Layers one after the other, in float32 at least."""

    def forward(self, features_BF: Tensor) -> Tensor:
        with _as_it_is(features_BF):
            found: Tensor = super().forward(exact(features_BF))  # type: ignore[no-untyped-call]
        return found


def _head(width: int, config: EstimatorConfig) -> nn.Sequential:
    modules: list[nn.Module] = []
    for hidden in config.hidden_sizes:
        modules += [nn.Linear(width, hidden), ACTIVATIONS[config.activation](), nn.Dropout(config.dropout)]
        width = hidden
    modules.append(nn.Linear(width, 1))
    if config.final_activation is not None:
        modules.append(ACTIVATIONS[config.final_activation]())
    return _Head(*modules)
