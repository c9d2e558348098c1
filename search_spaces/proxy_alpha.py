"""How large and deep a proxy should be, and by which loss it learns.

energymt sweep proxy_alpha --config examples/nap/proxy.yaml

Alpha itself needs no trials: `energymt alpha-curve` tries all values in one pass, for the proxy that comes out best.
"""

from ray import tune

from energymt.search_space import Budget

TRAINABLE = "proxy"

SPACE = {
    # Pearson is the paper's; it found smooth ranks no better. MSE says what a correlation loses by being scale-free.
    "loss": tune.grid_search(["pearson", "spearman", "mse"]),
    # The paper's proxy has 3 layers behind the pooling; 1 is a linear score of the pooled states.
    "proxy.layers": tune.grid_search([1, 3]),
    # As wide as the states of a laptop's model, and several times as wide.
    "proxy.hidden": tune.grid_search([128, 512]),
}

METRIC, MODE = "dev/pearson", "max"

# A proxy learns fast: a bad shape is known after a third of the steps.
BUDGET = Budget(steps=600, scheduler="asha", grace_steps=200, reduction=2)
