#!/usr/bin/env bash
# The estimators of docs/results.md, in order; the translators of examples/multi30k/run.sh come first.
#   ENERGYMT_DATA=/path/to/data examples/estimators/run.sh          (about an hour on 2 cores)
set -euo pipefail
cd "$(dirname "$0")/../.."
export ENERGYMT_RUNS="${ENERGYMT_RUNS:-$PWD/runs}"
out="$ENERGYMT_RUNS/estimators"
mkdir -p "$out"

# Outputs of a teacher, a CMLM and a tagger, as they are and with a fifth of their words damaged, judged by chrF; some
# of them given to other sources, and some cut.
for split in train:train val:dev test_2016_flickr:test; do
    [[ -e "$out/multi30k-${split##*:}.tsv" ]] || energymt data judge \
        "$ENERGYMT_RUNS/multi30k/teacher/model" "$ENERGYMT_RUNS/multi30k/masked/model" \
        "$ENERGYMT_RUNS/multi30k/tagger/model" --damage 0.2 --unrelated 0.3 --cut 0.3 --output "$out/multi30k-${split##*:}.tsv" \
        --data "$ENERGYMT_DATA/multi30k/${split%%:*}.tsv.gz" --source de --target en
done
for name in multi30k mlqe-ro-en mlqe-en-de; do
    energymt train estimator --config "examples/estimators/$name.yaml" --name "estimators/$name"
done

columns=(--source source --target translation)
teacher="$ENERGYMT_RUNS/multi30k/teacher/model"
judged=(--data "$out/multi30k-test.tsv" "${columns[@]}" --score score --teacher "$teacher")
energymt meta-evaluate "$out/multi30k/model" "${judged[@]}"
energymt meta-evaluate "$out/multi30k/model" "${judged[@]}" --only "system=$teacher"
energymt probe "$out/multi30k/model" --data "$ENERGYMT_DATA/multi30k/test_2016_flickr.tsv.gz" \
    --source de --target en --wrong-language fr
for pair in ro-en en-de; do
    energymt meta-evaluate "$out/mlqe-$pair/model" --data "$ENERGYMT_DATA/mlqe-pe/$pair/test.tsv.gz" \
        "${columns[@]}" --score z_mean --baseline model_score
    energymt probe "$out/mlqe-$pair/model" --data "$ENERGYMT_DATA/mlqe-pe/$pair/test.tsv.gz" \
        --source source --target post_edit
done
