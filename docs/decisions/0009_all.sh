#!/bin/sh
# ms2, the analytic recipes and the learned comparators side by side, in all that is evaluated.
# Run: docs/decisions/0009_all.sh FOLDER DATA [WORKERS]; finished calculations are kept.
# Page: FOLDER/report.html. PYSCF_MAX_MEMORY=8000 (MB) keeps the basis at all points from cycle to cycle.
set -e
out=$1
data=$2
workers=${3:-1}
here=$(dirname "$0")
published=$here/0009_weights/published
gda=$here/0009_weights/gda

reactions() { # MODEL SET GRID_LEVEL
    taufree evaluate reactions "$out/reactions" --model "$1" --set "$2" --grid-level "$3" \
        --workers "$workers" --json "$out/results/$2-$1.json"
}

mkdir -p "$out/results"
taufree evaluate density "$data" --grid-level 1 --json "$out/results/density.json" \
    --comparator "$published.safetensors" --comparator "$gda.safetensors"
taufree evaluate invariance "$data" --json "$out/results/invariance.json" \
    --comparator "$published.safetensors" --comparator "$gda.safetensors"
taufree evaluate limits "$data" --json "$out/results/limits.json"
for model in ms2 PCopt PC07 GE2 CSK4 CSK1 TFvW; do
    taufree evaluate scf "$out/scf" --model $model --grid-level 1 --workers "$workers" \
        --json "$out/results/scf-$model.json"
    reactions $model dbh24 3
    reactions $model s22 1
    taufree evaluate solids "$out/solids" --model $model --workers "$workers" \
        --json "$out/results/solids-$model.json"
done
taufree report "$out/results" --out "$out/report.html" --log "$published.jsonl" --log "$gda.jsonl"

# learned comparators alone: an SCF each, for few converge
python "$here/0009_learned.py" "$gda" "$out/learned-gda.json" 50 \
    LiF CO S P2 PH2 CH C2H2 Na2 H Li C O F Na P
python "$here/0009_learned.py" "$published" "$out/learned-published.json" 50 H
python "$here/0009_learned.py" "$published" "$out/learned-published.json" 14 LiF
