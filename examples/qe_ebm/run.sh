#!/usr/bin/env bash
# The QE-EBM table of docs/results.md, in order; examples/multi30k/run.sh and examples/estimators/run.sh come first.
# All seeds begin from one supervised start, as the authors' begin from one mBART.
#   ENERGYMT_DATA=/path/to/data examples/qe_ebm/run.sh [SEED]...      (about 40 minutes a seed on one core)
# It can be stopped and started again.
set -euo pipefail
cd "$(dirname "$0")/../.."
export ENERGYMT_RUNS="${ENERGYMT_RUNS:-$PWD/runs}"
seeds=("${@:-1}")

energymt train estimator --config examples/estimators/multi30k-judge.yaml --name estimators/multi30k-judge
energymt train supervised --config examples/qe_ebm/supervised.yaml --set seed=1 --name qe_ebm/start-1
for seed in "${seeds[@]}"; do
    energymt train supervised --config examples/qe_ebm/supervised-longer.yaml --set "seed=$seed" --name "qe_ebm/supervised-$seed"
    with=(--config examples/qe_ebm/multi30k.yaml --set "seed=$seed")
    energymt train reinforce "${with[@]}" --name "qe_ebm/reinforce-$seed"
    # Two optimizer steps on the samples of a batch: half the steps are as many updates.
    energymt train ppo "${with[@]}" --set steps=300 --set evaluate_every=50 --name "qe_ebm/ppo-$seed"
    energymt train qe_ebm "${with[@]}" --name "qe_ebm/static-$seed"
    energymt train qe_ebm "${with[@]}" --set dynamic.learns=head --name "qe_ebm/dynamic-$seed"
done
python -m benchmarks.qe_ebm --seeds "${seeds[@]}"
