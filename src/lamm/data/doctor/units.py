"""Whether energies, forces and positions are in eV, eV/Å and Å, by what is known of them together.

The strongest evidence is the work of the forces between neighbouring configurations
(`lamm.data.doctor.pairs`); next the energies of free atoms, for codes with all electrons; then the
stiffness of bonds and the lengths of bonds, which are about the same in all matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lamm.data.doctor import factors
from lamm.data.doctor.energies import EnergyFit, spread
from lamm.data.doctor.evidence import LocalEvidence
from lamm.data.doctor.findings import Finding, Severity
from lamm.data.doctor.pairs import Pairs
from lamm.data.doctor.survey import Survey

USUAL_BOND = 0.93
"""Median nearest distance over covalent radii; 0.81 (compressed) to 1.01 in sound sets."""
BOND_RANGE = (0.62, 1.35)
"""Half-way, on a logarithmic scale, to bohr taken for Å (1.89) and the other way round."""
LEAST_PAIRS = 8
RANK = 0.8
"""Rank correlation of energy and work above which neighbours are conclusive; sound sets 0.87 and
more."""
RATIO_SPREAD = 0.45
"""Largest spread of their ratio over its median; sound sets 0.1 to 0.4."""
CONSISTENT = 0.3
"""Natural logarithm: slopes of sound sets are 0.8 to 1.1, the nearest mistake is 1.89."""
STIFFNESS_RANGE = (0.12, 8.0)
"""Sound sets have 0.3 to 2.4 times the typical stiffness; factors from about 20 are told for
certain, one of 13 may slip through."""
STIFFNESS_RANGE_WEAK = (0.02, 6.0)
"""The same where structures are so near equilibrium that forces hardly follow the stretch: 0.15."""
TOLD_BY_STIFFNESS = 2.5
"""Natural logarithm of the smallest factor that forces of usual stiffness can't be off by."""
ROUGH = 1.2
"""Natural logarithm: how far a factor by stiffness alone may be from that of the mistake."""
CLEAR_CORRELATION, FAINT_CORRELATION = 0.4, 0.15
ALL_ELECTRON_SPREAD = 0.03
"""Relative; energies over those of free atoms agree this well in codes with all electrons (0.01 at
most in sound sets) and nowhere else."""
ALL_ELECTRON_OFF = 0.06
"""Natural logarithm: how far the median may be from 1, or from a factor (0.01 in sound sets)."""
PAW_SPREAD, PAW_RANGE, PAW_OFF = 2.0, (0.5, 2.0), 0.4
"""Upper over lower quartile of energies over those of elemental solids (1.1 to 1.5 in sound PAW
sets); the range of the median (0.85 to 1.24); and the logarithm of what is left of a factor."""
PER_ATOM_SHARES, SIZES_DIFFER = 0.6, 1.3
"""See `PER_ATOM_GAIN`; sizes (95 % over 5 %) must differ for it to be told."""
FORCE_RANGE = (2e-3, 20.0)
"""eV/Å, root mean square; relaxed sets have 0.03, those of the highest stresses 9."""


@dataclass(frozen=True)
class Work:
    """Change of energy over work of the forces between neighbours."""

    ratio: float
    num_pairs: int


def work_ratio(pairs: Pairs | None) -> Work | None:
    """The ratio where neighbours are conclusive, from those with the straightest steps."""
    from scipy.stats import spearmanr

    if pairs is None:
        return None
    plain = np.isnan(pairs.strain_work) & np.isfinite(pairs.energy) & (pairs.work != 0)
    plain &= np.isfinite(pairs.work)
    for bend in (0.3, 1.0, 2.0, np.inf):
        with np.errstate(invalid="ignore"):  # infinity times no work
            chosen = plain & (np.abs(pairs.bend) <= bend * np.abs(pairs.work))
        if chosen.sum() < LEAST_PAIRS:
            continue
        energy, work = pairs.energy[chosen], pairs.work[chosen]
        if not np.ptp(energy) or not np.ptp(work):
            continue  # all alike: nothing to go by
        strong = np.abs(work) >= np.quantile(np.abs(work), 0.25)  # rounding hides the others
        ratio = energy[strong] / work[strong]
        middle = float(np.median(ratio))
        rank = abs(float(spearmanr(energy, work).statistic))
        if middle and rank > RANK and spread(ratio) < RATIO_SPREAD * abs(middle):
            return Work(middle, int(chosen.sum()))
    return None


@dataclass(frozen=True)
class Scale:
    """What is known of the factor of the energies by themselves."""

    factor: float
    certain: bool
    """By free atoms; otherwise by elemental solids, to 40 %."""
    per_atom: bool


def energy_scale(fit: EnergyFit | None) -> Scale | None:
    """The energies' factor by themselves; None where their kind isn't known."""
    if fit is None:
        return None
    differ = np.quantile(fit.sizes, 0.95) >= SIZES_DIFFER * np.quantile(fit.sizes, 0.05)
    by_shares = bool(differ) and fit.by_shares < PER_ATOM_SHARES
    free, times_size = fit.all_electron, fit.all_electron * fit.sizes
    for ratio, per_atom in ((free, False), (times_size, True)):
        middle = float(np.median(ratio))
        if middle > 0 and spread(ratio) < ALL_ELECTRON_SPREAD * middle:
            if abs(np.log(middle)) < ALL_ELECTRON_OFF:
                return Scale(1.0, True, per_atom)
            known = factors.nearest(middle, factors.ENERGY, ALL_ELECTRON_OFF)
            if known is not None:
                return Scale(middle, True, per_atom)
    by_shares = by_shares or (bool(differ) and _tighter_per_atom(fit))
    for ratio, per_atom in ((fit.paw, False), (fit.paw * fit.sizes, True)):
        low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
        tight = low > 0 and high < PAW_SPREAD * low and fit.num_compositions >= LEAST_PAIRS
        if not tight or by_shares != per_atom:
            continue
        if PAW_RANGE[0] < middle < PAW_RANGE[1]:
            return Scale(1.0, False, per_atom)
        if factors.nearest(float(middle), factors.ENERGY, PAW_OFF) is not None:
            return Scale(float(middle), False, per_atom)
    return Scale(1.0, False, True) if by_shares else None


def _tighter_per_atom(fit: EnergyFit) -> bool:
    """Whether energies are those of elemental solids only when they are taken per atom."""
    ranges = []
    for ratio in (fit.paw, fit.paw * fit.sizes):
        low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
        ranges.append((high / low if low > 0 else np.inf, PAW_RANGE[0] < middle < PAW_RANGE[1]))
    (as_given, usual), (per_atom, usual_per_atom) = ranges
    return bool(not usual and usual_per_atom and per_atom < as_given)


def unit_findings(
    survey: Survey,
    fit: EnergyFit | None,
    local: LocalEvidence,
    pairs: Pairs | None,
    rms: float | None,
) -> Iterator[Finding]:
    """What all evidence together says of the units.

    Args:
        survey: the store.
        fit: its energies.
        local: its bonds.
        pairs: its neighbouring configurations.
        rms: size of its forces, eV/Å.
    """
    name = survey.name
    has_forces = survey.store.card.label_counts.get("forces", 0) > 0
    length = _length_factor(local)
    if length is not None:
        yield _positions(name, local, length)
    scale, work = energy_scale(fit), work_ratio(pairs)
    if scale is not None and scale.per_atom:
        yield _per_atom(name, fit)
        return  # the rest would follow from it
    stiff = _stiffness_factor(local) if length is None else None
    found = list(_verdict(survey, scale, work, stiff, length or 1.0, local))
    yield from found
    if has_forces and not found and rms is not None and not FORCE_RANGE[0] < rms < FORCE_RANGE[1]:
        yield Finding(
            check="units.magnitude",
            severity=Severity.warning,
            store=name,
            title=f"the rms force is {rms:.3g} eV/Å; data sets have 0.01 to 10",
            meaning="Forces of this size are rare: another unit, or a few broken records.",
            advice="Look at the largest forces, and at `units.forces` in the card.",
            numbers={"rms_force": rms},
        )
    if has_forces and work is None:
        yield _untold(name, pairs, local, stiff)


def _length_factor(local: LocalEvidence) -> float | None:
    if local.bond is None or local.num_bonds < LEAST_PAIRS:
        return None
    if BOND_RANGE[0] < local.bond < BOND_RANGE[1]:
        return None
    return local.bond / USUAL_BOND


def _positions(name: str, local: LocalEvidence, factor: float) -> Finding:
    return Finding(
        check="units.positions",
        severity=Severity.error,
        store=name,
        title=f"neighbours are {local.bond:.3g} times the sum of their covalent radii apart: "
        f"{factors.explain(factor, factors.LENGTH)}",
        meaning="In matter of any kind this is 0.8 to 1.2. Lengths in a wrong unit spoil every "
        "graph, and forces with them.",
        advice="Set `units.length` in the card and ingest again.",
        numbers={"bond_over_radii": float(local.bond or 0.0), "factor": factor},
    )


def _per_atom(name: str, fit: EnergyFit | None) -> Finding:
    assert fit is not None
    return Finding(
        check="units.per_atom",
        severity=Severity.error,
        store=name,
        title="energies are per atom: they follow the shares of the elements, not their counts",
        meaning="A label is the energy of the whole structure. The spread around references is "
        f"{fit.by_shares:.2g} times as large when energies are taken per atom.",
        advice="Name the key of the total energy under `keys.energy`, or multiply by the number "
        "of atoms before ingesting.",
        numbers={"spread_by_shares_over_counts": fit.by_shares},
    )


def _stiffness_factor(local: LocalEvidence) -> float | None:
    """Factor of the forces by the stiffness of bonds; None where it says nothing."""
    if local.stiffness is None or local.num_bonds < 50:
        return None
    clear = abs(local.correlation) > CLEAR_CORRELATION
    low, high = STIFFNESS_RANGE if clear else STIFFNESS_RANGE_WEAK
    size = abs(local.stiffness)
    if low < size < high:
        return 1.0 if clear else None
    return size


def _verdict(
    survey: Survey,
    scale: Scale | None,
    work: Work | None,
    stiff: float | None,
    length: float,
    local: LocalEvidence,
) -> Iterator[Finding]:
    """Which of energies and forces is off, and by what."""
    name = survey.name
    flipped = work is not None and work.ratio < 0
    if work is None and local.pulling < 0.3 and local.num_bonds >= 200:
        flipped = local.correlation < -FAINT_CORRELATION
    if flipped:
        yield _sign(name, work, local)
    slope = abs(work.ratio) * length if work is not None else None
    if slope is not None and abs(np.log(slope)) < CONSISTENT:
        # Energies and forces agree, so that they are right or wrong together.
        if scale is not None and scale.certain and scale.factor != 1.0:
            yield _energies(name, scale.factor, scale.certain, work, "as are the forces")
        elif stiff is not None and stiff != 1.0:
            yield _by_stiffness(name, stiff, local, "; energies are off alike")
        return
    if slope is not None and work is not None:
        yield from _disagreement(name, slope, scale, work, stiff)
        return
    if scale is not None and scale.factor != 1.0:
        yield _energies(name, scale.factor, scale.certain, None, "")
    if stiff is not None and stiff != 1.0:
        yield _by_stiffness(name, stiff, local, "")


def _disagreement(
    name: str, slope: float, scale: Scale | None, work: Work, stiff: float | None
) -> Iterator[Finding]:
    """Which of energies and forces is off where they don't belong together."""
    if scale is not None and scale.certain:
        if scale.factor != 1.0:
            yield _energies(name, scale.factor, True, work, "")
        of_forces = scale.factor / slope
        if abs(np.log(of_forces)) > CONSISTENT:
            yield _forces(name, of_forces, _evidence(work))
        return
    if scale is not None:
        of_energies = scale.factor != 1.0 and abs(np.log(scale.factor / slope)) < PAW_OFF
        of_forces_alone = scale.factor == 1.0
    else:
        of_energies = stiff == 1.0 and abs(np.log(slope)) > TOLD_BY_STIFFNESS
        of_forces_alone = False
    if of_energies:
        yield _energies(name, slope, True, work, "")
    elif of_forces_alone or (stiff is not None and stiff != 1.0):
        yield _forces(name, 1 / slope, _evidence(work))
    else:
        yield _either(name, slope, work)


def _evidence(work: Work) -> str:
    return (
        f"between {work.num_pairs:,} pairs of neighbouring configurations the energy changes by "
        f"{abs(work.ratio):.4g} times the work of the forces"
    )


def _sign(name: str, work: Work | None, local: LocalEvidence) -> Finding:
    how = (
        f"{_evidence(work)}, upwards along them"
        if work is not None
        else f"only {100 * local.pulling:.0f} % of the kinds of bonds pull when they are stretched"
    )
    return Finding(
        check="units.forces_sign",
        severity=Severity.error,
        store=name,
        title=f"forces have the wrong sign: {how}",
        meaning="They are the gradient of the energy. Forces are its negative.",
        advice="Set `units: {forces_sign: -1}` in the card and ingest again.",
        numbers={"slope": work.ratio} if work is not None else {"pulling": local.pulling},
    )


def _energies(name: str, factor: float, certain: bool, work: Work | None, remark: str) -> Finding:
    how = f" ({remark})" if remark else ""
    by = _evidence(work) if work is not None else "compared with what atoms contribute"
    return Finding(
        check="units.energy",
        severity=Severity.error if certain or factor < 1 else Severity.warning,
        store=name,
        title=f"energies are off by a factor of about {factor:.4g}{how}: "
        f"{factors.explain(factor, factors.ENERGY)}",
        meaning=f"Evidence: {by}.",
        advice="Set `units.energy` in the card and ingest again.",
        numbers={"factor": factor, **({"slope": work.ratio} if work is not None else {})},
    )


def _forces(name: str, factor: float, evidence: str, within: float = 0.5) -> Finding:
    return Finding(
        check="units.forces",
        severity=Severity.error,
        store=name,
        title=f"forces are off by a factor of about {factor:.4g}: "
        f"{factors.explain(factor, factors.FORCES, within)}",
        meaning=f"Evidence: {evidence}.",
        advice="Set `units.forces` in the card and ingest again.",
        numbers={"factor": factor},
    )


def _by_stiffness(name: str, factor: float, local: LocalEvidence, remark: str) -> Finding:
    """By the stiffness of bonds alone: certain where forces follow it, and by a known factor."""
    evidence = (
        f"bonds are {factor:.3g} times as stiff as they usually are, to a factor of 2.5{remark}"
    )
    known = factors.nearest(factor, factors.FORCES, ROUGH) is not None
    if known and abs(local.correlation) > CLEAR_CORRELATION:
        return _forces(name, factor, evidence, ROUGH)
    return Finding(
        check="units.forces",
        severity=Severity.warning,
        store=name,
        title=f"forces are about {factor:.2g} times what a stretch of bonds usually gives"
        + (f": {factors.explain(factor, factors.FORCES, ROUGH)}" if known else ""),
        meaning=f"Evidence: {evidence}. Structures at rest, or so symmetric that hardly a force is "
        "left, look alike.",
        advice="Compare one record with its source by hand; `units.forces` in the card sets the "
        "unit.",
        numbers={"factor": factor},
    )


def _either(name: str, slope: float, work: Work) -> Finding:
    return Finding(
        check="units.energy_or_forces",
        severity=Severity.error,
        store=name,
        title=f"energies and forces don't belong together, by a factor of {slope:.4g}. If energies "
        f"are wrong, {factors.explain(slope, factors.ENERGY)}; if forces are, "
        f"{factors.explain(1 / slope, factors.FORCES)}",
        meaning=f"Evidence: {_evidence(work)}. Nothing else says which of the two is off.",
        advice="Check `units.energy` and `units.forces` in the card, and that both labels are of "
        "one calculation.",
        numbers={"slope": slope},
    )


def _untold(name: str, pairs: Pairs | None, local: LocalEvidence, stiff: float | None) -> Finding:
    found = 0 if pairs is None else len(pairs.energy)
    other = (
        f"Bonds have {local.stiffness:.2g} times the usual stiffness, so that forces are not off "
        "by a factor of 25 or more."
        if stiff == 1.0 and local.stiffness is not None
        else "Structures are too near equilibrium, or too few, for the stiffness of bonds to tell."
    )
    return Finding(
        check="units.untold",
        severity=Severity.note,
        store=name,
        title=f"can't tell whether forces are the slope of the energies: {found:,} pairs of "
        "neighbouring configurations, which are too few or too far apart",
        meaning=f"Only structures of the same atoms a small step apart show it. {other}",
        advice="Compare one record with its source by hand.",
        numbers={"pairs": float(found)},
    )
