"""Clean structures for the tests of the doctor, and ways of spoiling them."""

from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np

from lamm.data.doctor import Diagnosis, Finding, examine
from lamm.data.joint import store_path
from lamm.data.store import Store
from lamm.structure import Structure

MINI = (
    "downstream_sevennet",
    "molecules_gfn2",
    "molecules_pbe0",
    "molecules_unlabelled",
    "molecules_wb97x",
    "oxides_chgnet",
    "oxides_is2re_chgnet",
    "slabs_chgnet",
)
Change = Callable[[Structure], Structure]


def plain(structure: Structure) -> Structure:
    """A structure of a store as one that can be changed."""
    return Structure(**{field.name: getattr(structure, field.name) for field in fields(Structure)})


def some_of(name: str, count: int = 150) -> list[Structure]:
    """The first structures of a store that the package ships."""
    store = Store.open(store_path(f"mini:{name}"))
    return [plain(store[row]) for row in range(min(count, len(store)))]


def energy_times(factor: float) -> Change:
    return lambda one: replace(one, energy=None if one.energy is None else one.energy * factor)


def forces_times(factor: float) -> Change:
    return lambda one: replace(one, forces=None if one.forces is None else one.forces * factor)


def lengths_times(factor: float) -> Change:
    return lambda one: replace(one, positions=one.positions * factor, cell=one.cell * factor)


def stress_times(factor: float) -> Change:
    return lambda one: replace(one, stress=None if one.stress is None else one.stress * factor)


def turned(structure: Structure, rng: np.random.Generator) -> Structure:
    """A copy that is turned, shifted, and whose atoms are in another order."""
    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    matrix[0] *= np.sign(np.linalg.det(matrix))
    order = rng.permutation(structure.num_atoms)
    return replace(
        structure,
        atomic_numbers=structure.atomic_numbers[order],
        positions=(structure.positions[order] @ matrix + rng.uniform(-1, 1, 3)),
        cell=structure.cell @ matrix,
        forces=None if structure.forces is None else structure.forces[order] @ matrix,
        stress=None,
    )


def diagnose(store: Store, **options: object) -> Diagnosis:
    return examine({"store": store}, **options)  # type: ignore[arg-type]


def faults(diagnosis: Diagnosis) -> dict[str, Finding]:
    """Errors and warnings by the name of their check."""
    return {one.check: one for one in diagnosis.findings if one.severity.value != "note"}
