#!/usr/bin/env bash
# What the parts of QE-STATIC are worth on Multi30k, half as many steps as in the table; run.sh comes first, with seed 1.
# The judge chooses the checkpoints: by chrF the start is often the best.
#   ENERGYMT_DATA=/path/to/data examples/qe_ebm/variants.sh          (about 75 minutes on one core)
# It can be stopped and started again. All begin from the one supervised start, which has seen a fifth of the pairs: the
# shares say what labelled pairs are worth in this step, not what they are worth to a start.
set -euo pipefail
cd "$(dirname "$0")/../.."
export ENERGYMT_RUNS="${ENERGYMT_RUNS:-$PWD/runs}"
out="$ENERGYMT_RUNS/qe_ebm"
estimators="$ENERGYMT_RUNS/estimators"
text="$ENERGYMT_DATA/multi30k/train.tsv.gz"
mkdir -p "$out"
with=(--config examples/qe_ebm/multi30k.yaml --set steps=300 --set evaluate_every=50 --set choose_by=judge)

energymt train qe_ebm "${with[@]}" --name qe_ebm/variant-static-1

# The better half of the labelled pairs; the nearest neighbours of the labelled sources as the unlabelled ones.
[[ -e "$out/filtered.tsv" ]] || energymt data filter "$estimators/multi30k/model" --data "$text" --source de --target en \
    --share 0.2 --quantile 0.5 --output "$out/filtered.tsv"
filtered=(--set "train.path=$out/filtered.tsv" --set train.source=source --set train.target=target --set train.share=1.0)
energymt train qe_ebm "${with[@]}" "${filtered[@]}" --name qe_ebm/variant-filter-1
[[ -e "$out/neighbours" ]] || energymt data neighbours "$out/start-1/model" --labelled "$text" --share 0.2 \
    --unlabelled "$text" --source de --output "$out/neighbours"
energymt train qe_ebm "${with[@]}" --set "neighbours=$out/neighbours" --name qe_ebm/variant-neighbours-1

# No sources but the labelled ones; fewer labelled pairs, and all of them.
energymt train qe_ebm "${with[@]}" --set unlabelled=null --name qe_ebm/variant-labelled-sources-1
energymt train qe_ebm "${with[@]}" --set train.share=0.05 --name qe_ebm/variant-share-0.05-1
energymt train qe_ebm "${with[@]}" --set train.share=1.0 --name qe_ebm/variant-share-1.0-1

# The two estimators change places.
energymt train qe_ebm "${with[@]}" --set "quality=$estimators/multi30k-judge/model" \
    --set "judge=$estimators/multi30k/model" --name qe_ebm/variant-regression-1

# The estimator learns to rank gold before samples, which asks no score to be a log-density; and a smaller energy.
energymt train qe_ebm "${with[@]}" --set dynamic.learns=head --set dynamic.form=ranking --name qe_ebm/variant-ranking-1
energymt train qe_ebm "${with[@]}" --set balance.weight=0.1 --name qe_ebm/variant-weight-0.1-1

python -m benchmarks.qe_ebm variants --seeds 1
