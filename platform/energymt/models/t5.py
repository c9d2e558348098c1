"""T5 encoder-decoders from scratch: relative positions, no bias, gated layers (T5 1.1, the shape of Flan-T5).

From a checkpoint every T5 is a `TransformerTranslator` like any other family; here are sizes to train anew.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from transformers import T5Config, T5ForConditionalGeneration

from energymt.data.vocabulary import Vocabulary
from energymt.models.transformer import TransformerTranslator


class RelativeConfig(BaseModel):
    """Sizes of a T5 made from scratch; embeddings are shared by encoder, decoder and output."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: PositiveInt = 512
    """Model dimension (Flan-T5 small: 512, base: 768, large: 1,024)."""
    feedforward: PositiveInt = 1024
    """Hidden dimension of the gated layers (small: 1,024, base: 2,048, large: 2,816)."""
    layers: PositiveInt = 8
    """Layers of the encoder, and as many of the decoder (small: 8, base: 12, large: 24)."""
    heads: PositiveInt = 6
    """Attention heads a layer (small: 6, base: 12, large: 16)."""
    head_width: PositiveInt = 64
    """Dimension of a head (Flan-T5: 64)."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Dropout (T5 pre-training: 0.1; T5 1.1 turns it off there)."""


def new_t5(config: RelativeConfig, vocabulary: Vocabulary) -> TransformerTranslator:
    """A T5 with random weights over `vocabulary`; the start token is the padding token, as in every T5."""
    network = T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocabulary.size,
            d_model=config.width,
            d_kv=config.head_width,
            d_ff=config.feedforward,
            num_layers=config.layers,
            num_heads=config.heads,
            dropout_rate=config.dropout,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=True,
            pad_token_id=vocabulary.pad_id,
            eos_token_id=vocabulary.eos_id,
            decoder_start_token_id=vocabulary.pad_id,
        )
    )
    return TransformerTranslator(network, vocabulary, (vocabulary.pad_id,))
