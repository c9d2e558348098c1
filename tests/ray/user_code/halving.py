"""Four rates, of which the worse ones end early."""

from ray import tune

from energymt.search_space import Budget

TRAINABLE = "user_code.faulty"
SPACE = {"optimizer.learning_rate": tune.grid_search([3e-3, 1e-3, 1e-5, 1e-6])}
METRIC, MODE = "dev/nll", "min"
BUDGET = Budget(steps=12, scheduler="asha", grace_steps=2, reduction=2)
