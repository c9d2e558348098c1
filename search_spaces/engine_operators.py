"""Which operators ENGINE should use: all 25 pairs of O1 and O2 (Tu et al. 2020, Table 2 for IWSLT14 DE-EN).

    energymt sweep engine_operators --config engine.yaml --set teacher=runs/teacher/model --set model.init=...

Start all cells from the same baseline (`model.init`); cold starts need far more steps than this budget.
"""

from ray import tune

from energymt.search_space import Budget

TRAINABLE = "engine"

SPACE = {
    # O1, what the teacher's decoder reads. SX lets a position be uncertain; hard ones (ST, GX) show it real tokens.
    "feed": tune.grid_search(["SX", "STL", "SG", "ST", "GX"]),
    # O2, what picks the log-probabilities. The paper's best pairs differ by language pair, so none is left out.
    "score": tune.grid_search(["SX", "STL", "SG", "ST", "GX"]),
}

# Quality decides, not the energy: some pairs lower the energy while translations get worse. Each trial's checkpoint is
# the one with the lowest discrete dev energy, as in every ENGINE run.
METRIC, MODE = "dev/bleu", "max"

# A pair that is far behind after 1,000 steps does not come back; a third goes on at each rung.
BUDGET = Budget(steps=4000, scheduler="asha", grace_steps=1000, reduction=3)
