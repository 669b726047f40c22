#!/usr/bin/env bash
# Make the shipped data again, from nothing; finished chunks are kept, so it can be stopped at any time.
# usage: tools/mini/make_all.sh GENERATOR_PYTHON LAMM_PYTHON
set -euo pipefail
cd "$(dirname "$0")/../.."
generator=$1
lamm=$2
export OMP_NUM_THREADS=1
for subset in molecules_wb97x molecules_pbe0; do
  "$generator" tools/mini/molecules_dft.py "$subset"
done
for subset in molecules_unlabelled molecules_gfn2; do
  "$generator" tools/mini/molecules_nci.py "$subset"
done
"$generator" tools/mini/molecules_dynamics.py
"$generator" tools/mini/molecules_fragments.py
for subset in slabs_chgnet oxides_chgnet oxides_is2re_chgnet downstream_sevennet crystals_chgnet structure_types_chgnet; do
  "$generator" tools/mini/periodic.py "$subset"
done
"$lamm" tools/mini/build_stores.py
