"""Linear reference energies, and the scales of energies and forces (Sec. 3.2).

The energy of a structure is mostly a sum over its atoms: at 1e5 eV per atom, what the atoms do to
each other is the last few digits. So each subset gets one energy per element, by least squares,
that is taken off before training and added again in a prediction. What is left is divided by a
scale.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64, Integer

from lamm.structure import MAX_ATOMIC_NUMBER, Structure

NUM_ELEMENTS = MAX_ATOMIC_NUMBER + 1
"""Length of an array indexed by the atomic number; entry 0 is for none."""
SINGULAR = 1e-11
"""Singular values below this share of the largest are rounding: there, elements go together."""
NO_RESIDUAL = 1e-6
"""eV; an rms residual below this is rounding: the references explain every energy."""
_COMPONENT = float(np.sqrt(np.pi / 8))
"""Rms component over mean length, of vectors with normal components."""
_ROWS = 2048
_FIT_ROWS = 1024


class Normalisation(NamedTuple):
    """What turns an energy or a force of one subset into a number of order one."""

    reference_energies: Float64[np.ndarray, "119"]
    """eV of each element, indexed by its atomic number."""
    known: Bool[np.ndarray, "119"]
    """Whether the element was in the data that was fitted."""
    energy_scale: float
    """eV."""
    force_scale: float
    """eV/Å."""
    has_forces: bool = False
    """Whether the force scale was fitted to forces."""


@dataclass(frozen=True, eq=False)
class ReferenceEnergies:
    """Energies per element, and what they leave unexplained."""

    energies: Float64[np.ndarray, "119"]
    """eV of each element, indexed by its atomic number; 0 where unknown."""
    known: Bool[np.ndarray, "119"]
    rms: float
    """eV; root mean square of energy minus references, over structures."""


def flat_composition_counts(
    atomic_numbers: Integer[np.ndarray, " atoms"], num_atoms: Integer[np.ndarray, " structures"]
) -> Float64[np.ndarray, "structures 119"]:
    """How often each structure has each element.

    Args:
        atomic_numbers: of all structures, one after the other.
        num_atoms: of each structure.

    Returns:
        Counts, column Z for the element with atomic number Z.
    """
    structure = np.repeat(np.arange(len(num_atoms)), num_atoms)
    cells = structure * NUM_ELEMENTS + atomic_numbers
    counts = np.bincount(cells, minlength=len(num_atoms) * NUM_ELEMENTS)
    return counts.reshape(len(num_atoms), NUM_ELEMENTS).astype(np.float64)


def composition_counts(structures: Sequence[Structure]) -> Float64[np.ndarray, "structures 119"]:
    """How often each structure has each element, column Z for the atomic number Z."""
    numbers = [structure.atomic_numbers for structure in structures]
    flat = np.concatenate(numbers) if numbers else np.zeros(0, dtype=np.uint8)
    return flat_composition_counts(flat, np.array([len(one) for one in numbers], dtype=np.int64))


class ReferenceAccumulator:
    r"""Least squares for :math:`E_s \approx \sum_Z n_{sZ} e_Z` in one pass over structures.

    The structures are folded into the triangle R of a QR decomposition of ``[n | E]``, chunk by
    chunk (TSQR). Normal equations would square the condition number, and lose the meV in energies
    of 1e6 eV.
    """

    def __init__(self) -> None:
        self._triangle = np.zeros((0, NUM_ELEMENTS + 1))
        self._waiting = np.zeros((_ROWS, NUM_ELEMENTS + 1))
        self._num_waiting = 0
        self._known = np.zeros(NUM_ELEMENTS, dtype=bool)
        self.num_structures = 0

    def add(
        self,
        compositions: Float[np.ndarray, "structures 119"],
        energies: Float[np.ndarray, " structures"],
    ) -> None:
        """Take structures in; how many at a time makes no difference, to the last bit.

        Args:
            compositions: atoms of each element.
            energies: eV.
        """
        self._known |= (compositions > 0).any(axis=0)
        self.num_structures += len(energies)
        first = 0
        while first < len(energies):
            last = min(first + _ROWS - self._num_waiting, len(energies))
            filled = self._num_waiting + last - first
            self._waiting[self._num_waiting : filled, :-1] = compositions[first:last]
            self._waiting[self._num_waiting : filled, -1] = energies[first:last]
            self._num_waiting, first = filled, last
            if filled == _ROWS:
                self._triangle = self._folded()
                self._num_waiting = 0

    def _folded(self) -> Float64[np.ndarray, "rows 120"]:
        """The triangle with the waiting structures in it; elements that none has take no work."""
        stacked = np.vstack((self._triangle, self._waiting[: self._num_waiting]))
        used = np.flatnonzero((stacked != 0).any(axis=0))
        reduced = np.linalg.qr(stacked[:, used], mode="r")
        triangle = np.zeros((len(reduced), stacked.shape[1]))
        triangle[:, used] = reduced
        return triangle

    def solve(self) -> ReferenceEnergies:
        """The energies per element so far.

        Where elements only ever come together (methane alone says nothing of C and H apart), the
        solution of least norm is taken. Elements that weren't seen have 0.
        """
        energies = np.zeros(NUM_ELEMENTS)
        if not self._known.any():
            return ReferenceEnergies(energies, self._known.copy(), 0.0)
        triangle = self._folded()
        counts, target = triangle[:, :-1], triangle[:, -1]
        left, size, right = np.linalg.svd(counts[:, self._known], full_matrices=False)
        useful = size > SINGULAR * size[0]
        along = left[:, useful].T @ target / size[useful]
        energies[self._known] = along @ right[useful]
        residual = np.linalg.norm(counts @ energies - target)
        rms = float(residual / np.sqrt(self.num_structures))
        return ReferenceEnergies(energies, self._known.copy(), rms)


class ForceScale:
    """Mean length of the forces on free atoms, in one pass, as the rms component that goes with it.

    The loss compares forces by the length of their error (Eq. 5), so the mean length makes what is
    to be learnt equally large in every subset. The rms does so where components are normal, and
    gives the same number there; of crystals and surfaces a few extreme forces are most of the
    squares, and divided by their rms all other forces vanish.
    """

    def __init__(self) -> None:
        self._lengths = 0.0
        self._atoms = 0

    def add(
        self, forces: Float[np.ndarray, "atoms 3"], free: Bool[np.ndarray, " atoms"] | None = None
    ) -> None:
        """Take forces in.

        Args:
            forces: eV/Å.
            free: atoms whose forces are a label; all where left out.
        """
        labels = (forces if free is None else forces[free]).astype(np.float64)
        self._lengths += float(np.linalg.norm(labels, axis=1).sum())
        self._atoms += len(labels)

    def solve(self) -> float:
        """eV/Å; 0 where nothing was taken in."""
        return _COMPONENT * self._lengths / self._atoms if self._atoms else 0.0


def energy_scale(references: ReferenceEnergies) -> float:
    """What residual energies are divided by, in eV: their rms, or 1 where nothing is left."""
    return references.rms if references.rms > NO_RESIDUAL else 1.0


def force_scale(forces: ForceScale) -> float:
    """What forces are divided by, in eV/Å; 1 where there are none, or all are zero."""
    return forces.solve() or 1.0


@runtime_checkable
class StructureSource(Protocol):
    """What can be fitted: a `lamm.data.store.Store`."""

    def structures(self, rows: Iterable[int] | Integer[np.ndarray, " rows"]) -> Iterator[Structure]:
        """The structures of some rows."""
        ...


def fit_normalisation(store: StructureSource, rows: Integer[np.ndarray, " rows"]) -> Normalisation:
    """Reference energies and scales of some structures of a store (Sec. 3.2, 4.4).

    Args:
        store: where the structures are.
        rows: which of them, usually a training split.

    Returns:
        Energies fitted to the rows with an energy, and forces to those with forces. A scale is 1
        where there is no such label or nothing to scale; it is never 0 or NaN.
    """
    references, forces = ReferenceAccumulator(), ForceScale()
    for start in range(0, len(rows), _FIT_ROWS):
        structures = list(store.structures(rows[start : start + _FIT_ROWS]))
        labelled = [one for one in structures if one.energy is not None]
        energies = np.array([one.energy for one in labelled], dtype=np.float64)
        references.add(composition_counts(labelled), energies)
        for one in structures:
            if one.forces is not None:
                forces.add(one.forces, None if one.fixed is None else ~one.fixed)
    fitted = references.solve()
    return Normalisation(
        fitted.energies,
        fitted.known,
        energy_scale(fitted),
        force_scale(forces),
        has_forces=forces.solve() > 0,
    )
