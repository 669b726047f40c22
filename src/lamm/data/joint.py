"""Several stores as one data set: subsets, splits, label masks and noise (Sec. 3.1).

A joint id counts through the structures of every subset in the order of the configuration, so it
says both which subset and which row of its store. Everything that a planner needs comes from the
stores' indices; a structure itself is read when it is asked for.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveFloat, PositiveInt

from lamm.balance.columns import (
    Column,
    Joined,
    coarse,
    compact_mask,
    constant,
    moved,
    picked,
    places_where,
)
from lamm.balance.cost import COST_UNIT, structure_cost
from lamm.balance.plan import PlanIndex
from lamm.data.denoising import DenoisingConfig, denoising_structure
from lamm.data.references import NUM_ELEMENTS, ForceScale, Normalisation, fit_normalisation
from lamm.data.sampling import SamplingConfig
from lamm.data.splits import SPLIT_CODES, assign_splits
from lamm.data.store import Store
from lamm.errors import ConfigError, nearest_names
from lamm.schema import Frozen
from lamm.structure import Structure

_AT_ONCE = 2**20
"""Structures whose costs are computed at once."""
FIXED_NOISE = 2**31 - 1
"""The "epoch" from which validation noise is drawn, so that it never changes."""
_ELASTIC_SAMPLE = 64
"""Structures whose elastic energies and forces set their scales."""
MINI = "mini:"
"""Prefix of the stores that the package ships, as in ``mini:molecules_pbe0``."""


def store_path(text: str) -> Path:
    """The folder that a configuration's `store` means.

    ``mini:NAME`` is a store that the package ships; otherwise ``~`` and ``$VARIABLES`` are
    expanded and a relative path starts at the working directory.

    Raises:
        ConfigError: a variable isn't set, or no shipped store has that name.
    """
    if text.startswith(MINI):
        home = Path(str(files("lamm") / "mini"))
        name = text.removeprefix(MINI)
        if not (home / name).is_dir():
            shipped = [path.name for path in home.glob("*") if path.is_dir()]
            raise ConfigError(f"no shipped store '{name}'. {nearest_names(name, shipped)}")
        return home / name
    expanded = os.path.expandvars(text)
    if "$" in expanded:
        raise ConfigError(
            f"store path '{text}' has a variable that is not set in the environment. "
            "Export it, or write the path out."
        )
    return Path(expanded).expanduser()


class SubsetConfig(Frozen):
    """One subset of the joint data set; the card of its store says the rest."""

    store: str
    """Folder of the store, or ``mini:NAME`` for one that the package ships."""
    labels: list[Literal["energy", "forces"]] | None = None
    """Labels to use; all that the store has where this is left out."""
    denoising: DenoisingConfig | None = None
    """Noise of a subset that is trained without labels; a card with task 'denoising' implies it."""
    max_atoms: PositiveInt | None = None
    """Leave larger structures out (the paper leaves out those of ODAC23 above 300 atoms)."""
    sampling_weight: PositiveFloat = 1.0
    """Factor on how many of its structures an epoch uses, beside what `sampling` says of sizes."""


class DataConfig(Frozen):
    """The joint data set."""

    subsets: Annotated[dict[str, SubsetConfig], Field(min_length=1)]
    """Name of each subset, which is also the name of its output in the heads."""
    sampling: SamplingConfig = SamplingConfig()
    val_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Share of a subset that goes to validation where its source has no split."""
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share that goes to the test split, likewise."""
    max_train_structures: PositiveInt | None = None
    """At most this many training structures per subset; all where left out."""
    max_val_structures: PositiveInt | None = None
    """At most this many validation structures per subset; all where left out."""


class Subset:
    """One store with its split, its label masks and, where it has no labels, its noise."""

    def __init__(self, name: str, config: SubsetConfig, data: DataConfig) -> None:
        self.name = name
        self.store = Store.open(store_path(config.store))
        self.denoising = config.denoising
        if self.denoising is None and self.store.card.task == "denoising":
            self.denoising = DenoisingConfig()
        index = self.store.index
        wanted = config.labels
        self.has_energy = compact_mask(index.has_energy & (wanted is None or "energy" in wanted))
        self.has_forces = compact_mask(index.has_forces & (wanted is None or "forces" in wanted))
        if self.denoising is not None:
            self.has_energy = constant(self.denoising.gives_energy, len(self.store))
            self.has_forces = constant(True, len(self.store))
        elif not (self.has_energy | self.has_forces).any():
            raise ConfigError(
                f"subset '{name}': no structure of {self.store.path} has a label that is used.\n"
                "  Give it the denoising task with `denoising: {std: 0.1}`, or name other labels."
            )
        self.split = assign_splits(
            index.id_hash,
            index.split,
            val_fraction=data.val_fraction,
            test_fraction=data.test_fraction,
        )
        if config.max_atoms is not None:
            self.split = np.where(index.num_atoms <= config.max_atoms, self.split, 0)
        self.limits = {"train": data.max_train_structures, "val": data.max_val_structures}
        if not (self.split == SPLIT_CODES["train"]).any():
            raise ConfigError(
                f"subset '{name}': none of the {len(self.store)} structures of {self.store.path} "
                "is left for training.\n  Check its splits, `val_fraction` and `max_atoms`."
            )

    def all_rows(self) -> NDArray[np.int64]:
        """(n,) rows of the store that are in any split, ascending."""
        return np.sort(np.concatenate([self.rows(split) for split in SPLIT_CODES]))

    def rows(self, split: str) -> NDArray[np.int64]:
        """Rows of the store that belong to 'train', 'val' or 'test', ascending.

        Where only so many are wanted, the hash of their id decides which, so that it never changes.
        """
        rows = np.flatnonzero(self.split == SPLIT_CODES[split])
        limit = self.limits.get(split)
        if limit is None or len(rows) <= limit:
            return rows
        order = np.argsort(self.store.index.id_hash[rows], kind="stable")
        return np.sort(rows[order[:limit]])

    @property
    def most_training_atoms(self) -> int:
        """Atoms of the largest training structure."""
        is_training = self.split == SPLIT_CODES["train"]
        return int(np.max(self.store.index.num_atoms, where=is_training, initial=1))

    def training_rows(self) -> NDArray[np.integer[Any]] | Column:
        """`rows` of the training split, as a column where that takes less memory."""
        if self.limits["train"] is not None:
            return self.rows("train")
        return places_where(self.split == SPLIT_CODES["train"])

    def structure(self, row: int, noise_draw: int, seed: int) -> Structure:
        """One structure with the labels that this subset trains on.

        Args:
            row: row of the store.
            noise_draw: which draw of the noise, for the denoising task.
            seed: seed of the run.
        """
        structure = self.store[row]
        if self.denoising is None:
            return structure
        return denoising_structure(
            structure, int(self.store.index.id_hash[row]), self.denoising, seed, noise_draw
        )

    def normalisation(self) -> Normalisation:
        """Reference energies and scales: from the card, or the noise's for the denoising task."""
        normalisation = self.store.normalisation()
        if self.denoising is None:
            return normalisation
        if self.denoising.gives_energy:
            return self._elastic_normalisation(self.denoising)
        return normalisation._replace(
            energy_scale=1.0, force_scale=self.denoising.rms_std, has_forces=True
        )

    def _elastic_normalisation(self, denoising: DenoisingConfig) -> Normalisation:
        """No reference energies, and scales of a sample: displaced, whatever the run's seed."""
        rows = self.rows("train")
        chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), _ELASTIC_SAMPLE)).astype(int)]
        sample = [self.structure(int(row), 0, 0) for row in chosen]
        energies = np.array([one.energy for one in sample], dtype=np.float64)
        forces = ForceScale()
        for one in sample:
            assert one.forces is not None
            forces.add(one.forces)
        known = self.store.normalisation().known
        scale = float(np.sqrt(np.square(energies).mean()))
        force_scale = denoising.rms_std if denoising.gives_displacement else forces.solve() or 1.0
        return Normalisation(
            np.zeros(NUM_ELEMENTS), known, scale or 1.0, force_scale, has_forces=True
        )


class JointDataset:
    """All subsets as one, addressed by joint ids."""

    def __init__(self, config: DataConfig, seed: int = 0) -> None:
        self.config = config
        self.seed = seed
        self.subsets = [Subset(name, subset, config) for name, subset in config.subsets.items()]
        self.offsets = np.cumsum([0] + [len(subset.store) for subset in self.subsets])

    def __getstate__(self) -> dict[str, Any]:
        """A loader's process gets the configuration and opens the stores itself."""
        return {"config": self.config, "seed": self.seed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["config"], state["seed"])  # type: ignore[misc]

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @property
    def names(self) -> tuple[str, ...]:
        """The subsets' names, in the order of the heads' outputs."""
        return tuple(subset.name for subset in self.subsets)

    @property
    def is_denoising(self) -> NDArray[np.bool_]:
        """(D,) whether the subset's labels are displacements, in Å, in place of forces."""
        return np.array(
            [
                subset.denoising is not None and subset.denoising.gives_displacement
                for subset in self.subsets
            ]
        )

    @property
    def sampling_weights(self) -> tuple[float, ...]:
        """Factor on the uses of each subset in an epoch."""
        return tuple(self.config.subsets[name].sampling_weight for name in self.names)

    def _column(self, name: str) -> Joined:
        return Joined([getattr(subset.store.index, name) for subset in self.subsets])

    @cached_property
    def num_atoms(self) -> Joined:
        """Atoms of every structure, by joint id; ask for an array of ids."""
        return self._column("num_atoms")

    @cached_property
    def num_edges(self) -> Joined:
        """Edges of every structure at its card's cutoff, by joint id."""
        return self._column("num_edges")

    @cached_property
    def has_energy(self) -> Joined:
        """Which structures have an energy label that is used, by joint id."""
        return Joined([subset.has_energy for subset in self.subsets])

    @cached_property
    def has_forces(self) -> Joined:
        """Which structures have a force label that is used, by joint id."""
        return Joined([subset.has_forces for subset in self.subsets])

    def subset_of(self, joint_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The subset index d_i of each joint id."""
        return np.searchsorted(self.offsets, joint_ids, side="right") - 1

    def ids(self, split: str) -> NDArray[np.int64]:
        """Joint ids of a split, ascending."""
        parts = [
            subset.rows(split) + offset
            for offset, subset in zip(self.offsets, self.subsets, strict=False)
        ]
        return np.concatenate(parts).astype(np.int64)

    @property
    def most_neighbors(self) -> int:
        """Neighbours of an atom in the structure that has the most on average; at least 1."""
        indices = [subset.store.index for subset in self.subsets]
        most = [float((one.num_edges / one.num_atoms).max(initial=1)) for one in indices]
        return math.ceil(max(most))

    def plan_index(self, max_neighbors: int, edge_share: float) -> PlanIndex:
        """What the planner is given: cost and labels of each training structure.

        Two bytes a structure, where the structures of a subset are alike in their labels and few
        are left out of training. Costs above 16 bits are rounded to multiples of a power of two.

        Args:
            max_neighbors: the model's limit of neighbours per atom.
            edge_share: the share of an atom's cost that its edges cause.
        """
        rows = [subset.training_rows() for subset in self.subsets]
        parts = list(zip(self.subsets, rows, strict=True))
        costs = (
            structure_cost(
                subset.store.index.num_atoms[here],
                subset.store.index.num_edges[here],
                max_neighbors=max_neighbors,
                edge_share=edge_share,
            )
            for subset, some in parts
            for here in _some_at_a_time(some)
        )
        # An atom has at most `max_neighbors` edges, and costs at most one unit with them.
        largest = COST_UNIT * max(subset.most_training_atoms for subset in self.subsets)
        starts = self.offsets[:-1].tolist()
        return PlanIndex(
            ids=Joined([moved(some, start) for some, start in zip(rows, starts, strict=True)]),
            subset=Joined([constant(np.uint16(d), len(some)) for d, some in enumerate(rows)]),
            cost=coarse(costs, sum(map(len, rows)), largest),
            has_energy=Joined([picked(subset.has_energy, some) for subset, some in parts]),
            has_forces=Joined([picked(subset.has_forces, some) for subset, some in parts]),
            num_atoms=Joined(
                [picked(subset.store.index.num_atoms, some) for subset, some in parts]
            ),
            sampling_weights=self.sampling_weights,
        )

    def structure(self, joint_id: int, noise_draw: int = FIXED_NOISE) -> Structure:
        """One structure, with noise where its subset carries the denoising task.

        Args:
            joint_id: which structure.
            noise_draw: which draw of the noise; the pass of the subset's stream in training.
        """
        subset_index = int(np.searchsorted(self.offsets, joint_id, side="right")) - 1
        row = int(joint_id - self.offsets[subset_index])
        return self.subsets[subset_index].structure(row, noise_draw, self.seed)

    def structures(self, split: str) -> Iterator[Structure]:
        """Every structure of a split, subset after subset, with the fixed noise."""
        for joint_id in self.ids(split):
            yield self.structure(int(joint_id))


def _some_at_a_time(rows: NDArray[np.integer[Any]] | Column) -> Iterator[NDArray[np.integer[Any]]]:
    for first in range(0, len(rows), _AT_ONCE):
        yield rows[np.arange(first, min(first + _AT_ONCE, len(rows)))]


def refit_normalisation(subset: Subset) -> Normalisation:
    """Reference energies and scales fitted on the training rows that this run uses (Sec. 4.4)."""
    return fit_normalisation(subset.store, subset.rows("train"))
