#!/bin/sh
# Self-consistent results of ms2, the analytic recipes and the learned comparators side by side.
# Run: docs/decisions/0009_scf.sh FOLDER [WORKERS]; finished calculations are kept.
# Page: FOLDER/report.html
set -e
out=$1
workers=${2:-1}
weights=$(dirname "$0")/0009_weights
# of the 48 molecules and atoms of the test split those of at most four atoms
small="P2 HOCl C2H2 SiH2_s3B1d CO ClF3 HCO LiF S ClF PF3 PH2 CH SiH2_s1A1d O3 AlCl3 SiO BF3 OCS SO
    Na2 BeH NO2 BF KF CuH GeO HBr"
prototype="LiF CO S P2 PH2 CH C2H2 Na2"

scf() { # MODEL JSON [OPTION ...]
    model=$1
    json=$2
    shift 2
    taufree evaluate scf "$out/scf" --model "$model" --grid-level 1 --workers "$workers" \
        --json "$out/results/$json.json" "$@"
}

mkdir -p "$out/results"
for model in PCopt ms2; do
    scf $model 48-$model
done
# shellcheck disable=SC2046  # one word a name
for model in ms2 PCopt PC07 GE2 CSK4 CSK1 TFvW; do
    scf $model small-$model $(printf -- '--name %s ' $small)
done
for model in PCopt ms2; do
    taufree evaluate reactions "$out/reactions" --model $model --max-electrons 44 \
        --workers "$workers" --json "$out/results/reactions-$model.json"
done
taufree evaluate solids "$out/solids" --model PCopt --workers "$workers" \
    --json "$out/results/solids-PCopt.json"
# shellcheck disable=SC2046
for model in ms2 PCopt "$weights/gda"; do
    scf "$model" "prototype-$(basename "$model")" $(printf -- '--name %s ' $prototype)
done
taufree report "$out/results" --out "$out/report.html"
