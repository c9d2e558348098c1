#!/usr/bin/env bash
# Everything behind the NAP tables of docs/results.md, in order; examples/estimators/run.sh comes first.
#   ENERGYMT_DATA=/path/to/data examples/nap/run.sh          (about three hours on 2 cores)
# It can be stopped and started again.
set -euo pipefail
cd "$(dirname "$0")/../.."
export ENERGYMT_RUNS="${ENERGYMT_RUNS:-$PWD/runs}"
out="$ENERGYMT_RUNS/nap"
mkdir -p "$out"
estimators="$ENERGYMT_RUNS/estimators"
prefix="translate German to English: "
text=(--data "$ENERGYMT_DATA/multi30k/test_2016_flickr.tsv.gz" --source de --target en --prefix "$prefix")
judges=(--judge "$estimators/multi30k/model" --judge "$estimators/multi30k-judge/model")
alphas=(--alpha 0.02 --alpha 0.05 --alpha 0.1 --alpha 0.2 --alpha 0.3 --alpha 0.5 --alpha -0.1)

for size in mini laptop wide; do
    energymt train supervised --config examples/nap/t5.yaml --set "model.variant=t5-$size" --name "nap/t5-$size"
    model="$out/t5-$size/model"
    energymt train proxy --config examples/nap/proxy.yaml --set "translator=$model" --name "nap/proxy-$size"
    energymt train proxy --config examples/nap/transfer.yaml --set "translator=$model" --name "nap/transfer-$size"
    for proxy in proxy transfer; do
        curve="$out/curve-$proxy-$size.json"
        [[ -e "$curve" ]] || energymt alpha-curve "$model" --proxy "$out/$proxy-$size/model" "${text[@]}" "${judges[@]}" \
            "${alphas[@]}" --beam 1 --beam 2 --beam 4 --beam 8 --json "$curve"
    done
done

# Another shape of the proxy.
same=(--config examples/nap/proxy.yaml)
for layers in 1 2; do
    energymt train proxy "${same[@]}" --set "proxy.layers=$layers" --name "nap/proxy-laptop-layers-$layers"
done
for hidden in 64 1024; do
    energymt train proxy "${same[@]}" --set "proxy.hidden=$hidden" --name "nap/proxy-laptop-hidden-$hidden"
done

# A proxy learnt on DE-EN, in other directions and on news.
model="$out/t5-laptop/model"
for direction in "en de English German" "fr en French English" "cs en Czech English"; do
    read -r from to named into <<< "$direction"
    curve="$out/curve-transfer-$from-$to.json"
    [[ -e "$curve" ]] || energymt alpha-curve "$model" --proxy "$out/transfer-laptop/model" "${alphas[@]}" --json "$curve" \
        --data "$ENERGYMT_DATA/multi30k/test_2016_flickr.tsv.gz" --source "$from" --target "$to" \
        --prefix "translate $named to $into: "
done
curve="$out/curve-transfer-news.json"
[[ -e "$curve" ]] || energymt alpha-curve "$model" --proxy "$out/transfer-laptop/model" "${alphas[@]}" --json "$curve" \
    --data "$ENERGYMT_DATA/wmt-news/newstest2016.de-en.tsv.gz" --source de --target en --prefix "$prefix" --rows 1000
