"""A potential as an ASE calculator, for relaxations, molecular dynamics and single points.

Example::

    from ase.build import molecule
    from lamm import LaMMCalculator

    water = molecule("H2O")
    water.calc = LaMMCalculator("runs/finetune")
    water.get_potential_energy(), water.get_forces()  # eV, eV/Å
"""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from lamm.errors import ConfigError, DataError, nearest_names
from lamm.evaluate.predict import (
    choose_column,
    predict,
    structure_of,
    unknown_elements,
    unknown_elements_message,
)
from lamm.evaluate.uncertainty import Uncertainty, find_uncertainty
from lamm.models.potential import Potential
from lamm.typing import PathLike

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms

logger = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class LaMMCalculator(Calculator):
    """Energy (eV), forces (eV/Å) and, with gradient forces and a cell, stress (eV/Å³).

    With an uncertainty (`lamm uncertainty`) ``results["energy_uncertainty"]`` is the standard
    deviation of the energy in eV, and ``results["forces_uncertainty"]`` (N,) that of the components
    of each atom's force in eV/Å.

    The neighbour list is made anew at every call, so atoms may move, appear or vanish between
    calls.
    """

    def __init__(
        self,
        model: Potential | PathLike,
        head: str | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: Literal["float32", "float64"] | None = None,
        uncertainty: Uncertainty | PathLike | Literal[False] | None = None,
        **keywords: Any,
    ) -> None:
        """Take a potential, or load one.

        Args:
            model: a potential (copied where device or precision differ, never changed), or a run
                folder, a saved step or a ``.safetensors`` file.
            head: the output to use, named as the subset; may be left out where there is one.
            device: where to compute.
            dtype: precision of the model; its own where left out, which is float32 for one that is
                loaded. Relaxations to very small forces want float64.
            uncertainty: what `lamm uncertainty` wrote, or its path. Where left out, what lies
                beside the checkpoint and knows the head; False: none.
            keywords: what every ASE calculator takes, such as ``atoms``.

        Raises:
            ConfigError: no such head or dtype, several heads and none was named, or a head without
                the uncertainty that was asked for.
            CheckpointError: there is nothing to load at that path, or an uncertainty is damaged or
                of another model.
        """
        if dtype is not None and dtype not in _DTYPES:
            raise ConfigError(f"dtype is '{dtype}'. {nearest_names(dtype, _DTYPES)}")
        if isinstance(model, Potential):
            potential = model
        else:
            from lamm.train.checkpoint import load

            potential = load(model, device=device)
        self.column = choose_column(potential, head)
        self.head = potential.subsets[self.column]
        self.uncertainty = _uncertainty(model, potential, self.head, uncertainty)
        self.model = _placed(potential, torch.device(device), dtype)
        self._warned: set[str] = set()
        self.implemented_properties = ["energy", "free_energy", "forces"]
        if self.model.config.forces == "gradient":
            self.implemented_properties.append("stress")
        if self.uncertainty is not None:
            self.implemented_properties.append("energy_uncertainty")
            if self.uncertainty.heads[self.head].forces is not None:
                self.implemented_properties.append("forces_uncertainty")
        super().__init__(**keywords)  # type: ignore[no-untyped-call]
        self.ignored_changes = {"initial_charges", "initial_magmoms"}
        self.parameters.update({"head": self.head, "device": str(device)})

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """One of the properties, as ASE asks for it; says why where there is no stress."""
        if name == "stress" and "stress" not in self.implemented_properties:
            raise PropertyNotImplementedError(
                "no stress: this model predicts forces directly (`forces: direct`), and a stress "
                "is a gradient of the energy. Train or fine-tune one with `forces: gradient`."
            )
        return super().get_property(name, atoms, allow_calculation)  # type: ignore[no-untyped-call]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute all properties of the atoms into ``results``.

        Raises:
            DataError: no atoms, or positions that aren't finite.
        """
        if atoms is not None:
            # The copy leaves labels and calculator of the original behind.
            self.atoms = atoms.copy()
        subject = self.atoms
        if subject is None or len(subject) == 0:
            raise DataError("no atoms to compute anything of. Give the calculator at least one.")
        if not np.isfinite(subject.positions).all():
            raise DataError(
                "positions are not finite: the structure has come apart. Lower the time step or "
                "the step length, and look at the structure it started from."
            )
        self._warn(subject)
        (result,) = predict(
            self.model, [structure_of(subject)], self.head, uncertainty=self.uncertainty
        )
        self.results = {
            "energy": result.energy,
            "free_energy": result.energy,
            "forces": result.forces,
        }
        if result.stress is not None:
            self.results["stress"] = result.stress
        if result.energy_uncertainty is not None:
            self.results["energy_uncertainty"] = result.energy_uncertainty
        if result.forces_uncertainty is not None:
            self.results["forces_uncertainty"] = result.forces_uncertainty

    def _warn(self, atoms: Atoms) -> None:
        """Say once for each element that the head doesn't know it."""
        symbols = unknown_elements(self.model, self.column, atoms.numbers)
        new = [symbol for symbol in symbols if symbol not in self._warned]
        if new:
            self._warned.update(new)
            logger.warning("%s", unknown_elements_message(self.model, self.column, new))


def _uncertainty(
    source: Potential | PathLike,
    potential: Potential,
    head: str,
    wanted: Uncertainty | PathLike | Literal[False] | None,
) -> Uncertainty | None:
    """The uncertainty that was given, or the one beside the checkpoint if it knows the head."""
    if wanted is False or (wanted is None and isinstance(source, Potential)):
        return None
    if wanted is None:
        found = find_uncertainty(cast("PathLike", source), potential)
        return found if found is not None and head in found.heads else None
    if not isinstance(wanted, Uncertainty):
        wanted = Uncertainty.load(wanted, potential)
    wanted.require(head)
    return wanted


def _placed(
    model: Potential, device: torch.device, dtype: Literal["float32", "float64"] | None
) -> Potential:
    """The model on a device in a precision; a copy, unless it is so already."""
    weight = next(model.parameters())
    wanted = weight.dtype if dtype is None else _DTYPES[dtype]
    if weight.dtype == wanted and weight.device == device:
        return model
    return copy.deepcopy(model).to(device, wanted).eval()
