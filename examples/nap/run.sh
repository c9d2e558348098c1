#!/usr/bin/env bash
# Everything behind the NAP tables of docs/results.md for text, in order; examples/estimators/run.sh comes first, and the
# judge of examples/qe_ebm/run.sh. (Speech: speech.sh.)
#   ENERGYMT_DATA=/path/to/data examples/nap/run.sh          (about three hours on one core)
# The translators train a quarter to a half faster with PRECISION=bf16 where the processor has avx512_bf16 or amx.
# It can be stopped and started again.
set -euo pipefail
cd "$(dirname "$0")/../.."
export ENERGYMT_RUNS="${ENERGYMT_RUNS:-$PWD/runs}"
out="$ENERGYMT_RUNS/nap"
mkdir -p "$out"
estimators="$ENERGYMT_RUNS/estimators"
prefix="translate German to English: "
captions="$ENERGYMT_DATA/multi30k/test_2016_flickr.tsv.gz"
text=(--data "$captions" --source de --target en --prefix "$prefix")
judges=(--judge "$estimators/multi30k/model" --judge "$estimators/multi30k-judge/model")
alphas=(--alpha 0.05 --alpha 0.1 --alpha 0.2 --alpha 0.4 --alpha -0.1)

# curve NAME MODEL PROXY OPTION...
curve() {
    [[ -e "$out/curve-$1.json" ]] || energymt alpha-curve "$2" --proxy "$3" "${alphas[@]}" "${@:4}" --json "$out/curve-$1.json"
}

for size in mini laptop wide; do
    rate=2.0e-3
    if [[ $size == wide ]]; then rate=1.0e-3; fi
    energymt train supervised --config examples/nap/t5.yaml --set "model.variant=t5-$size" \
        --set "optimizer.learning_rate=$rate" --set "precision=${PRECISION:-auto}" --name "nap/t5-$size"
    model="$out/t5-$size/model"
    for proxy in proxy transfer; do
        energymt train proxy --config "examples/nap/$proxy.yaml" --set "translator=$model" --name "nap/$proxy-$size"
        curve "$proxy-$size" "$model" "$out/$proxy-$size/model" "${text[@]}" "${judges[@]}" --beam 1 --beam 2 --beam 4 --beam 8
    done
done

# Another shape of the proxy.
same=(--config examples/nap/proxy.yaml)
for layers in 1 5; do
    energymt train proxy "${same[@]}" --set "proxy.layers=$layers" --name "nap/proxy-laptop-layers-$layers"
done
for hidden in 64 1024; do
    energymt train proxy "${same[@]}" --set "proxy.hidden=$hidden" --name "nap/proxy-laptop-hidden-$hidden"
done

# Proxies learnt on DE-EN, in other directions and on news.
model="$out/t5-laptop/model"
for proxy in proxy transfer; do
    for direction in "en de English German" "fr en French English" "cs en Czech English"; do
        read -r from to named into <<< "$direction"
        curve "$proxy-$from-$to" "$model" "$out/$proxy-laptop/model" --data "$captions" --source "$from" --target "$to" \
            --prefix "translate $named to $into: "
    done
    curve "$proxy-news" "$model" "$out/$proxy-laptop/model" --rows 1000 --prefix "$prefix" --source de --target en \
        --data "$ENERGYMT_DATA/wmt-news/newstest2016.de-en.tsv.gz"
done

# What else the metric can be used for: adapters, or a prompt, that learn from the pairs it likes best.
[[ -e "$out/best.tsv" ]] || energymt data filter "$estimators/multi30k/model" --data "$ENERGYMT_DATA/multi30k/train.tsv.gz" \
    --source de --target en --quantile 0.3 --output "$out/best.tsv"
with=(--config examples/nap/adapted.yaml)
energymt train supervised "${with[@]}" --set model.lora.rank=8 --name nap/lora
energymt train supervised "${with[@]}" --set model.prompt.tokens=20 --set optimizer.learning_rate=0.1 --name nap/prompt
for adapted in lora prompt; do
    found="$out/evaluation-$adapted.json"
    [[ -e "$found" ]] || energymt evaluate "$out/$adapted/model" --against "$model" "${text[@]}" "${judges[@]}" --beam 1 \
        --json "$found"
done
python -m benchmarks.nap
