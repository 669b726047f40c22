"""The doctor: silent faults of stores, found before they cost a training run.

    diagnosis = examine({"water": Store.open("stores/water")})
    for finding in diagnosis.findings:
        finding.severity, finding.title, finding.ids

Each module has one family of checks and the thresholds that they use, with where these come from.
One pass over the shards collects what structures tell one by one and a fingerprint of each; the
rest looks at fingerprints, at a sample, and at pairs of neighbouring configurations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lamm.data.doctor.blocks import Block
from lamm.data.doctor.duplicates import TOLERANCE, copy_findings, find_copies
from lamm.data.doctor.energies import Outliers, fit_energies
from lamm.data.doctor.evidence import local_evidence
from lamm.data.doctor.findings import Finding, Severity
from lamm.data.doctor.forces import ForceFaults, repeated_forces
from lamm.data.doctor.geometry import GeometryFaults
from lamm.data.doctor.labels import label_findings
from lamm.data.doctor.pairs import neighbouring_pairs
from lamm.data.doctor.splits import SplitElements, leak_findings, split_findings
from lamm.data.doctor.stress import stress_findings
from lamm.data.doctor.survey import Survey, take_survey
from lamm.data.doctor.units import unit_findings
from lamm.data.store import Store
from lamm.errors import StoreError

__all__ = ["Diagnosis", "Finding", "Severity", "examine"]

Progress = Callable[[str, int, int], None]
"""Is told the store's name, how many of its structures were read, and how many there are."""


@dataclass(frozen=True)
class Diagnosis:
    """All findings on some stores, the worst first."""

    findings: tuple[Finding, ...]

    @property
    def has_faults(self) -> bool:
        """Whether there is more than notes."""
        return any(one.severity is not Severity.note for one in self.findings)

    def count(self, severity: Severity, store: str | None = None) -> int:
        """Findings of a severity, of one store or of all."""
        return sum(one.severity is severity and store in (None, one.store) for one in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "counts": {severity.value: self.count(severity) for severity in Severity},
            "findings": [one.as_dict() for one in self.findings],
        }


def examine(
    stores: Mapping[str, Store],
    *,
    verify: bool = True,
    tolerance: float = TOLERANCE,
    val_fraction: float = 0.01,
    test_fraction: float = 0.0,
    progress: Progress | None = None,
) -> Diagnosis:
    """Look for faults in stores.

    Args:
        stores: by the names that findings use.
        verify: compare the checksums of all files with the cards.
        tolerance: Å; structures whose distances differ by less are copies.
        val_fraction: share for validation where the source has no split.
        test_fraction: share for testing, likewise.
        progress: called now and then.

    Raises:
        ConfigError: shares that leave nothing for training.
        StoreError: a store can't be read, though its files are whole.
    """
    findings: list[Finding] = []
    surveys, splits = [], []
    for name, store in stores.items():
        damage = _damage(name, store) if verify else None
        if damage is not None:
            findings.append(damage)
            continue
        elements = SplitElements(store, val_fraction, test_fraction)
        survey, found = _examine_one(name, store, elements, progress)
        findings += found
        surveys.append(survey)
        splits.append(elements)
    if surveys:
        copies = find_copies(surveys, tolerance)
        findings += copy_findings(surveys, copies)
        findings += leak_findings(surveys, splits, copies)
    order = list(Severity)
    return Diagnosis(tuple(sorted(findings, key=lambda one: order.index(one.severity))))


def _damage(name: str, store: Store) -> Finding | None:
    try:
        store.verify()
    except StoreError as error:
        return Finding(
            check="files",
            severity=Severity.error,
            store=name,
            title=str(error).partition("\n")[0],
            meaning="What such a file holds can't be trusted; nothing else was looked at.",
            advice="Copy the store again, or ingest its source again.",
        )
    return None


def _examine_one(
    name: str, store: Store, elements: SplitElements, progress: Progress | None
) -> tuple[Survey, list[Finding]]:
    """What one store tells by itself."""
    fit = fit_energies(store)
    geometry, forces, outliers = GeometryFaults(), ForceFaults(), Outliers(fit)

    def look(block: Block) -> None:
        geometry.look(block)
        forces.look(block)
        outliers.look(block)
        elements.look(block)

    def tell(done: int) -> None:
        if progress is not None:
            progress(name, done, len(store))

    survey = take_survey(name, store, look, tell)
    extreme, _ = forces.extreme()
    usual = survey.without(extreme) if len(extreme) else survey
    local = local_evidence(usual)
    has_forces = store.card.label_counts.get("forces", 0) > 0
    relaxed = store.card.task.startswith("IS2RE")
    # IS2RE's energies are those of another geometry, which no force of this one leads to.
    pairs = None
    if has_forces and not relaxed:
        length = local.bond if local.bond is not None and np.isfinite(local.bond) else None
        pairs = neighbouring_pairs(usual, length)
    rms = forces.usual if len(extreme) else store.card.force_scale
    of_units = list(unit_findings(usual, fit, local, pairs, rms))
    wrong = {one.check for one in of_units if one.severity is not Severity.note}
    # Energies or lengths in a wrong unit can't be held against the stress.
    stress = (
        []
        if "units.positions" in wrong
        else stress_findings(survey, local, None if wrong else pairs)
    )
    return survey, [
        *label_findings(name, store),
        *of_units,
        *stress,
        *geometry.findings(survey),
        *forces.findings(survey),
        *repeated_forces(survey),
        *outliers.findings(survey),
        *split_findings(survey, elements),
    ]
