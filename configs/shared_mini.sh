#!/usr/bin/env bash
# Ingests genuine samples of the kinds of subset that Table 2 has, for configs/shared_mini.yaml.
# usage: bash configs/shared_mini.sh FOLDER-OF-THE-SAMPLES FOLDER-FOR-THE-STORES
set -euo pipefail
data=$1 stores=$2
cards=$(dirname "$0")/cards
parts=$stores/parts   # what is joined below: several sources of one level of theory become one subset
mkdir -p "$parts"

add() {  # add STORE NAME-OR-FORMAT [OPTION...] SOURCE...
  [ -e "$1" ] || lamm data ingest "${@:2}" --to "$1"
}

# S2EF-Total: catalysts, oxides and bulk with PBE+U, bulk with PBE
add "$stores/oc20_s2ef" oc20-s2ef "$data"/pretrain/oc20_s2ef/{train,val}
add "$parts/oc22" oc22-s2ef "$data"/pretrain/oc22_s2ef/*.pkl
add "$parts/mptrj" extxyz --card "$cards/mptrj.yaml" "$data/pretrain/mptrj/mptrj-random-1k.xyz.xz"
add "$stores/oc22_mptrj" store --card "$cards/oc22_mptrj.yaml" "$parts/oc22" "$parts/mptrj"
add "$parts/mlearn" pymatgen --card "$cards/mlearn.yaml" "$data/pretrain/mlearn"
add "$parts/lips" oc-lmdb --card "$cards/lips.yaml" "$data/pretrain/lips/data.lmdb"
add "$stores/mlearn_lips" store --card "$cards/mlearn_lips.yaml" "$parts/mlearn" "$parts/lips"

# S2EF-Total: molecules, four sources of one level of theory, and QM7-X
add "$parts/transition1x" oc-lmdb --card "$cards/transition1x_jmp.yaml" "$data"/pretrain/transition1x/*.pkl
add "$parts/ani1x" oc-lmdb --card "$cards/ani1x_jmp.yaml" "$data"/pretrain/ani1x/*.pkl
add "$parts/comp6" comp6 "$data/pretrain/comp6_s66x8"
add "$parts/bpa3" extxyz --card "$cards/bpa3.yaml" "$data/pretrain/bpa3/train_300K.xyz.xz"
add "$stores/wb97x" store --card "$cards/wb97x.yaml" "$parts"/{transition1x,ani1x,comp6,bpa3}
add "$stores/qm7x" npz --card "$cards/qm7x_npz.yaml" "$data/pretrain/qm7x"

# energies alone, no labels at all
add "$stores/nabladft" ase --card "$cards/nabladft.yaml" "$data/pretrain/nabladft/test_database.db"
add "$stores/pubchem3d_like" sdf --card "$cards/pubchem3d_like.yaml" "$data/pretrain/pubchem3d_like"

# IS2RE: energies of the relaxed structures
add "$stores/oc20_is2re" extxyz --card "$cards/oc20_is2re_total.yaml" "$data/pretrain/oc20_is2re/initial.extxyz.xz"
add "$stores/alexandria_is2re" extxyz --card "$cards/alexandria_is2re.yaml" "$data/pretrain/alexandria_pressure_is2re"
add "$stores/odac_is2re" ase --card "$cards/odac_deform.yaml" "$data/pretrain/odac_mof/deform_dataset.db"

# downstream: a functional of no subset
add "$stores/mad_pbesol" extxyz --card "$cards/mad_pbesol.yaml" "$data/downstream/mad_pbesol"
