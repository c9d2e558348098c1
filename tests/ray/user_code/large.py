"""A search space whose trials do not fit on the test's two CPUs."""

from ray import tune

from energymt.search_space import Budget

TRAINABLE = "user_code.faulty"
SPACE = {"seed": tune.grid_search([1, 2])}
METRIC, MODE = "dev/nll", "min"
BUDGET = Budget(cpus_per_worker=3)
