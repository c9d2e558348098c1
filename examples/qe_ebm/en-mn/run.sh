#!/usr/bin/env bash
# The whole path of QE-EBM for a low-resource pair, English to Mongolian, in order.
#   ENERGYMT_DATA=/path/to/data examples/qe_ebm/en-mn/run.sh          (about 45 minutes on one core)
# It can be stopped and started again.
set -euo pipefail
cd "$(dirname "$0")/../../.."
export ENERGYMT_RUNS="${ENERGYMT_RUNS:-$PWD/runs}"
here=examples/qe_ebm/en-mn
start="$ENERGYMT_RUNS/en-mn/start-1/model"
out="$ENERGYMT_RUNS/estimators"
mkdir -p "$out"

# Two translators; see start.yaml for what the second is good for.
energymt train supervised --config "$here/start.yaml" --name en-mn/start-1
energymt train supervised --config "$here/start.yaml" --set "vocabulary.path=$start" --set train.share=0.5 --set steps=800 \
    --name en-mn/half

# Their outputs on the labelled text and on dev, as they are and with some of their words damaged, judged by chrF; some
# of them given to other sources, and some cut.
for text in ntrex:ntrex/newstest2019 wagtail:localisation/wagtail.en-mn tatoeba:tatoeba/all.mn-en; do
    [[ -e "$out/en-mn-${text%%:*}.tsv" ]] || energymt data judge "$start" "$ENERGYMT_RUNS/en-mn/half/model" \
        --damage 0.15 --damage 0.4 --unrelated 0.3 --cut 0.3 --output "$out/en-mn-${text%%:*}.tsv" \
        --data "$ENERGYMT_DATA/${text##*:}.tsv.gz" --source en --target mn
done
energymt train estimator --config "$here/estimator.yaml" --name estimators/en-mn
energymt train estimator --config "$here/judge.yaml" --name estimators/en-mn-judge

energymt train qe_ebm --config "$here/qe_ebm.yaml" --name en-mn/static-1
energymt evaluate "$ENERGYMT_RUNS/en-mn/static-1/model" --against "$start" \
    --data "$ENERGYMT_DATA/flores200/devtest.tsv.gz" --source en --target mn \
    --judge "$out/en-mn/model" --judge "$out/en-mn-judge/model" --beam 1 --json "$ENERGYMT_RUNS/en-mn/flores.json"
