"""What is known of a data set: its card, of which a person writes the header (Table 2).

`CardHeader` is the part that no program can find out, such as the functional and the units of the
source. `DatasetCard` adds what was counted and computed when the store was written.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from lamm.data.references import Normalisation
from lamm.errors import StoreError
from lamm.schema import Frozen, load_yaml, parse
from lamm.structure import MAX_ATOMIC_NUMBER
from lamm.units import energy_factor, force_factor, length_factor, stress_factor

FORMAT_VERSION = 1
MAX_SKIPPED_LISTED = 1000
"""Skipped records that a card lists with the reason; beyond it they are only counted."""

Task: TypeAlias = Literal["S2EF", "S2EF-Total", "IS2RE", "IS2RE-Total", "denoising"]
Label: TypeAlias = Literal["energy", "forces", "stress"]


def _several(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_several)]


class Units(Frozen):
    """Units of the source; the store is in eV, Å, eV/Å and eV/Å³."""

    energy: str = "eV"
    length: str = "Å"
    forces: str | None = None
    """An energy over a length; the two above where left out."""
    stress: str = "eV/Å³"
    forces_sign: Literal[1, -1] = 1
    """-1 where the source has the gradient of the energy, which points the other way."""
    stress_sign: Literal[1, -1] = 1
    """-1 where the source counts pressure as positive; here, as in ASE, tension is."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        self.factors()
        return self

    def factors(self) -> dict[str, float]:
        """What each quantity of the source is multiplied by.

        Raises:
            ConfigError: a unit is unknown.
        """
        forces = self.forces or f"{self.energy}/{self.length}"
        return {
            "energy": energy_factor(self.energy),
            "length": length_factor(self.length),
            "forces": self.forces_sign * force_factor(forces),
            "stress": self.stress_sign * stress_factor(self.stress),
        }


class KeyNames(Frozen):
    """What the source calls each quantity; looked for under the usual names where left out.

    ``none`` for `fixed`, `split` or `id` ignores what the source has.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None
    fixed: str | None = None
    """Atoms that were held still (true: held)."""
    split: str | None = None
    id: str | None = None
    """Name of a record; those without one are called ``file:record``."""


class CardHeader(Frozen):
    """What a person writes of a data set, in YAML; every entry may be left out."""

    name: str = ""
    domain: str = ""
    """Kind of material, such as ``Catalyst`` or ``Molecule``."""
    task: Task | None = None
    """S2EF: energy and forces of a structure; IS2RE: energy after relaxation; -Total: total
    energies instead of adsorption energies; denoising: no label (Sec. 3.3)."""
    functional: str = ""
    """Level of theory, with the basis set where there is one."""
    is_dft: bool | None = None
    remarks: str = ""
    labels: tuple[Label, ...] | None = None
    """Labels that every record must have; found record by record where left out."""
    periodic: bool | None = None
    """Whether every structure is periodic, or none; found out where left out."""
    units: Units = Units()
    energy_convention: str = ""
    """What an energy of zero means, such as ``total energy of all electrons``."""
    licence: str = ""
    citation: Texts = ()
    source: Texts = ()
    """Addresses that the data came from, or how it was made."""
    keys: KeyNames = KeyNames()
    reader: dict[str, Any] = Field(default_factory=dict)
    """Options of the source's format; `lamm data formats` lists them."""
    split: Literal["train", "val", "test", "from_path"] | None = None
    """Split of records that name none; ``from_path``: what the source's file and folder names say
    (`lamm.data.readers.paths`). Left out, the hash of the id decides."""
    max_atoms: PositiveInt | None = None
    """Skip larger structures."""
    position_dtype: Literal["float32", "float64"] | None = None
    """Precision of the stored positions; that of the first record where left out."""
    edge_cutoff: PositiveFloat = 12.0
    """Å; within this the index counts edges. The default is LaMM-S's (Sec. 4.2)."""
    edge_max_neighbors: PositiveInt = 50
    """Edges of an atom that are counted at most. The default is LaMM-S's."""


class AtomCounts(Frozen):
    """Sizes of the structures."""

    min: PositiveInt
    mean: PositiveFloat
    max: PositiveInt
    total: PositiveInt


class FileRecord(Frozen):
    """A file of the store."""

    name: str
    rows: NonNegativeInt
    bytes: NonNegativeInt
    sha256: str


class Skipped(Frozen):
    """A record of the source that isn't in the store."""

    record: str
    reason: str


class DatasetCard(CardHeader):
    """The header, and what was computed when the store was written."""

    task: Task
    labels: tuple[Label, ...]
    """Labels that at least one structure has."""
    labels_chosen: bool = False
    """Whether the header named the labels, so that others were left out on purpose."""
    periodic: bool | None = None
    """None where some are and some are not."""
    position_dtype: Literal["float32", "float64"]
    format_version: Literal[1] = 1
    lamm_version: str
    factors: dict[str, float]
    """What each quantity of the source was multiplied by."""
    codata_year: int
    keys_found: dict[str, str]
    """What the source called each label."""
    keys_seen: tuple[str, ...] = ()
    """Names in the source's records, used or not."""
    source_sha256: dict[str, str]
    num_structures: PositiveInt
    num_periodic: NonNegativeInt
    num_atoms: AtomCounts
    label_counts: dict[Label, NonNegativeInt]
    elements: tuple[str, ...]
    num_train: NonNegativeInt
    """Structures that train by `lamm.data.splits` with its default fractions; likewise below."""
    num_val: NonNegativeInt
    num_test: NonNegativeInt
    reference_energies: dict[str, float]
    """eV per atom of each element, fitted on the training split; empty without energies."""
    energy_scale: PositiveFloat | None
    """eV; what the references leave of the energies (rms). None without energies."""
    force_scale: PositiveFloat | None
    """eV/Å; of free atoms, see `ForceScale`. None without forces."""
    shards: Annotated[tuple[FileRecord, ...], Field(min_length=1)]
    index: FileRecord
    num_skipped: NonNegativeInt = 0
    skipped: tuple[Skipped, ...] = ()
    """The first thousand."""

    def normalisation(self) -> Normalisation:
        """Reference energies and scales as the model takes them; a scale of 1 without the label."""
        energies = np.zeros(MAX_ATOMIC_NUMBER + 1)
        known = np.zeros(MAX_ATOMIC_NUMBER + 1, dtype=bool)
        for symbol, energy in self.reference_energies.items():
            energies[atomic_numbers[symbol]] = energy
            known[atomic_numbers[symbol]] = True
        return Normalisation(
            energies,
            known,
            self.energy_scale or 1.0,
            self.force_scale or 1.0,
            has_forces=self.force_scale is not None,
        )


def element_symbols(numbers: Iterable[int]) -> tuple[str, ...]:
    """Symbols of atomic numbers, in their order."""
    return tuple(chemical_symbols[int(number)] for number in numbers)


def read_header(path: str | Path) -> CardHeader:
    """The header that a person wrote.

    Raises:
        ConfigError: no such file, not YAML, or a key or value is wrong.
    """
    return parse(CardHeader, load_yaml(path), str(path))


def check_version(card: Any, path: Path) -> None:
    """Refuse a card of another format before anything else of it is looked at.

    Raises:
        StoreError: the card isn't one, or has another `format_version`.
    """
    version = card.get("format_version") if isinstance(card, dict) else None
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{path}: format_version is {version!r}, expected {FORMAT_VERSION}.\n"
            "  The store was written by another version of LaMM: ingest the source files again, "
            "or use that version."
        )
