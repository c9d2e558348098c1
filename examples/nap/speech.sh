#!/usr/bin/env bash
# Spoken digits: a recogniser, a proxy of its word error rate, and the alpha curve on the test strings.
#   ENERGYMT_DATA=/path/to/data examples/nap/speech.sh          (about 20 minutes on one core)
# It can be stopped and started again.
set -euo pipefail
cd "$(dirname "$0")/../.."
export ENERGYMT_RUNS="${ENERGYMT_RUNS:-$PWD/runs}"
out="$ENERGYMT_RUNS/speech"
curves="$ENERGYMT_RUNS/nap"
mkdir -p "$curves"
model="$out/digits-1/model"
proxy="$ENERGYMT_RUNS/nap/proxy-speech/model"
speech="$ENERGYMT_DATA/speech"

[[ -e "$out/digits/proxy.npz" ]] || energymt data digits "$speech/fsdd.npz" "$out/digits" --index "$speech/fsdd_index.tsv" --proxy 2000
energymt train speech --config examples/speech/digits.yaml --name speech/digits-1
energymt train proxy_speech --config examples/nap/speech-proxy.yaml --name nap/proxy-speech
curve="$curves/curve-speech.json"
[[ -e "$curve" ]] || energymt alpha-curve "$model" --proxy "$proxy" --data "$out/digits/test.npz" --text text \
    --alpha 0.02 --alpha 0.05 --alpha 0.1 --alpha 0.2 --alpha -0.1 --beam 1 --beam 5 --json "$curve"
