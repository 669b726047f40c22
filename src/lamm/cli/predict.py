"""``lamm predict``: energy, forces and stress of every structure in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    structure_writer,
    with_results,
)


def predict(
    checkpoint: Checkpoint,
    file: StructureFile,
    to: Annotated[Path, typer.Option("--to", help="File to write: .extxyz, or with .gz, .xz.")],
    head: Head = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch at most.")] = 32,
    device: Device = "cpu",
    dtype: Precision = "float32",
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Predict for every structure of a file; write an extended XYZ file in eV and Å.

    Labels that the file had are kept as reference_energy, reference_forces, reference_stress. With
    `lamm uncertainty` fitted, energy_uncertainty is the standard deviation of each energy, and the
    column forces_uncertainty that of the components of each atom's force.
    """
    import numpy as np

    from lamm.evaluate.predict import predict as run
    from lamm.evaluate.predict import structure_of, unknown_elements, unknown_elements_message

    common.start_logging(quiet=as_json)
    check_structure_output(to, force)
    calculator = load_calculator(checkpoint, head, device, dtype)
    model, column = calculator.model, calculator.column
    atoms = read_atoms(file)
    structures = [structure_of(one, f"{file}, structure {k}") for k, one in enumerate(atoms)]
    numbers = np.concatenate([one.numbers for one in atoms])
    unknown = unknown_elements(model, column, numbers)
    note = unknown_elements_message(model, column, unknown) if unknown else None
    if note and not as_json:
        typer.echo(f"note: {note}", err=True)
    is_finite = True
    info: dict[str, Any] = {"head": calculator.head, "model": str(checkpoint)}
    with (
        counting("predicting", len(atoms), "structures", visible=not as_json) as show,
        structure_writer(to) as write,
    ):
        results = run(
            model,
            structures,
            calculator.head,
            batch_size=batch_size,
            uncertainty=calculator.uncertainty,
            progress=show,
        )
        for one, result in zip(atoms, results, strict=True):
            values: dict[str, Any] = {"energy": result.energy, "forces": result.forces}
            if result.stress is not None:
                values["stress"] = result.stress
            is_finite &= all(bool(np.isfinite(value).all()) for value in values.values())
            sigma = result.energy_uncertainty
            added = info if sigma is None else info | {"energy_uncertainty": sigma}
            written = with_results(one, values, added)
            if result.forces_uncertainty is not None:
                written.arrays["forces_uncertainty"] = result.forces_uncertainty
            write(written)
    if as_json:
        common.emit_json(
            {"to": to, "structures": len(atoms), "atoms": len(numbers), "finite": is_finite}
            | info
            | {"unknown_elements": unknown, "uncertainty": calculator.uncertainty is not None}
        )
    else:
        common.say(f"{len(atoms):,} structures, head '{calculator.head}' -> {to}")
    if not is_finite:
        typer.echo("some predictions are not finite numbers: this model is broken.", err=True)
        raise typer.Exit(common.BAD_ANSWER)
