#!/usr/bin/env bash
# QE-EBM with the two estimators of run.sh in each other's place: the referenceless regression is the energy, and the unified
# metric judges and chooses the checkpoints. run.sh comes first, with seed 1 at least. QE-DYNAMIC ranks gold before samples.
#   ENERGYMT_DATA=/path/to/data examples/qe_ebm/regression.sh [SEED]...      (about 20 minutes a seed on one core)
# It can be stopped and started again.
set -euo pipefail
cd "$(dirname "$0")/../.."
export ENERGYMT_RUNS="${ENERGYMT_RUNS:-$PWD/runs}"
seeds=("${@:-1}")
estimators="$ENERGYMT_RUNS/estimators"
with=(--config examples/qe_ebm/multi30k.yaml --set steps=300 --set evaluate_every=50 --set choose_by=judge
    --set "quality=$estimators/multi30k-judge/model" --set "judge=$estimators/multi30k/model")

for seed in "${seeds[@]}"; do
    energymt train reinforce "${with[@]}" --set "seed=$seed" --name "qe_ebm/regression-reinforce-$seed"
    energymt train qe_ebm "${with[@]}" --set "seed=$seed" --name "qe_ebm/regression-static-$seed"
    energymt train qe_ebm "${with[@]}" --set "seed=$seed" --set dynamic.learns=head --set dynamic.form=ranking \
        --name "qe_ebm/regression-dynamic-$seed"
done
python -m benchmarks.qe_ebm regression --seeds "${seeds[@]}"
