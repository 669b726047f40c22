"""``lamm relax``: move the atoms of every structure in a file until the forces are small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lamm.cli import common
from lamm.cli.common import ForceFlag, JsonFlag
from lamm.cli.structures import (
    Checkpoint,
    Device,
    Head,
    Precision,
    StructureFile,
    check_structure_output,
    counting,
    load_calculator,
    read_atoms,
    say_table,
    structure_writer,
    with_results,
)
from lamm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ase import Atoms

    from lamm.calculators.ase import LaMMCalculator


class Optimizer(StrEnum):
    """ASE's optimizers that are offered."""

    FIRE = "FIRE"
    BFGS = "BFGS"
    LBFGS = "LBFGS"


@dataclass
class Relaxation:
    """How one structure fared."""

    structure: int
    formula: str
    atoms: int
    energy_before_ev: float
    energy_after_ev: float | None
    max_force_ev_per_ang: float | None
    steps: int
    converged: bool


def relax(
    checkpoint: Checkpoint,
    file: StructureFile,
    to: Annotated[Path, typer.Option("--to", help="File to write: .extxyz, or with .gz, .xz.")],
    head: Head = None,
    fmax: Annotated[float, typer.Option(help="Largest force that may be left, eV/Å.")] = 0.05,
    steps: Annotated[int, typer.Option(min=0, help="Steps at most, per structure.")] = 500,
    optimizer: Annotated[Optimizer, typer.Option(help="FIRE, BFGS or LBFGS.")] = Optimizer.FIRE,
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell too.")] = False,
    device: Device = "cpu",
    dtype: Precision = "float64",
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Relax every structure of a file; write where the atoms came to rest.

    Fixed atoms of the file stay where they are. The exit status is 1 where a structure didn't
    converge; it is written as far as it came, with relaxed=F.
    """
    common.start_logging(quiet=as_json)
    if fmax <= 0:
        raise ConfigError(f"--fmax {fmax}: expected a force above 0, in eV/Å.")
    check_structure_output(to, force)
    calculator = load_calculator(checkpoint, head, device, dtype)
    if cell and "stress" not in calculator.implemented_properties:
        raise ConfigError(
            "--cell needs a stress, and this model predicts forces directly. Leave --cell out, "
            "or use a model that was trained with `forces: gradient`."
        )
    atoms = read_atoms(file)
    if cell:
        _check_cells(atoms, file)
    outcomes = []
    info = {"head": calculator.head, "model": str(checkpoint)}
    with (
        counting("relaxing", len(atoms), "structures", visible=not as_json) as show,
        structure_writer(to) as write,
    ):
        for number, start in enumerate(atoms):
            outcome, relaxed = relax_one(
                number, start, calculator, _minimiser(optimizer, cell), fmax, steps
            )
            outcomes.append(outcome)
            results = _results(relaxed)
            relaxed.calc = None  # its results are no labels of the file
            write(with_results(relaxed, results, info | {"relaxed": outcome.converged}))
            show(number + 1)
    failed = sum(not outcome.converged for outcome in outcomes)
    if as_json:
        rows = [asdict(outcome) for outcome in outcomes]
        common.emit_json({"to": to, "fmax": fmax, "not_converged": failed, "structures": rows})
    else:
        _say(outcomes)
        common.say(f"{len(outcomes) - failed} of {len(outcomes)} converged -> {to}")
    if failed:
        raise typer.Exit(common.BAD_ANSWER)


def relax_one(
    number: int,
    start: Atoms,
    calculator: LaMMCalculator,
    minimiser: Callable[[Atoms], Any],
    fmax: float,
    steps: int,
) -> tuple[Relaxation, Atoms]:
    """Relax one structure.

    Args:
        number: its place in the file.
        start: where it starts; left as it is.
        calculator: the potential.
        minimiser: makes the optimizer of some atoms.
        fmax: largest force that may be left, eV/Å.
        steps: at most so many.

    Returns:
        How it went, and the structure with the calculator's results of its last positions.
    """
    import numpy as np

    atoms: Atoms = start.copy()
    atoms.calc = calculator
    before = float(atoms.get_potential_energy())
    dynamics = minimiser(atoms)
    converged = False
    try:
        converged = bool(dynamics.run(fmax=fmax, steps=steps))
    except DataError:  # the positions are no numbers any more
        atoms.set_positions(start.positions)
        atoms.set_cell(start.cell)
    after = float(atoms.get_potential_energy())
    largest = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    is_finite = bool(np.isfinite([after, largest]).all())
    outcome = Relaxation(
        number,
        start.get_chemical_formula(),
        len(start),
        before,
        after if is_finite else None,
        largest if is_finite else None,
        dynamics.nsteps,
        converged and is_finite,
    )
    return outcome, atoms


def _minimiser(optimizer: Optimizer, cell: bool) -> Callable[[Atoms], Any]:
    """A function that makes ASE's optimizer for some atoms, with or without their cell."""
    import ase.optimize
    from ase.filters import FrechetCellFilter

    kind = getattr(ase.optimize, optimizer.value)
    return lambda atoms: kind(FrechetCellFilter(atoms) if cell else atoms, logfile=None)


def _check_cells(atoms: list[Atoms], file: Path) -> None:
    for number, one in enumerate(atoms):
        if one.cell.rank < 3:
            raise ConfigError(
                f"--cell: structure {number} of {file} has no cell to relax. "
                "Leave --cell out, or relax it on its own."
            )


def _results(atoms: Atoms) -> dict[str, Any]:
    """The results of the last positions; the forces as they are, constraints left aside."""
    calc: Any = atoms.calc
    return {k: calc.results[k] for k in ("energy", "forces", "stress") if k in calc.results}


def _say(outcomes: list[Relaxation]) -> None:
    rows = [
        (
            f"{outcome.structure}  {outcome.formula}",
            f"{outcome.energy_before_ev:.4f}",
            "-" if outcome.energy_after_ev is None else f"{outcome.energy_after_ev:.4f}",
            "-" if outcome.max_force_ev_per_ang is None else f"{outcome.max_force_ev_per_ang:.4f}",
            str(outcome.steps),
            "yes" if outcome.converged else "no",
        )
        for outcome in outcomes
    ]
    say_table(
        ("structure", "energy before (eV)", "after (eV)", "max force (eV/Å)", "steps", "converged"),
        rows,
    )
