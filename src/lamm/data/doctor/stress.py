"""Sign and unit of the stress: tension is positive (ASE), in eV/Å³."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lamm.data.doctor import factors
from lamm.data.doctor.energies import spread
from lamm.data.doctor.evidence import LocalEvidence
from lamm.data.doctor.findings import Finding, Severity
from lamm.data.doctor.pairs import Pairs
from lamm.data.doctor.survey import Survey
from lamm.data.doctor.units import CONSISTENT, LEAST_PAIRS, RATIO_SPREAD

CLEAR = 4.0
"""Standard deviations of a rank correlation of nothing (1/sqrt(n)); sound sets have 5 to 28."""
SLOPE_RANGE = (0.05, 20.0)
"""eV/Å³ by which tr(stress)/3 rises with the logarithm of the bonds' length; 0.17 to 7 in sound
sets. GPa is a factor of 160 away."""


def stress_findings(survey: Survey, local: LocalEvidence, pairs: Pairs | None) -> Iterator[Finding]:
    """What neighbours with different cells, or else compressed structures, say of the stress."""
    if not survey.store.card.label_counts.get("stress", 0):
        return
    ratio, count = _strain_ratio(pairs)
    if ratio is not None:
        evidence = (
            f"between {count} pairs of configurations with different cells the energy changes by "
            f"{ratio:.3g} times the work of the stress"
        )
        if ratio < 0:
            yield _sign(survey.name, evidence, ratio)
        if abs(np.log(abs(ratio))) > 2 * CONSISTENT:
            yield _unit(survey.name, 1 / abs(ratio), evidence)
        return
    rank, slope = local.stress_rank, local.stress_slope
    if rank is None or slope is None or abs(rank) * np.sqrt(local.num_stresses) < CLEAR:
        yield Finding(
            check="stress.untold",
            severity=Severity.note,
            store=survey.name,
            title="can't tell the sign and unit of the stress",
            meaning="No configurations with different cells are near each other, and bonds that "
            "are shorter than usual don't go along with pressure clearly enough.",
            advice="Compare one record with its source: a compressed crystal has negative "
            "diagonal elements here.",
        )
        return
    evidence = (
        f"over {local.num_stresses:,} structures, the longer the bonds the "
        f"{'larger' if rank > 0 else 'smaller'} the stress (rank correlation {rank:.2f})"
    )
    if rank < 0:
        yield _sign(survey.name, evidence, rank)
    if not SLOPE_RANGE[0] < abs(slope) < SLOPE_RANGE[1]:
        usual = float(np.sqrt(SLOPE_RANGE[0] * SLOPE_RANGE[1]))
        stiff = f"{evidence}, which rises by {abs(slope):.3g} eV/Å³ per unit of strain"
        yield _unit(survey.name, abs(slope) / usual, stiff)


def _strain_ratio(pairs: Pairs | None) -> tuple[float | None, int]:
    """Change of energy, less the work of forces, over the work of the stress; number of pairs."""
    if pairs is None:
        return None, 0
    work = pairs.strain_work
    with np.errstate(invalid="ignore"):
        straight = np.abs(pairs.strain_bend) <= 2 * np.abs(work)
        # The forces' part may be uncertain; where it is small it doesn't matter.
        small = (np.abs(pairs.bend) <= 0.5 * np.abs(pairs.energy)) & (
            np.abs(pairs.work) <= 0.5 * np.abs(pairs.energy)
        )
        chosen = straight & small & (work != 0)
    if chosen.sum() < LEAST_PAIRS:
        return None, int(chosen.sum())
    ratio = (pairs.energy[chosen] - pairs.work[chosen]) / work[chosen]
    middle = float(np.median(ratio))
    if middle == 0 or spread(ratio) > RATIO_SPREAD * abs(middle):
        return None, int(chosen.sum())
    return middle, int(chosen.sum())


def _sign(name: str, evidence: str, number: float) -> Finding:
    return Finding(
        check="stress.sign",
        severity=Severity.error,
        store=name,
        title=f"the stress has the wrong sign: {evidence}",
        meaning="Here, as in ASE, tension is positive; the source counts pressure as positive.",
        advice="Set `units: {stress_sign: -1}` in the card and ingest again.",
        numbers={"evidence": number},
    )


def _unit(name: str, factor: float, evidence: str) -> Finding:
    return Finding(
        check="stress.unit",
        severity=Severity.error,
        store=name,
        title=f"the stress is off by a factor of about {factor:.3g}: "
        f"{factors.explain(factor, factors.STRESS, within=2.0)}",
        meaning=f"Evidence: {evidence}.",
        advice="Set `units.stress` in the card and ingest again.",
        numbers={"factor": factor},
    )
