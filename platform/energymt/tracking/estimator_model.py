"""The code that a registered estimator carries: MLflow runs this file to load it (models from code, no pickle).

MLflow reads the type hint of what `predict` is given, and warns without one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class RegisteredEstimator(PythonModel):
    """Scores the columns `source` and `translation` of a table."""

    def load_context(self, context: Any) -> None:
        """Open the model folder among the artifacts."""
        from energymt.models.estimator_folder import load_estimator
        from energymt.storage import verify_manifest

        folder = Path(context.artifacts["model"])
        verify_manifest(folder)
        self.model: Any = load_estimator(folder)

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        """The scores, in order; higher is better."""
        from energymt.models.scoring import score_lines

        return score_lines(self.model, list(model_input["source"]), list(model_input["translation"]))


set_model(RegisteredEstimator())
