"""What atoms contribute to total energies: a yardstick for the unit of an energy.

Two scales cover most data. Codes that treat all electrons give about the energy of the free atoms,
for which Thomas, Fermi, Scott and Schwinger have a formula that is right within a few per cent.
VASP's totals are small numbers relative to its own atoms; about the energy of the elemental
solids, which are tabulated.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lamm.units import HARTREE

_Z = np.arange(256, dtype=np.float64)
ALL_ELECTRON: NDArray[np.float64] = -HARTREE * (
    0.768745 * _Z ** (7 / 3) - 0.5 * _Z**2 + 0.269900 * _Z ** (5 / 3)
)
"""eV of a neutral atom (Thomas-Fermi, with Scott's and Schwinger's corrections): hydrogen 8 % too
low, carbon to krypton within 1 %."""

_PBE_SOLIDS = (
    "H -3.39 He 0.0 Li -1.91 Be -3.74 B -6.68 C -9.22 N -8.32 O -4.95 F -1.91 Ne -0.03 Na -1.31 "
    "Mg -1.60 Al -3.75 Si -5.42 P -5.41 S -4.14 Cl -1.85 Ar -0.07 K -1.10 Ca -2.00 Sc -6.33 "
    "Ti -7.90 V -9.08 Cr -9.65 Mn -9.16 Fe -8.47 Co -7.11 Ni -5.78 Cu -4.10 Zn -1.26 Ga -3.03 "
    "Ge -4.62 As -4.66 Se -3.50 Br -1.64 Kr -0.06 Rb -0.98 Sr -1.69 Y -6.47 Zr -8.55 Nb -10.10 "
    "Mo -10.85 Tc -10.36 Ru -9.27 Rh -7.36 Pd -5.18 Ag -2.83 Cd -0.91 In -2.75 Sn -4.01 Sb -4.13 "
    "Te -3.14 I -1.52 Xe -0.04 Cs -0.89 Ba -1.92 La -4.93 Ce -5.93 Pr -4.78 Nd -4.77 Pm -4.75 "
    "Sm -4.72 Eu -10.26 Gd -14.08 Tb -4.63 Dy -4.60 Ho -4.58 Er -4.57 Tm -4.48 Yb -1.54 Lu -4.52 "
    "Hf -9.96 Ta -11.86 W -12.96 Re -12.44 Os -11.23 Ir -8.84 Pt -6.07 Au -3.27 Hg -0.30 Tl -2.36 "
    "Pb -3.71 Bi -3.89 Th -7.41 Pa -9.51 U -11.29"
)


def _solids() -> NDArray[np.float64]:
    from ase.data import atomic_numbers

    energies = np.full(256, -5.0)
    words = _PBE_SOLIDS.split()
    for symbol, energy in zip(words[::2], words[1::2], strict=True):
        energies[atomic_numbers[symbol]] = float(energy)
    return energies


PAW: NDArray[np.float64] = _solids()
"""eV per atom of the elemental solid or molecule in PBE with VASP's potentials, to about 0.1 eV
(values as the Materials Project lists them); -5 for the elements beyond."""
