"""What files of arrays (HDF5, npz) call things and where: a declared layout, and the named ones.

A card names one of `LAYOUTS`, ``reader: {layout: transition1x}``, or declares what its file has::

    reader:
      layout:
        groups: molecules/*
        atomic_numbers: Z
        positions: xyz
        energy: dft_energy

Whatever is left out is looked for under its usual names. ``like: NAME`` starts from a named layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from lamm.data.cards import CardHeader, Units
from lamm.data.readers.common import IGNORED
from lamm.errors import ConfigError, nearest_names
from lamm.schema import Frozen


def _names(value: Any) -> Any:
    if value is None or value == IGNORED:
        return ()
    return (value,) if isinstance(value, str) else value


Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_names)]
"""A name, several to look for, or ``none``."""


class Layout(Frozen):
    """Where a file of arrays has its structures, and what it calls each quantity.

    A name is that of an array of the group; ``a/b`` is one in a group below, ``/b`` one at the top
    of the file, ``@b`` an attribute. With S structures of N atoms in a group, an array is (S, ...),
    or it has the shape of one structure: then the group is one structure (positions), or all of
    its structures share the value (atomic numbers, cell, pbc, fixed, id, split).
    """

    groups: Names = ("**",)
    """Groups that hold structures: a path with ``*`` for any name; ``**`` for every group from
    there on that has positions; ``/`` for the top of the file."""
    one_per_group: bool = False
    """Every group is one structure; such files are counted without looking into the groups."""
    atomic_numbers: Names = (
        "atomic_numbers",
        "numbers",
        "nuclear_charges",
        "species",
        "elements",
        "Z",
        "z",
    )
    """(N,) or (S, N), as numbers or symbols."""
    positions: Names = ("positions", "coordinates", "coords", "pos", "xyz", "R")
    """(S, N, 3) or (N, 3), or flattened to (S, 3 N) or (3 N,)."""
    energy: Names = ("energy", "energies", "total_energy", "E")
    """(S,) or (S, 1)."""
    forces: Names = ("forces", "force", "F")
    """As the positions; `units.forces_sign: -1` in the card where it is the gradient."""
    stress: Names = ("stress", "stresses")
    """(S, 3, 3), (S, 9) or (S, 6)."""
    cell: Names = ("cell", "cells", "lattice", "box")
    """(3, 3), rows are the lattice vectors, or flattened, or (3,) of a box; of each structure or of
    the group."""
    pbc: Names = ("pbc",)
    """(3,) or one value; every direction with a lattice vector where there is none."""
    fixed: Names = ("fixed",)
    """(N,) or (S, N), true for atoms that were held still."""
    id: Names = ()
    """(S,) strings, or one for the group: then its structures are counted through."""
    split: Names = ()
    """(S,) strings, or one for the group."""
    elements: Names = ()
    """Symbols that the atomic numbers count through from 0, where they aren't atomic numbers."""
    padding: int = 0
    """The atomic number of atoms that only fill up a row of (S, N)."""
    missing: Literal["error", "nan"] = "error"
    """``nan``: a label of NaN was not computed; the structure goes without it, or is left out where
    the card promises the label or no other is there."""
    ids: Literal["file", "group"] = "file"
    """Name structures by file, group and number, or leave the file out: for data sets whose groups
    have names of their own."""
    split_groups: Mapping[Literal["train", "val", "test"], str] = Field(default_factory=dict)
    """Top groups that repeat the groups of each split, for ``splits: official``."""
    units: Units | None = None
    """Units that the data set is known to have; a card that says others is refused."""

    @model_validator(mode="before")
    @classmethod
    def _like(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "like" not in value:
            return value
        changes = {key: entry for key, entry in value.items() if key != "like"}
        return named_layout(value["like"]).model_dump(exclude_unset=True) | changes


def named_layout(name: Any) -> Layout:
    """The layout of a name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in LAYOUTS:
        raise ValueError(f"unknown layout {name!r}. {nearest_names(str(name), LAYOUTS)}")
    return LAYOUTS[name]


def _layout(value: Any) -> Any:
    return named_layout(value) if isinstance(value, str) else value


LayoutOption: TypeAlias = Annotated[Layout, BeforeValidator(_layout)]
"""A layout that is declared, or the name of one."""


def check_units(layout: Layout, header: CardHeader) -> None:
    """Refuse a card whose units aren't those that a named layout is known to have.

    Raises:
        ConfigError: they differ.
    """
    if layout.units is None:
        return
    known, said = layout.units.factors(), header.units.factors()
    labels = [label for label in ("energy", "forces", "stress") if getattr(layout, label)]
    wrong = [
        quantity
        for quantity in ("length", *labels)
        if abs(known[quantity] - said[quantity]) > 1e-6 * abs(known[quantity])
    ]
    if wrong:
        words = layout.units.model_dump(exclude_defaults=True)
        written = ", ".join(f"{key}: {value}" for key, value in words.items())
        raise ConfigError(
            f"the card's units of {', '.join(wrong)} are not those of the layout that it names.\n"
            + (
                f"  Write `units: {{{written}}}` in the card"
                if written
                else "  Leave `units` out of the card"
            )
            + ", or declare `units` in the layout if your copy of the data is in others."
        )


def check_unit(quantity: str, name: str, unit: str | None, header: CardHeader) -> None:
    """Refuse a card whose unit isn't the one that the source itself says an array has.

    Raises:
        ConfigError: they differ. A unit that isn't known here says nothing.
    """
    entry = {"positions": "length", "cell": "length"}.get(quantity, quantity)
    factors = header.units.factors()
    if unit is None or entry not in factors:
        return
    try:
        known = abs(Units.model_validate({entry: unit}).factors()[entry])
    except ValueError:
        return
    if abs(known - abs(factors[entry])) > 1e-4 * known:
        raise ConfigError(
            f"the source says that '{name}' is in {unit}, and the card says otherwise.\n"
            f"  Write `units: {{{entry}: {unit}}}` in the card (every quantity of the source)."
        )


def _only(**names: Any) -> Layout:
    """A layout that has nothing but what is named: nothing is looked for under usual names."""
    nothing: dict[str, Any] = dict.fromkeys(("stress", "cell", "pbc", "fixed"), ())
    return Layout.model_validate(nothing | names)


_ANI_UNITS: Final = {"energy": "Hartree", "length": "Å"}

LAYOUTS: Final[dict[str, Layout]] = {
    # Schreiner et al. 2022. `data` has every reaction; train, val and test have the same once more.
    # A reaction's own arrays are the images of its band, the endpoints among the first ten; the
    # groups below it repeat reactant and product and add the converged transition state.
    "transition1x": _only(
        groups="data/*/*",
        atomic_numbers="atomic_numbers",
        positions="positions",
        energy="wB97x_6-31G(d).energy",
        forces="wB97x_6-31G(d).forces",
        ids="group",
        split_groups={"train": "train", "val": "val", "test": "test"},
        units={},
    ),
    # Hoja et al. 2021. totFOR belongs to ePBE0+MBD; pbe0FOR and vdwFOR are its two parts.
    "qm7x": _only(
        groups="*/*",
        one_per_group=True,
        atomic_numbers="atNUM",
        positions="atXYZ",
        energy="ePBE0+MBD",
        forces="totFOR",
        ids="group",
        units={},
    ),
    # QM7-X as one padded npz file, (S, 23).
    "qm7x-npz": _only(
        groups="/", atomic_numbers="z", positions="R", energy="E", forces="F", units={}
    ),
    # Eastman et al. 2023. A gradient, in atomic units.
    "spice": _only(
        groups="*",
        atomic_numbers="atomic_numbers",
        positions="conformations",
        energy="dft_total_energy",
        forces="dft_total_gradient",
        ids="group",
        units={"energy": "Hartree", "length": "bohr", "forces_sign": -1},
    ),
    # Smith et al. 2020. A level of theory that wasn't run on a structure is NaN there.
    "ani1x": _only(
        groups="*",
        atomic_numbers="atomic_numbers",
        positions="coordinates",
        energy="wb97x_dz.energy",
        forces="wb97x_dz.forces",
        missing="nan",
        ids="group",
        units=_ANI_UNITS,
    ),
    # Devereux et al. 2020. Groups by the number of atoms: every structure has its own elements.
    "ani2x": _only(
        groups="*",
        atomic_numbers="species",
        positions="coordinates",
        energy="energies",
        forces="forces",
        ids="group",
        units=_ANI_UNITS,
    ),
    # Smith et al. 2018. What it calls forces is the gradient.
    "comp6": _only(
        groups="**",
        atomic_numbers="species",
        positions="coordinates",
        energy="energies",
        forces="forces",
        units=_ANI_UNITS | {"forces_sign": -1},
    ),
    # Christensen and von Lilienfeld 2020, one molecule a file.
    "rmd17": _only(
        groups="/",
        atomic_numbers="nuclear_charges",
        positions="coords",
        energy="energies",
        forces="forces",
        units={"energy": "kcal/mol"},
    ),
}
"""Layouts by the name that a card gives under ``reader: {layout: NAME}``."""
