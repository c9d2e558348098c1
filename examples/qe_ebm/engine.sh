#!/usr/bin/env bash
# ENGINE with the energy of the teacher alone, and with that of an estimator beside it at two weights: at the start its
# gradient is then about 0.3 and 0.9 times as long as the teacher's. The teacher and the CMLM of examples/multi30k/run.sh and
# the estimators of examples/estimators/run.sh and examples/qe_ebm/run.sh come first.
#   ENERGYMT_DATA=/path/to/data examples/qe_ebm/engine.sh          (about an hour on one core)
# It can be stopped and started again.
set -euo pipefail
cd "$(dirname "$0")/../.."
export ENERGYMT_RUNS="${ENERGYMT_RUNS:-$PWD/runs}"
export OMP_NUM_THREADS=1
out="$ENERGYMT_RUNS/qe_ebm"
estimator="$ENERGYMT_RUNS/estimators/multi30k/model"
judge="$ENERGYMT_RUNS/estimators/multi30k-judge/model"

energymt train engine --config examples/qe_ebm/engine.yaml --name qe_ebm/engine-teacher-1
for weight in 100 300; do
    energymt train engine --config examples/qe_ebm/engine.yaml --set "quality=$estimator" --set "judge=$judge" \
        --set "quality_weight=$weight" --name "qe_ebm/engine-quality-$weight-1"
done

score() {
    energymt evaluate "$1" --against "$out/engine-teacher-1/model" --source de --target en --iterations 1 \
        --length-beam 3 --data "$ENERGYMT_DATA/multi30k/test_2016_flickr.tsv.gz" \
        --energy "$ENERGYMT_RUNS/multi30k/teacher/model" --judge "$estimator" --judge "$judge"
}
score "$ENERGYMT_RUNS/multi30k/masked/model"
for weight in 100 300; do
    score "$out/engine-quality-$weight-1/model"
done
