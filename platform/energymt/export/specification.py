"""From an autoregressive transformer to the files of CTranslate2.

The specification is filled from the weights by CTranslate2's own loaders; vocabulary and start tokens are ours, so no
tokenizer of the family is needed.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from energymt.data.vocabulary import Vocabulary
from energymt.errors import ConfigurationError
from energymt.export.folder import write_description
from energymt.models.transformer import TransformerTranslator


def export_ctranslate(model: object, folder: Path, *, int8: bool) -> None:
    """Write a CTranslate2 model, the vocabulary and a description into an empty folder.

    Raises:
        ConfigurationError: if CTranslate2 knows no such model.
    """
    if not isinstance(model, TransformerTranslator):
        raise ConfigurationError(
            f"CTranslate2 takes autoregressive transformers, and this model is a {type(model).__name__}: "
            f"translate with it in PyTorch (--engine torch), or export a non-autoregressive one to onnx."
        )
    specification = _specification(model)
    specification.validate()
    specification.optimize(quantization="int8" if int8 else None)
    specification.save(str(folder))
    model.vocabulary.save(folder)
    write_description(folder, "ctranslate2", int8=int8, prefix_ids=model.prefix_ids, longest=model.longest)


def _specification(model: TransformerTranslator) -> Any:
    """The network as CTranslate2 describes it, with our vocabulary and start token."""
    vocabulary, names = model.vocabulary, token_names(model.vocabulary)
    # A copy: the loaders write into the configuration, and quantisation overwrites the weights themselves.
    network = copy.deepcopy(model.network)
    loader, norms = _family(type(network.config).__name__)
    for name, value in norms.items():
        setattr(network.config, name, value)
    with torch.no_grad():
        specification = loader.get_model_spec(network)
    encoder, decoder = specification.encoder, specification.decoder
    # Some families have more rows than tokens.
    for part in (encoder.embeddings[0], decoder.embeddings, decoder.projection):
        part.weight = part.weight[: vocabulary.size]
    if decoder.projection.has_bias():
        decoder.projection.bias = decoder.projection.bias[: vocabulary.size]
    specification.register_source_vocabulary(names)
    specification.register_target_vocabulary(names)
    config = specification.config
    config.bos_token, config.eos_token = names[vocabulary.bos_id], names[vocabulary.eos_id]
    config.unk_token, config.decoder_start_token = names[vocabulary.unk_id], names[model.prefix_ids[0]]
    return specification


def _family(name: str) -> tuple[Any, dict[str, bool]]:
    """CTranslate2's loader of a Hugging Face family, and what it asks for that not every configuration says."""
    from ctranslate2.converters import transformers as known

    post_norm = {"normalize_before": False, "normalize_embedding": True}
    pre_norm = {"normalize_before": True, "normalize_embedding": True}
    families = {
        # Its Marian loader takes the last token for padding and drops it; ours keep every token.
        "MarianConfig": (known.BartLoader, {"normalize_before": False, "normalize_embedding": False}),
        "BartConfig": (known.BartLoader, post_norm),
        "MBartConfig": (known.MBartLoader, pre_norm),
        "M2M100Config": (known.M2M100Loader, {}),  # NLLB too
        "PegasusConfig": (known.PegasusLoader, {"normalize_before": True, "normalize_embedding": False}),
        "T5Config": (known.T5Loader, {}),
        "MT5Config": (known.MT5Loader, {}),
    }
    if name not in families:
        raise ConfigurationError(
            f"CTranslate2 runs {', '.join(key.removesuffix('Config') for key in families)} models and no "
            f"{name.removesuffix('Config')}: translate with this one in PyTorch (--engine torch)."
        )
    loader, norms = families[name]
    return loader(), norms


def token_names(vocabulary: Vocabulary) -> list[str]:
    """A name for each id: its piece, or its number where a piece is missing or stands twice."""
    names, seen = [], set()
    for token_id in range(vocabulary.size):
        name = vocabulary.piece(token_id)
        name = f"<{token_id}>" if name in seen else name
        seen.add(name)
        names.append(name)
    return names
