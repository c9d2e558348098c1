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
train engine engine engine-cold --set model.init=null --set optimizer.learning_rate=1e-3

train supervised recurrent-teacher recurrent-teacher
train masked tagger tagger
train distilled tagger tagger-distilled --set "teacher=$ENERGYMT_RUNS/multi30k/recurrent-teacher/model"
train engine tagger-engine tagger-engine

python -m benchmarks.multi30k
