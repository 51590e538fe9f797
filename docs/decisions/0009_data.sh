#!/bin/bash
# The densities that the comparators of 0009 learn from and are scored at, and those of the pairs of
# seeds of 0014: molecules, and a part of the crystals. Run: docs/decisions/0009_data.sh [FOLDER]
set -e
folder=${1:-data}
taufree data build "$folder" --grid-level 1 --kind g2 --kind atoms --kind ions --kind diatomics \
    --kind stretched --kind fields
learned=(
    {AlN,BN,BeS}-zincblende{,-gth} BP-zincblende {AlAs,GaN}-zincblende-gth {Be2C,Li2O}-antifluorite{,-gth}
    {K2O,Li2S,Mg2Ge,Mg2Si,Na2O,Na2S}-antifluorite-gth {KH,LiCl,LiH,MgO,NaF,NaH}-rocksalt{,-gth}
    {CaO,CaSe,KBr,KCl,MgS,NaBr}-rocksalt-gth {K,Li}-bcc{,-gth} LiMg-cesiumchloride {Ca,Kr}-fcc
    BN-hexagonal-gth Be-hcp-gth CaF2-fluorite-gth Li-9R-gth S-simple-gth Se-trigonal-gth
)
test=(
    {Al,Ar,Cu}-fcc{,@0.94,@1.06} {C,Si}-diamond{,@0.94,@1.06} C-graphite{,@0.94,@1.06}
    Mg-hcp{,@0.94,@1.06} {AlP,GaAs,SiC}-zincblende{,@0.94,@1.06} {KF,LiF}-rocksalt{,@0.94,@1.06}
    {Al,Ar}-fcc-gth {C,Si}-diamond-gth C-graphite-gth Mg-hcp-gth {AlP,GaAs,SiC}-zincblende-gth
    {KF,LiF}-rocksalt-gth HF-H2O
)
taufree data build "$folder" --grid-level 1 "${learned[@]/#/--name=}" "${test[@]/#/--name=}"
