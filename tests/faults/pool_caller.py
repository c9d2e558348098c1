"""A caller that sends much, says so, and waits to be killed."""

import sys
import time

from energymt.cluster import runtime
from energymt.pool.connection import Connection
from energymt.pool.estimator import PooledEstimator
from tests import estimators

runtime.start(sys.argv[1], runtime_env={})
local = estimators.estimator("kiwi")
with Connection("hit", beat_seconds=0.5) as connection:
    pooled = PooledEstimator(connection.client, local.table_VD, local.vocabulary)
    source = estimators.source_of(local, estimators.SOURCES)
    target = estimators.target_of(local, estimators.TRANSLATIONS)
    connection.client.alone = True
    tickets = [pooled.submit(source, target) for _ in range(40)]
    print("sent", flush=True)
    time.sleep(120)
