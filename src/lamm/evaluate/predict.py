"""Run a potential over structures, batch by batch, with the output of one subset (one head)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import ArrayLike, NDArray

from lamm.errors import ConfigError, DataError
from lamm.graph.batch import GraphBatch
from lamm.models.layers import segment_sum
from lamm.structure import Structure

if TYPE_CHECKING:
    from ase import Atoms

    from lamm.evaluate.uncertainty import Uncertainty
    from lamm.models.potential import Potential, Prediction

ATOMS_PER_BATCH = 4096
"""A batch is full at this many atoms, whatever the number of structures."""


class StructurePrediction(NamedTuple):
    """What a potential says of one structure."""

    energy: float
    """eV."""
    forces: NDArray[np.float64]
    """(N, 3) in eV/Å."""
    stress: NDArray[np.float64] | None
    """(6,) in eV/Å³, Voigt order and sign of ASE; None for direct forces, or without a cell."""
    energy_uncertainty: float | None = None
    """Standard deviation of the energy in eV, where an uncertainty was given."""
    forces_uncertainty: NDArray[np.float64] | None = None
    """(N,) standard deviation of the components of each atom's force in eV/Å, likewise."""


class EvaluatedBatch(NamedTuple):
    """Some structures, their graphs, and the prediction in the chosen output (D = 1)."""

    structures: list[Structure]
    batch: GraphBatch
    prediction: Prediction
    last_layer: torch.Tensor | None = None
    """(N, F) float64: what the energy's last layer is given of each atom, and a one."""

    @property
    def atom_features(self) -> torch.Tensor:
        """`last_layer`.

        Raises:
            ValueError: the batch was predicted without it.
        """
        if self.last_layer is None:
            raise ValueError("this batch was predicted without features of the last layer")
        return self.last_layer

    @property
    def structure_features(self) -> torch.Tensor:
        """(B, F) float64: mean of `atom_features` over each structure's atoms."""
        batch = self.batch
        total = segment_sum(self.atom_features, batch.structure_index, batch.num_structures)
        return total / batch.num_atoms[:, None]


def choose_column(model: Potential, head: str | None) -> int:
    """The output that is meant: the one named, or the only one there is.

    Raises:
        ConfigError: there is no such output, or several and none was named.
    """
    if head is not None:
        return model.column(head)
    if len(model.subsets) > 1:
        raise ConfigError(
            f"this model has {len(model.subsets)} outputs and none was named.\n"
            f"  Choose one by its name, as --head or `head=`: {', '.join(model.subsets)}."
        )
    return 0


def unknown_elements(model: Potential, column: int, atomic_numbers: ArrayLike) -> list[str]:
    """Symbols of the elements that an output's reference energies weren't fitted to."""
    known = model.known_elements[column].cpu().numpy()
    numbers = np.unique(np.asarray(atomic_numbers, dtype=np.int64))
    return [chemical_symbols[number] for number in numbers if not known[number]]


def unknown_elements_message(model: Potential, column: int, symbols: Sequence[str]) -> str:
    """What to tell somebody who predicts for elements that an output doesn't know."""
    name = model.subsets[column]
    if not model.known_elements[column].any():
        return (
            f"head '{name}' was trained without energies: it has no reference energies, and its "
            "energies mean nothing. Choose another head, or fine-tune."
        )
    return (
        f"head '{name}' was trained without {', '.join(symbols)}: it has no reference energy for "
        "them, so total energies are off by a constant per such atom, and forces are a guess."
    )


def structure_of(atoms: Atoms, origin: str = "") -> Structure:
    """An ASE `Atoms` as a `Structure`, with the labels that its calculator holds.

    Nothing is computed: only results that were read with the atoms are labels. Atoms under
    `FixAtoms` count as fixed.

    Args:
        atoms: what ASE read.
        origin: file and record, for messages.

    Raises:
        DataError: no atoms, an unknown element, or a value that isn't finite.
    """
    from ase.constraints import FixAtoms

    results = {} if atoms.calc is None else getattr(atoms.calc, "results", {})
    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = True
    stress = results.get("stress")
    if len(atoms) and (atoms.numbers.min() < 1 or atoms.numbers.max() >= len(chemical_symbols)):
        raise DataError(
            f"{origin or 'structure'}: an atom without an element (symbol X). "
            "Give every atom its element."
        )
    structure = Structure(
        atomic_numbers=atoms.numbers.astype(np.uint8),
        positions=np.array(atoms.positions, dtype=np.float64),
        cell=np.array(atoms.cell.array, dtype=np.float64),
        pbc=np.array(atoms.pbc, dtype=bool),
        energy=None if results.get("energy") is None else float(results["energy"]),
        forces=None if results.get("forces") is None else np.array(results["forces"], float),
        stress=None if stress is None else _voigt(np.array(stress, dtype=np.float64)),
        fixed=fixed if fixed.any() else None,
        id=str(atoms.info.get("id", "")),
        origin=origin,
    )
    structure.check()
    return structure


def _voigt(stress: NDArray[np.float64]) -> NDArray[np.float64]:
    if stress.shape == (3, 3):
        return stress[(0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)]
    return stress


def in_batches(
    structures: Iterable[Structure], batch_size: int, atoms_per_batch: int = ATOMS_PER_BATCH
) -> Iterator[list[Structure]]:
    """Cut structures into lists of at most so many structures and, where possible, atoms."""
    part: list[Structure] = []
    atoms = 0
    for structure in structures:
        if part and (len(part) >= batch_size or atoms + structure.num_atoms > atoms_per_batch):
            yield part
            part, atoms = [], 0
        part.append(structure)
        atoms += structure.num_atoms
    if part:
        yield part


def predict_batches(
    model: Potential,
    structures: Iterable[Structure],
    column: int,
    *,
    batch_size: int = 32,
    last_layer: bool = False,
) -> Iterator[EvaluatedBatch]:
    """Predict with one output, batch by batch, in the order given.

    Positions go in as float64 and edges become the model's precision after the difference was
    taken, so that atoms far from the origin lose nothing.

    Args:
        model: where it is, in the precision that it has.
        structures: any number of them.
        column: the output.
        batch_size: structures per batch, fewer where they are large.
        last_layer: also give features of the last layer.
    """
    device = model.energy_scale.device
    was_training = model.training
    model.eval()
    try:
        for part in in_batches(structures, batch_size):
            batch = GraphBatch.from_structures(
                part,
                model.graph_config,
                dtype=torch.float64,
                subset_index=torch.full((len(part),), column),
            ).to(device)
            with torch.no_grad(), _last_layer(model, last_layer) as features:
                prediction = model(batch, subset_index=batch.subset_index)
            yield EvaluatedBatch(part, batch, prediction, features[0] if features else None)
    finally:
        model.train(was_training)


@contextmanager
def _last_layer(model: Potential, wanted: bool) -> Iterator[list[torch.Tensor]]:
    """A list that a forward pass puts `EvaluatedBatch.last_layer` into, where wanted."""
    found: list[torch.Tensor] = []
    if not wanted:
        yield found
        return

    @torch.no_grad()
    def keep(head: Any, arguments: tuple[Any, ...]) -> None:
        hidden = head.hidden(arguments[0]).detach().double()  # (N, F - 1)
        found.append(torch.cat((hidden, hidden.new_ones(len(hidden), 1)), dim=1))

    handle = model.energy_head.register_forward_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def predict(
    model: Potential,
    structures: Iterable[Structure],
    head: str | None = None,
    *,
    batch_size: int = 32,
    uncertainty: Uncertainty | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[StructurePrediction]:
    """Energy, forces and, where the model has them, stress of each structure, in order.

    Args:
        model: the potential.
        structures: any number of them.
        head: which output; may be left out where there is one.
        batch_size: structures per batch, fewer where they are large.
        uncertainty: what standard deviations follow from; none where left out.
        progress: called with the number of structures done after each batch.

    Raises:
        ConfigError: no such output, several and none was named, or one without an uncertainty.
    """
    column = choose_column(model, head)
    done = 0
    for item in predict_batches(
        model, structures, column, batch_size=batch_size, last_layer=uncertainty is not None
    ):
        part, batch, prediction = item.structures, item.batch, item.prediction
        energy = prediction.energy[:, 0].tolist()
        ends = np.cumsum(batch.num_atoms.tolist())[:-1]
        forces = np.split(_array(prediction.forces[:, 0]), ends)
        energy_sigma: Sequence[float | None] = [None] * len(part)
        forces_sigma: Sequence[NDArray[np.float64] | None] = [None] * len(part)
        if uncertainty is not None:
            energy_sigma = uncertainty.energy_sigma(model.subsets[column], item).tolist()
            of_atoms = uncertainty.forces_sigma(model.subsets[column], item)
            if of_atoms is not None:
                forces_sigma = np.split(of_atoms, ends)
        stress = None if prediction.stress is None else _array(prediction.stress[:, 0])
        for k, structure in enumerate(part):
            has_cell = abs(np.linalg.det(structure.cell)) > 0
            own_stress = stress[k] if stress is not None and has_cell else None
            yield StructurePrediction(
                energy[k], forces[k], own_stress, energy_sigma[k], forces_sigma[k]
            )
        done += len(part)
        if progress is not None:
            progress(done)


def _array(values: torch.Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = values.double().cpu().numpy()
    return array
