"""A caller in a process of its own: joins the pool of this machine, and prints what it gets for some sentences."""

import json
import sys

from energymt.models.estimator_folder import load_estimator
from energymt.pool import ground
from energymt.pool.connection import Connection
from energymt.pool.estimator import PooledEstimator
from tests import estimators

ground.join()
local = load_estimator(sys.argv[1])
target = estimators.target_of(local, estimators.TRANSLATIONS)
target.emb_BTD.requires_grad_()
with Connection(deadline=60.0) as connection:
    pooled = PooledEstimator(connection.client, local.table_VD, local.vocabulary)
    score_B = pooled(estimators.source_of(local, estimators.SOURCES), target)
    score_B.sum().backward()
assert target.emb_BTD.grad is not None
print(json.dumps({"scores": score_B.tolist(), "slopes": target.emb_BTD.grad.sum((1, 2)).tolist()}))
