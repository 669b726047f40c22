"""What the energies themselves tell: their scale, their convention, those that stick out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lamm.data.doctor.atoms import ALL_ELECTRON, PAW
from lamm.data.doctor.blocks import Block
from lamm.data.doctor.findings import Finding, Rows, Severity
from lamm.data.doctor.survey import Survey
from lamm.data.references import flat_composition_counts
from lamm.data.store import Store

FIT_ROWS = 20_000
"""Structures that references are fitted to here, robustly; more change nothing that matters."""
OUTLIER_SPREADS = 25.0
"""Robust standard deviations. Sound sets of very unlike structures reach 19; of relaxations, which
are alike but for the first few steps, 60: hence the next line."""
OUTLIER_EV_PER_ATOM = 0.3
"""eV per atom; relaxations that begin with a clash lie up to 0.25 off their system's references."""
GAP = 3.0
"""A gap in the residuals over the spread of either side. Sound sets stay below 0.5."""
GAP_SHARE = 0.03
"""Smallest share of the structures that counts as a group of its own."""
SMALL_EV_PER_ATOM = 0.35
"""eV per atom; adsorption energies of slabs are below 0.1, cohesive and total ones above 1."""
UNEXPLAINED = 0.7
"""Share of the energies' variance that references explain at most where energies don't scale with
the atoms; sound totals of several compositions have 0.8 or more."""
ROWS_PER_ELEMENT = 3
"""Structures for each element, fewer than which fit almost any energies."""
PER_ATOM_GAIN = 0.6
"""Energies per atom follow the shares of the elements this much better than their counts; totals
never do (0.75 or more where sizes vary)."""


@dataclass(frozen=True, eq=False)
class EnergyFit:
    """A robust fit of reference energies to a store."""

    rows: NDArray[np.int64]
    energies: NDArray[np.float64]
    sizes: NDArray[np.float64]
    references: NDArray[np.float64]
    """(119,) eV; 0 where unknown."""
    residuals: NDArray[np.float64]
    """eV, of `rows`."""
    spread_per_atom: float
    """eV; robust standard deviation of the residuals per atom."""
    centre_per_atom: float
    explained: float
    """Share of the variance, robustly; 0 for a single composition."""
    by_shares: float
    """Spread of a fit to the shares of the elements over that of the fit to their counts; 1 where
    there are too few structures to tell."""
    all_electron: NDArray[np.float64]
    """Energies over those of free atoms."""
    paw: NDArray[np.float64]
    """Energies over those of the elemental solids with PAW potentials."""
    num_compositions: int


def fit_energies(store: Store) -> EnergyFit | None:
    """Fit reference energies to a store; None without energies."""
    rows = np.flatnonzero(store.index.has_energy)
    if len(rows) == 0:
        return None
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(FIT_ROWS, len(rows))).astype(int))]
    structures = [store[int(row)] for row in rows]
    energies = np.array([one.energy for one in structures], dtype=np.float64)
    finite = np.isfinite(energies)
    if not finite.any():
        return None
    rows, energies = rows[finite], energies[finite]
    kept = [one for one, fine in zip(structures, finite, strict=True) if fine]
    sizes = np.array([one.num_atoms for one in kept], dtype=np.int64)
    counts = flat_composition_counts(np.concatenate([one.atomic_numbers for one in kept]), sizes)
    known = counts.any(axis=0)
    solution, residuals = _robust_fit(counts[:, known], energies)
    _, of_shares = _robust_fit(counts[:, known] / sizes[:, None], energies)
    references = np.zeros(counts.shape[1])
    references[known] = solution
    per_atom = residuals / sizes
    total = spread(energies)
    return EnergyFit(
        rows=rows,
        energies=energies,
        sizes=sizes.astype(np.float64),
        references=references,
        residuals=residuals,
        spread_per_atom=spread(per_atom),
        centre_per_atom=float(np.median(per_atom)),
        explained=max(0.0, 1 - (spread(residuals) / total) ** 2) if total > 0 else 0.0,
        by_shares=_better_by_shares(of_shares, residuals, int(known.sum())),
        all_electron=energies / (counts @ ALL_ELECTRON[: counts.shape[1]]),
        paw=energies / np.minimum(counts @ PAW[: counts.shape[1]], -1e-3),
        num_compositions=len(np.unique(counts, axis=0)),
    )


def _better_by_shares(
    of_shares: NDArray[np.float64], of_counts: NDArray[np.float64], num_elements: int
) -> float:
    if len(of_counts) < ROWS_PER_ELEMENT * num_elements:
        return 1.0
    return spread(of_shares) / max(spread(of_counts), 1e-12)


def spread(values: NDArray[np.float64]) -> float:
    """Standard deviation by the median absolute deviation, which outliers don't move."""
    if len(values) == 0:
        return 0.0
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def _robust_fit(
    counts: NDArray[np.float64], energies: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least squares whose weights fall with the distance (Huber), and its residuals."""
    weights = np.ones(len(energies))
    solution: NDArray[np.float64] = np.zeros(counts.shape[1])
    residuals = energies.copy()
    for _ in range(12):
        found = np.linalg.lstsq(counts * weights[:, None], energies * weights, rcond=1e-10)
        solution = np.asarray(found[0], dtype=np.float64)
        residuals = energies - counts @ solution
        scale = 2 * spread(residuals) + 1e-9
        # Far ones count less than in Huber's rule, so that a whole second group loses its pull.
        weights = np.minimum(1.0, scale / np.maximum(np.abs(residuals), 1e-12))
    return solution, residuals


class Outliers:
    """Collects structures whose energy is far from what their atoms say."""

    def __init__(self, fit: EnergyFit | None) -> None:
        self.fit = fit
        self.rows = Rows()
        self.small = 0
        """Outliers whose own energy is near zero."""

    def look(self, block: Block) -> None:
        """Take a block in."""
        fit = self.fit
        if fit is None:
            return
        with np.errstate(invalid="ignore"):
            residual = (block.energy - block.sum(fit.references[block.numbers])) / block.sizes
            off = np.abs(residual - fit.centre_per_atom)
            far = block.has_energy & (off > OUTLIER_EV_PER_ATOM)
            far &= off > OUTLIER_SPREADS * fit.spread_per_atom
        if far.any():
            self.rows.add(block.rows[far], float(off[far].max()))
            near_zero = np.abs(block.energy[far]) < SMALL_EV_PER_ATOM * block.sizes[far]
            self.small += int(near_zero.sum())

    def findings(self, survey: Survey) -> Iterator[Finding]:
        """What the energies tell."""
        fit, store = self.fit, survey.store
        if fit is None:
            return
        if self.rows.count:
            mixed = self.small > 0.5 * self.rows.count and self.rows.count > 0.01 * len(store)
            what = (
                "; they are near zero, as adsorption or formation energies are, among totals"
                if mixed
                else ""
            )
            yield Finding(
                check="energies.mixed" if mixed else "energies.outliers",
                severity=Severity.error if mixed else Severity.warning,
                store=survey.name,
                title=f"{self.rows.count:,} energies are far from what their atoms say, by up to "
                f"{self.rows.worst:.3g} eV per atom{what}",
                meaning="Reference energies per element leave "
                f"{fit.spread_per_atom:.3g} eV per atom in the other structures. One such energy "
                "can outweigh the rest of a mini-batch.",
                advice="Look at these records: a calculation that didn't converge, another "
                "convention or unit. Leave them out, or make a store of each convention.",
                count=self.rows.count,
                ids=self.rows.ids(store),
                numbers={"spread_ev_per_atom": fit.spread_per_atom},
            )
        yield from _two_groups(fit, survey)
        yield from _convention(fit, survey)


def _two_groups(fit: EnergyFit, survey: Survey) -> Iterator[Finding]:
    """A constant shift between two groups of structures."""
    found = split_by_gap(fit.residuals)
    if found is None:
        return
    upper, gap = found
    shift = float(np.median(fit.residuals[upper]) - np.median(fit.residuals[~upper]))
    fewer = upper if upper.sum() <= len(upper) / 2 else ~upper
    rows = Rows()
    rows.add(fit.rows[fewer])
    yield Finding(
        check="energies.two_groups",
        severity=Severity.error,
        store=survey.name,
        title=f"energies fall into two groups, {shift:.4g} eV apart: {int(fewer.sum()):,} of "
        f"{len(upper):,} structures looked at are in the smaller one",
        meaning=f"The gap is {gap:.2g} times the spread within the groups, and doesn't depend on "
        "the elements: two conventions, functionals or settings in one store.",
        advice="Make a store of each group; every subset has references and a head of its own.",
        count=rows.count,
        ids=rows.ids(survey.store),
        numbers={"shift_ev": shift, "gap_over_spread": gap},
    )


def split_by_gap(values: NDArray[np.float64]) -> tuple[NDArray[np.bool_], float] | None:
    """Which values are above the widest gap between two groups, and its width over their spread.

    Returns:
        None where there is no such gap.
    """
    least = max(int(GAP_SHARE * len(values)), 5)
    if len(values) < 4 * least:
        return None
    ordered = np.sort(values)
    gaps = np.diff(ordered)[least - 1 : len(values) - least]
    place = int(gaps.argmax()) + least - 1
    within = max(float(ordered[: place + 1].std()), float(ordered[place + 1 :].std()), 1e-6)
    gap = float(gaps.max()) / within
    return (values > ordered[place], gap) if gap > GAP else None


def _convention(fit: EnergyFit, survey: Survey) -> Iterator[Finding]:
    """Whether energies look like totals or like differences, and whether the card agrees."""
    card = survey.store.card
    size = float(np.median(np.abs(fit.energies) / fit.sizes))
    said = f"{card.energy_convention} {card.remarks}".lower()
    differences = any(word in said for word in ("adsorption", "formation", "relative"))
    total = "total" in card.energy_convention.lower() or card.task.endswith("-Total")
    small = size < SMALL_EV_PER_ATOM and fit.explained < UNEXPLAINED
    numbers = {"median_abs_ev_per_atom": size, "explained": fit.explained}
    evidence = (
        f"median |E| is {size:.3g} eV per atom, and energies per element explain "
        f"{100 * fit.explained:.0f} % of the variance"
    )
    if small:
        yield Finding(
            check="energies.convention",
            severity=Severity.warning if total and not differences else Severity.note,
            store=survey.name,
            title=f"energies look like adsorption or formation energies: {evidence}",
            meaning="Total energies grow with the atoms; these don't."
            + (" The card calls them totals." if total and not differences else ""),
            advice="If they are totals, check their unit. If not, say so in `energy_convention` "
            "and `task` (S2EF or IS2RE), and keep them apart from totals of the same system.",
            numbers=numbers,
        )
    elif "adsorption" in said and size > 3 * SMALL_EV_PER_ATOM:
        yield Finding(
            check="energies.convention",
            severity=Severity.warning,
            store=survey.name,
            title=f"energies look like totals, the card speaks of adsorption: {evidence}",
            meaning="Adsorption energies of a slab or framework are a few eV in all.",
            advice="Set `task` to S2EF-Total or IS2RE-Total, or subtract the references.",
            numbers=numbers,
        )
    elif not total and not differences and fit.num_compositions > 1:
        yield Finding(
            check="energies.convention",
            severity=Severity.note,
            store=survey.name,
            title=f"energies look like totals: {evidence}",
            meaning="The card doesn't say what an energy of zero means.",
            advice="Say it in `energy_convention`.",
            numbers=numbers,
        )
