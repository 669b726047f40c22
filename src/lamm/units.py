"""eV, Å and eV/Å, and the factors that bring other units there.

Every factor is a CODATA 2018 value (https://physics.nist.gov/cuu/Constants/). Readers convert once,
with `energy_factor` and its siblings, and the card of a store records unit and factor.
"""

from __future__ import annotations

from typing import Final

from lamm.errors import ConfigError, nearest_names

CODATA_YEAR: Final = 2018

HARTREE: Final = 27.211386245988
"""One Hartree in eV."""
BOHR: Final = 0.529177210903
"""One bohr in Å."""
RYDBERG: Final = HARTREE / 2
"""One Rydberg in eV."""
KCAL_PER_MOL: Final = 4184.0 / (1.602176634e-19 * 6.02214076e23)
"""One thermochemical kcal/mol in eV: 0.0433641."""
KJ_PER_MOL: Final = 1000.0 / (1.602176634e-19 * 6.02214076e23)
"""One kJ/mol in eV: 0.0103643."""
GPA: Final = 1e9 * 1e-30 / 1.602176634e-19
"""One GPa in eV/Å³: 0.00624151."""
BOLTZMANN: Final = 8.617333262e-5
"""Boltzmann's constant in eV/K."""

ENERGY: Final[dict[str, float]] = {
    "eV": 1.0,
    "meV": 1e-3,
    "Hartree": HARTREE,
    "Rydberg": RYDBERG,
    "kcal/mol": KCAL_PER_MOL,
    "kJ/mol": KJ_PER_MOL,
}
LENGTH: Final[dict[str, float]] = {"Å": 1.0, "bohr": BOHR, "nm": 10.0, "pm": 0.01}
STRESS: Final[dict[str, float]] = {
    "eV/Å³": 1.0,
    "GPa": GPA,
    "kbar": 0.1 * GPA,
    "Hartree/bohr³": HARTREE / BOHR**3,
}
_SPELLINGS: Final[dict[str, str]] = {
    "ev": "eV",
    "mev": "meV",
    "ha": "Hartree",
    "hartree": "Hartree",
    "ry": "Rydberg",
    "rydberg": "Rydberg",
    "kcal/mol": "kcal/mol",
    "kj/mol": "kJ/mol",
    "å": "Å",
    "a": "Å",
    "ang": "Å",
    "angstrom": "Å",
    "bohr": "bohr",
    "nm": "nm",
    "pm": "pm",
    "ev/å³": "eV/Å³",
    "ev/å^3": "eV/Å³",
    "ev/ang^3": "eV/Å³",
    "ev/a^3": "eV/Å³",
    "gpa": "GPa",
    "kbar": "kbar",
    "kb": "kbar",
    "hartree/bohr³": "Hartree/bohr³",
    "hartree/bohr^3": "Hartree/bohr³",
}


def _factor(unit: str, table: dict[str, float], quantity: str) -> float:
    name = _SPELLINGS.get(unit.strip().lower(), unit)
    if name not in table:
        raise ConfigError(
            f"unknown {quantity} unit '{unit}'. {nearest_names(unit, table)}\n"
            f"  Units of {quantity} that can be converted: {', '.join(table)}."
        )
    return table[name]


def energy_factor(unit: str) -> float:
    """What an energy in `unit` is multiplied by to be in eV.

    Raises:
        ConfigError: the unit is unknown.
    """
    return _factor(unit, ENERGY, "energy")


def length_factor(unit: str) -> float:
    """What a length in `unit` is multiplied by to be in Å.

    Raises:
        ConfigError: the unit is unknown.
    """
    return _factor(unit, LENGTH, "length")


def force_factor(unit: str) -> float:
    """What a force in `unit`, written energy/length, is multiplied by to be in eV/Å.

    Raises:
        ConfigError: the unit isn't an energy over a length.
    """
    energy, slash, length = unit.rpartition("/")
    if not slash:
        raise ConfigError(
            f"unknown force unit '{unit}'. Write it as energy/length, for instance 'Hartree/bohr'."
        )
    return energy_factor(energy) / length_factor(length)


def stress_factor(unit: str) -> float:
    """What a stress in `unit` is multiplied by to be in eV/Å³ (the sign is the reader's matter).

    Raises:
        ConfigError: the unit is unknown.
    """
    return _factor(unit, STRESS, "stress")
