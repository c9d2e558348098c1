"""How much of the estimator's gradient a translator should follow, through which operator, and how fast.

energymt sweep qe_ebm --config qe_ebm.yaml --set quality=pool:default --set judge=JUDGE --set choose_by=judge
"""

from ray import tune

from energymt.search_space import Budget

TRAINABLE = "qe_ebm"

SPACE = {
    # The norm of the energy's gradient relative to that of the cross-entropy. Above 1 the estimator leads, and a
    # translator that listens to nothing else soon games it; below 0.1 the runs are supervised ones.
    "balance.weight": tune.grid_search([0.1, 0.3, 1.0]),
    # ST is the published code's; SX and GX are less biased on worlds small enough to enumerate (docs/results.md).
    "feed": tune.grid_search(["ST", "SX", "GX"]),
    # Published: 3e-4 for adapters. A translator whose weights all learn bears less.
    "optimizer.learning_rate": tune.grid_search([1e-4, 3e-4]),
}

# The estimator that trains never chooses: `choose_by` says what does.
METRIC, MODE = "dev/choice", "max"

# Gaming shows late, so that a trial is not stopped before a third of the run.
BUDGET = Budget(steps=600, scheduler="asha", grace_steps=200, reduction=2)
