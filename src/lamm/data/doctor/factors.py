"""The factors by which a number is off when its unit was mistaken, and what each mistake is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lamm.units import BOHR, GPA, HARTREE, KCAL_PER_MOL, KJ_PER_MOL, RYDBERG


class Mistake(NamedTuple):
    """A factor between what is stored and what is right, and how it comes about."""

    factor: float
    text: str


def _both_ways(units: dict[str, float]) -> tuple[Mistake, ...]:
    """Mistakes with each unit: left unconverted, and converted though it wasn't in that unit."""
    found = []
    for name, value in units.items():
        found.append(Mistake(1 / value, f"the source is in {name} and wasn't converted"))
        found.append(Mistake(value, f"they were converted from {name} and aren't in {name}"))
    return tuple(found)


ENERGY = _both_ways(
    {
        "Hartree": HARTREE,
        "Rydberg": RYDBERG,
        "kcal/mol": KCAL_PER_MOL,
        "kJ/mol": KJ_PER_MOL,
        "meV": 1e-3,
    }
)
FORCES = _both_ways(
    {
        "Hartree/Å": HARTREE,
        "Hartree/bohr": HARTREE / BOHR,
        "Rydberg/bohr": RYDBERG / BOHR,
        "kcal/mol/Å": KCAL_PER_MOL,
        "kJ/mol/Å": KJ_PER_MOL,
        "kJ/mol/nm": KJ_PER_MOL / 10,
        "eV/bohr": 1 / BOHR,
        "meV/Å": 1e-3,
    }
)
LENGTH = _both_ways({"bohr": BOHR, "nm": 10.0, "pm": 0.01})
STRESS = _both_ways({"GPa": GPA, "kbar": 0.1 * GPA})
_ALIKE = 0.2
"""Natural logarithm; a mistake this much further away than the nearest is named too."""


def nearest(factor: float, mistakes: tuple[Mistake, ...], within: float) -> Mistake | None:
    """The mistake whose factor is nearest on a logarithmic scale, or None where none is `within`.

    Args:
        factor: what was measured, positive.
        mistakes: those that come into question; 1, no mistake, does too.
        within: largest natural logarithm of the ratio.
    """
    if not factor > 0 or not np.isfinite(factor):
        return None
    best = min(mistakes, key=lambda one: abs(np.log(factor / one.factor)))
    off = abs(float(np.log(factor / best.factor)))
    return best if off < min(within, abs(float(np.log(factor)))) else None


def explain(factor: float, mistakes: tuple[Mistake, ...], within: float = 0.5) -> str:
    """In words, the mistakes that a factor speaks for, the nearest first."""
    best = nearest(factor, mistakes, within)
    if best is None:
        return f"a factor of {factor:.3g}, which is no usual mistake of units"
    limit = abs(float(np.log(factor / best.factor))) + _ALIKE
    others = sorted(
        (one for one in mistakes if one is not best and abs(np.log(factor / one.factor)) < limit),
        key=lambda one: abs(float(np.log(factor / one.factor))),
    )
    texts = [f"{one.text} (a factor of {one.factor:.4g})" for one in (best, *others[:2])]
    return "perhaps " + ", or ".join(texts)
