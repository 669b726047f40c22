"""The representation of sampled atoms: what Fig. 8 maps.

PaiNN's scalar features s_i and EquiformerV2's coefficients of degree 0 don't change when a
structure is moved or turned (EquiformerV2's to the error of its grid on the sphere). They say how a
model sees an atom and its surroundings, with no head involved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lamm.errors import DataError
from lamm.evaluate.predict import predict_batches
from lamm.keyed import key_of, permutation
from lamm.structure import Structure

if TYPE_CHECKING:
    from lamm.data.store import Store
    from lamm.models.potential import Potential


@dataclass(frozen=True)
class AtomSource:
    """A subset whose atoms can be drawn without reading its structures."""

    name: str
    num_atoms: NDArray[np.integer]
    """Atoms of each structure."""
    structure: Callable[[int], Structure]
    """Gives a structure by its place in `num_atoms`."""


def source_of_rows(name: str, store: Store, rows: NDArray[np.int64]) -> AtomSource:
    """Some structures of a store as a source of atoms, without the noise of the denoising task."""
    return AtomSource(name, store.index.num_atoms[rows], lambda number: store[int(rows[number])])


@dataclass(frozen=True)
class AtomFeatures:
    """Features of n sampled atoms, and which atoms they are."""

    features: NDArray[np.float32]
    """(n, C) scalar features, without unit."""
    subset: NDArray[np.int64]
    """(n,) index into `subsets`."""
    structure: NDArray[np.int64]
    """(n,) index into `structures`."""
    atom: NDArray[np.int64]
    """(n,) place of the atom in its structure, from 0."""
    subsets: tuple[str, ...]
    structures: list[Structure]
    """The structures of which an atom was drawn, each once."""
    energy_error: NDArray[np.float64]
    """(n,) in meV/atom: prediction minus label of the atom's structure; NaN where there is no
    label, or no output of the model has the subset's name."""

    def __len__(self) -> int:
        return len(self.atom)

    @property
    def element(self) -> NDArray[np.int64]:
        """(n,) atomic number of each atom."""
        numbers = [
            self.structures[s].atomic_numbers[a]
            for s, a in zip(self.structure, self.atom, strict=True)
        ]
        return np.array(numbers, dtype=np.int64)


def sample_atoms(
    num_atoms: NDArray[np.integer], count: int, key: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw atoms without replacement, each atom of the subset as likely as any other.

    Args:
        num_atoms: (S,) atoms of each structure.
        count: how many atoms; all where there are no more.
        key: which draw, from `lamm.keyed.key_of`.

    Returns:
        The structure of each drawn atom and its place in it, ascending; (n,) each.
    """
    ends = np.cumsum(num_atoms, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    drawn = np.sort(permutation(total, key)(np.arange(min(count, total))))
    structure = np.searchsorted(ends, drawn, side="right").astype(np.int64)
    return structure, drawn - (ends - num_atoms)[structure]


def atom_features(
    model: Potential,
    sources: Sequence[AtomSource],
    *,
    atoms_per_subset: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> AtomFeatures:
    """Scalar features of atoms drawn from every subset (Fig. 8 draws 1,000 of each).

    The draw is a function of seed, subset name and the numbers of atoms alone, so that two models
    are looked at with the same atoms. Only structures of which an atom was drawn are read.

    Args:
        model: where it is, in the precision that it has.
        sources: the subsets.
        atoms_per_subset: how many atoms of each; all where a subset has no more.
        seed: of the draw.
        batch_size: structures per batch at most.
        progress: called with the number of structures done after each batch.

    Raises:
        DataError: a subset has no atom, or the features of a structure aren't finite.
    """
    features, subset, where, atoms, errors = [], [], [], [], []
    structures: list[Structure] = []
    for number, source in enumerate(sources):
        key = key_of("atoms of Fig. 8", seed, source.name)
        row, atom = sample_atoms(source.num_atoms, atoms_per_subset, key)
        if len(row) == 0:
            raise DataError(f"subset '{source.name}': no atom in it. Leave it out.")
        rows, place = np.unique(row, return_inverse=True)
        before = len(structures)
        parts = _structure_features(model, source, rows, batch_size)
        for k, (structure, values, error) in enumerate(parts):
            if not np.isfinite(values).all():
                raise DataError(
                    f"subset '{source.name}', structure '{structure.id or structure.origin}': the "
                    "model's features are not finite numbers.\n  The model is broken: see the "
                    "metrics of its run."
                )
            features.append(values[atom[place == k]])
            errors.append(np.full(int((place == k).sum()), error))
            structures.append(structure)
            if progress is not None:
                progress(len(structures))
        subset.append(np.full(len(row), number))
        where.append(before + place)
        atoms.append(atom)
    return AtomFeatures(
        features=np.concatenate(features),
        subset=np.concatenate(subset).astype(np.int64),
        structure=np.concatenate(where).astype(np.int64),
        atom=np.concatenate(atoms),
        subsets=tuple(source.name for source in sources),
        structures=structures,
        energy_error=np.concatenate(errors),
    )


def _structure_features(
    model: Potential, source: AtomSource, rows: Iterable[int], batch_size: int
) -> Iterator[tuple[Structure, NDArray[np.float32], float]]:
    """Each structure with its features (N, C) and its energy error in meV/atom or NaN."""
    known = source.name in model.subsets
    column = model.column(source.name) if known else 0
    structures = (source.structure(int(row)) for row in rows)
    for part, batch, prediction, _ in predict_batches(
        model, structures, column, batch_size=batch_size
    ):
        sizes = batch.num_atoms.tolist()
        values = prediction.features.float().cpu().numpy()
        energies = prediction.energy[:, 0].tolist()
        for one, own, energy in zip(
            part, np.split(values, np.cumsum(sizes)[:-1]), energies, strict=True
        ):
            error = float("nan")
            if known and one.energy is not None:
                error = 1000 * (energy - one.energy) / one.num_atoms
            yield one, own, error
