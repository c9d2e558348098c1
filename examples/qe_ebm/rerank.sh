#!/usr/bin/env bash
# What the estimator is worth without any training: it re-ranks samples or a beam of the supervised start of run.sh,
# and chrF chooses by consensus, each against the start's own search; and the same of a trained QE-STATIC.
# run.sh comes first, with seed 1 (its start and estimators), and pooled.sh for the last line.
#   ENERGYMT_DATA=/path/to/data examples/qe_ebm/rerank.sh          (about 25 minutes beside other work)
set -euo pipefail
cd "$(dirname "$0")/../.."
export ENERGYMT_RUNS="${ENERGYMT_RUNS:-$PWD/runs}"
export OMP_NUM_THREADS=1
estimator="$ENERGYMT_RUNS/estimators/multi30k/model"
start="$ENERGYMT_RUNS/qe_ebm/start-1/model"

score() {
    energymt evaluate "$1" --against "$1" "${@:2}" --source de --target en \
        --data "$ENERGYMT_DATA/multi30k/test_2016_flickr.tsv.gz" \
        --judge "$estimator" --judge "$ENERGYMT_RUNS/estimators/multi30k-judge/model"
}
for temperature in 1 0.5; do
    for chooser in "$estimator" chrf; do
        score "$start" --beam 1 --samples 16 --temperature "$temperature" --rerank "$chooser"
    done
done
score "$start" --beam 16 --rerank "$estimator"
score "$ENERGYMT_RUNS/qe_ebm/pooled-static-1/model" --beam 1 --samples 16 --temperature 0.5 --rerank "$estimator"
