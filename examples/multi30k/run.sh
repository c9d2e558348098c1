#!/usr/bin/env bash
# Everything behind the Multi30k tables of docs/results.md, in order. Each step goes on where it was stopped.
#   ENERGYMT_DATA=/path/to/data examples/multi30k/run.sh          (some hours on 2 cores)
set -euo pipefail
cd "$(dirname "$0")/../.."
export ENERGYMT_RUNS="${ENERGYMT_RUNS:-$PWD/runs}"
train() { energymt train "$1" --config "examples/multi30k/$2.yaml" --name "multi30k/$3" "${@:4}"; }

train supervised teacher teacher
train masked masked masked
train distilled distilled distilled
train engine engine engine
train engine engine engine-mixed --set masked_weight=10 --set steps=400
train engine engine engine-sx-sx --set score=SX --set steps=300
train engine engine engine-rate-1e-3 --set optimizer.learning_rate=1e-3 --set steps=300
train engine engine engine-cold --set model.init=null --set optimizer.learning_rate=1e-3

train supervised recurrent-teacher recurrent-teacher
train masked tagger tagger
lstm="teacher=$ENERGYMT_RUNS/multi30k/recurrent-teacher/model"
train distilled tagger tagger-distilled --set "$lstm"
train engine tagger-engine tagger-engine
train distilled tagger tagger-distilled-long --set "$lstm" --set steps=2500 --set optimizer.learning_rate=3e-3
better="model.init=$ENERGYMT_RUNS/multi30k/tagger-distilled-long/model"
train engine tagger-engine tagger-engine-long --set "$better" --set steps=300 --set optimizer.learning_rate=2e-4
train engine tagger-engine tagger-engine-mixed --set "$better" --set steps=200 --set optimizer.learning_rate=2e-4 \
    --set masked_weight=10

python -m benchmarks.multi30k
