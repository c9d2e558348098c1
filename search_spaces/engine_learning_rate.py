"""How fast ENGINE may learn, for the two operator pairs that held in small trials.

energymt sweep engine_learning_rate --config engine.yaml --set teacher=runs/teacher/model --set model.init=...
"""

from ray import tune

from energymt.search_space import Budget

TRAINABLE = "engine"

SPACE = {
    # The paper searches 1e-6 to 5e-4 (Tu et al. 2020, §4.4); its published scripts use 1e-6 with very long runs, while
    # short runs on small data need the upper half. Steps of about a factor of three: the optimum is that flat.
    "optimizer.learning_rate": tune.grid_search([1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 5e-4]),
    # The paper's text prefers (SX, ST), its published scripts run (SX, SX); they bear different rates.
    "score": tune.grid_search(["SX", "ST"]),
}

# Not the energy: too high a rate lowers it and spoils the translations.
METRIC, MODE = "dev/bleu", "max"

# Low rates are slow, not bad: the grace period is long enough for them to show a gain.
BUDGET = Budget(steps=6000, scheduler="asha", grace_steps=2000, reduction=2)
