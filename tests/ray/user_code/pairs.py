"""Trials of two Ray Train workers each: one at a time on two CPUs, their drivers take none."""

from ray import tune

from energymt.search_space import Budget

TRAINABLE = "user_code.faulty"
SPACE = {"kill_at": tune.grid_search([8, 0])}
METRIC, MODE = "dev/nll", "min"
BUDGET = Budget(steps=10, workers=2)
