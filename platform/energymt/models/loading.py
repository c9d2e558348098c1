"""From a model folder to a translator: our own folders, and plain Hugging Face checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError

from energymt.data.vocabulary import Vocabulary, load_vocabulary
from energymt.errors import StorageError
from energymt.models.masked import MaskedConfig, MaskedTranslator
from energymt.models.recurrent import RecurrentConfig, RecurrentTranslator, TaggerConfig, TaggerTranslator
from energymt.models.speech import SpeechTransformer
from energymt.models.transformer import TransformerTranslator
from energymt.models.translator import (
    ARCHITECTURE_FILE,
    WEIGHTS_FILE,
    AutoregressiveModel,
    NonautoregressiveModel,
)

AnyTranslator = AutoregressiveModel | NonautoregressiveModel
Loader = Callable[[Path, Vocabulary, dict[str, Any]], AnyTranslator]


def _with_weights(make: Callable[[dict[str, Any], Vocabulary], AnyTranslator]) -> Loader:
    def load(folder: Path, vocabulary: Vocabulary, config: dict[str, Any]) -> AnyTranslator:
        model = make(config, vocabulary)
        model.load_weights(folder)
        return model

    return load


LOADERS: dict[str, Loader] = {
    "transformer": TransformerTranslator.load,
    "speech": SpeechTransformer.load,
    "recurrent": _with_weights(lambda config, words: RecurrentTranslator(RecurrentConfig(**config), words)),
    "masked": _with_weights(lambda config, words: MaskedTranslator(MaskedConfig(**config), words)),
    "tagger": _with_weights(lambda config, words: TaggerTranslator(TaggerConfig(**config), words)),
}


def load_translator(folder: Path | str) -> AnyTranslator:
    """The translator that `save` wrote into `folder`, in eval mode.

    Raises:
        StorageError: if the folder holds no translator, one of an unknown architecture, or a damaged one.
    """
    folder = Path(folder)
    file = folder / ARCHITECTURE_FILE
    if not file.is_file():
        inner = folder / "model"  # of a run
        hint = "give the folder of a trained model, or import a checkpoint with `energymt models import`."
        if (inner / ARCHITECTURE_FILE).is_file():
            hint = f"did you mean {inner}?"
        raise StorageError(f"{folder} holds no translator ({ARCHITECTURE_FILE} is missing); {hint}")
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
        architecture, config = description["architecture"], description["config"]
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(f"{file} is damaged ({error!r}); copy the whole model folder again.") from None
    if architecture not in LOADERS:
        raise StorageError(f"{file} names the architecture {architecture!r}, which this version does not know.")
    vocabulary = load_vocabulary(folder)
    try:
        return LOADERS[architecture](folder, vocabulary, config).eval()
    except (ValidationError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise StorageError(f"{file} does not describe a {architecture} translator: {reason}") from None
    except (OSError, RuntimeError, SafetensorError) as error:  # missing, cut, or of other shapes
        reason = " ".join(str(error).split()).rstrip(".")
        raise StorageError(
            f"The weights in {folder / WEIGHTS_FILE} cannot be used ({reason}); copy the whole model folder again."
        ) from None
