"""A user's own search space: two rates, one of which diverges in half of its cells."""

from ray import tune

from energymt.search_space import Budget

TRAINABLE = "user_code.faulty"
SPACE = {"optimizer.learning_rate": tune.grid_search([1e-3, 1e-4]), "nan_at": tune.grid_search([0, 7])}
METRIC, MODE = "dev/nll", "min"
BUDGET = Budget(steps=300)
