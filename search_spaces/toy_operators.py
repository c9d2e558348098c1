"""Four operator pairs on the toy language, in minutes: the smallest sweep that shows something.

    energymt demo                      leaves the texts and the teacher that this needs
    energymt sweep toy_operators

Cold starts: the toy language is small enough, and the cross-entropy baseline would be valid in no sentence anyway.
"""

from ray import tune

from energymt.search_space import Budget
from energymt.storage import runs_root

DEMO = runs_root() / "demo" / "seed-1"

TRAINABLE = "engine"

SPACE = {
    # Soft and hard input of the teacher: the two ends of ENGINE Table 1.
    "feed": tune.grid_search(["SX", "ST"]),
    # Soft and hard choice of the log-probabilities.
    "score": tune.grid_search(["SX", "ST"]),
}

# The toy teacher is almost always right, so its discrete energy says how good a translation is.
METRIC, MODE = "dev/energy", "min"

# All four run to the end: at this size nothing is saved by stopping one.
BUDGET = Budget(steps=400)

CONFIG = {
    "train": {"path": str(DEMO / "train.tsv"), "source": "source", "target": "target"},
    "dev": {"path": str(DEMO / "dev.tsv"), "source": "source", "target": "target"},
    "teacher": str(DEMO / "teacher" / "model"),
    "model": {"variant": "masked-toy"},
    # Large for ENGINE: the networks are tiny and the run is short.
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 20},
    "tokens_per_step": 512,
    "target_lengths": "reference",
    "evaluate_every": 100,
    "checkpoint_every": 100,
    "log_every": 20,
}
