"""The code that a registered model carries: MLflow runs this file to load it (models from code, no pickle)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class RegisteredTranslator(PythonModel):
    """Translates lines of text; `params` are fields of `DecodingOptions`."""

    def load_context(self, context: Any) -> None:
        """Open the model folder among the artifacts."""
        from energymt.models import load_translator
        from energymt.storage import verify_manifest

        folder = Path(context.artifacts["model"])
        verify_manifest(folder)
        self.model: Any = load_translator(folder)

    def predict(self, context: Any, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:
        """The translations, in order."""
        from energymt.decoding.translate import DecodingOptions, Translator

        options = DecodingOptions(**{name: value for name, value in (params or {}).items() if value})
        return [candidates[0][0] for candidates in Translator(self.model, options).translate(model_input)]


set_model(RegisteredTranslator())
