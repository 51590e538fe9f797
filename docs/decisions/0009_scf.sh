#!/bin/sh
# Self-consistent results of ms2, the analytic recipes and linear attention side by side.
# Run: docs/decisions/0009_scf.sh FOLDER [WORKERS]; finished calculations are kept.
# Page: FOLDER/report.html
set -e
out=$1
workers=${2:-1}
weights=$(dirname "$0")/0009_weights

scf() { # MODEL JSON [OPTION ...]
    model=$1
    json=$2
    shift 2
    taufree evaluate scf "$out/scf" --model "$model" --grid-level 1 --workers "$workers" \
        --json "$out/results/$json.json" "$@"
}

mkdir -p "$out/results"
for model in ms2 PCopt PC07 GE2 CSK4 CSK1 TFvW; do
    scf $model scf-$model
    taufree evaluate reactions "$out/reactions" --model $model --max-electrons 44 \
        --workers "$workers" --json "$out/results/reactions-$model.json"
    # insulators of two atoms a cell
    taufree evaluate solids "$out/solids" --model $model --workers "$workers" \
        --json "$out/results/solids-$model.json" --name C-diamond --name Si-diamond \
        --name SiC-zincblende --name AlP-zincblende --name LiF-rocksalt --name KF-rocksalt
done
for model in ms2 PCopt "$weights/gda"; do
    scf "$model" "prototype-$(basename "$model")" --name LiF --name CO --name S --name P2 \
        --name PH2 --name CH --name C2H2 --name Na2
done
taufree report "$out/results" --out "$out/report.html"
