#!/usr/bin/env bash
# The methods of run.sh for 300 steps with the estimator in a pool beside them, as on a cluster: what of a step is spent
# waiting for it; with the first seed also QE-STATIC with the estimator in process, and with samples drawn one step ahead.
# run.sh comes first, with seed 1 (its start and estimators).
#   ENERGYMT_DATA=/path/to/data examples/qe_ebm/pooled.sh [SEED]...      (about half an hour a seed on 2 cores)
# It can be stopped and started again.
set -euo pipefail
cd "$(dirname "$0")/../.."
export ENERGYMT_RUNS="${ENERGYMT_RUNS:-$PWD/runs}"
export OMP_NUM_THREADS=1
seeds=("${@:-1}")
estimator="$ENERGYMT_RUNS/estimators/multi30k/model"
with=(--config examples/qe_ebm/multi30k.yaml --set steps=300 --set evaluate_every=50 --set choose_by=judge)

trap 'energymt pool down --name multi30k; energymt pool down --name multi30k-pupil' EXIT
energymt pool up "$estimator" --name multi30k --set cpus=0.5
energymt pool up "$estimator" --name multi30k-pupil --set cpus=0.5 --set learns=head
for seed in "${seeds[@]}"; do
    of=("${with[@]}" --set "seed=$seed")
    pooled=("${of[@]}" --set quality=pool:multi30k)
    energymt train qe_ebm "${pooled[@]}" --name "qe_ebm/pooled-static-$seed"
    if [[ "$seed" == "${seeds[0]}" ]]; then
        energymt train qe_ebm "${pooled[@]}" --set samples_ahead=true --name "qe_ebm/pooled-ahead-$seed"
        energymt train qe_ebm "${of[@]}" --name "qe_ebm/pooled-local-$seed"
    fi
    energymt train reinforce "${pooled[@]}" --name "qe_ebm/pooled-reinforce-$seed"
    energymt train ppo "${pooled[@]}" --set steps=150 --set evaluate_every=25 --name "qe_ebm/pooled-ppo-$seed"
    energymt train qe_ebm "${of[@]}" --set quality=pool:multi30k-pupil --set "run_name=pooled-dynamic-$seed" \
        --set dynamic.form=ranking --name "qe_ebm/pooled-dynamic-$seed"
done
python -m benchmarks.qe_ebm pooled --seeds "${seeds[@]}"
