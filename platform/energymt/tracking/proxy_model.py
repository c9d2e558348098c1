"""The code that a registered proxy carries: MLflow runs this file to load it (models from code, no pickle).

MLflow reads the type hint of what `predict` is given, and warns without one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class RegisteredProxy(PythonModel):
    """Predicts the metric of an output from the encoder states of its source, [B, S, D] without padding."""

    def load_context(self, context: Any) -> None:
        """Open the model folder among the artifacts."""
        from energymt.models.proxy import load_proxy
        from energymt.storage import verify_manifest

        folder = Path(context.artifacts["model"])
        verify_manifest(folder)
        self.model: Any = load_proxy(folder)

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> Any:  # type: ignore[type-arg]
        """The predictions in the metric's own unit, in order."""
        import torch

        states_BSD = torch.as_tensor(model_input).float()
        with torch.inference_mode():
            found_B = self.model.predict(states_BSD, torch.ones(states_BSD.shape[:2], dtype=torch.bool))
        return found_B.numpy()


set_model(RegisteredProxy())
