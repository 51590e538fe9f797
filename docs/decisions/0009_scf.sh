#!/bin/sh
# Self-consistent results of ms2, the analytic recipes and linear attention side by side.
# Run: docs/decisions/0009_scf.sh FOLDER [WORKERS]; finished calculations are kept.
# Page: FOLDER/report.html. PYSCF_MAX_MEMORY=8000 (MB) keeps the basis at all points from cycle to cycle.
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

reactions() { # MODEL SET GRID_LEVEL
    taufree evaluate reactions "$out/reactions" --model "$1" --set "$2" --grid-level "$3" \
        --workers "$workers" --json "$out/results/$2-$1.json"
}

mkdir -p "$out/results"
for model in ms2 PCopt PC07 GE2 CSK4 CSK1 TFvW; do
    scf $model scf-$model
    reactions $model dbh24 3
    reactions $model s22 1
    taufree evaluate solids "$out/solids" --model $model --workers "$workers" \
        --json "$out/results/solids-$model.json"
done
for model in ms2 PCopt "$weights/gda"; do
    scf "$model" "prototype-$(basename "$model")" --name LiF --name CO --name S --name P2 \
        --name PH2 --name CH --name C2H2 --name Na2
done
taufree report "$out/results" --out "$out/report.html"
