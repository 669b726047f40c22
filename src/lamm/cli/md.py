"""``lamm md``: molecular dynamics with a trained potential."""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass, field
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
    check_output,
    counting,
    load_calculator,
    read_atoms,
)
from lamm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from ase import Atoms

HOTTEST = 1e5
"""Kelvin; hotter than this the run is taken to have blown up."""


class Ensemble(StrEnum):
    """What is held constant."""

    nve = "nve"
    nvt = "nvt"


@dataclass
class Record:
    """Time in ps, energies in eV and temperature in K at the recorded steps."""

    time: list[float] = field(default_factory=list)
    potential: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)

    def summary(self, num_atoms: int) -> dict[str, float | None]:
        """Mean and spread of the temperature, and how the total energy drifts.

        The drift is the slope of a straight line through the total energy.
        """
        import numpy as np

        late = np.array(self.temperature[len(self.temperature) // 2 :] or [math.nan])
        drift = None
        if len(self.time) > 1:
            slope = float(np.polyfit(self.time, self.total, 1)[0])
            drift = 1000 * slope / num_atoms
        return {
            "temperature_mean_k": float(late.mean()),
            "temperature_std_k": float(late.std()),
            "potential_energy_last_ev": self.potential[-1] if self.potential else None,
            "total_energy_drift_mev_per_atom_per_ps": drift,
        }


def md(
    checkpoint: Checkpoint,
    file: StructureFile,
    to: Annotated[Path, typer.Option("--to", help="Trajectory to write: .traj or .extxyz.")],
    head: Head = None,
    temperature: Annotated[float, typer.Option(min=0, help="Kelvin.")] = 300.0,
    timestep: Annotated[float, typer.Option(help="Femtoseconds.")] = 1.0,
    steps: Annotated[int, typer.Option(min=1)] = 1000,
    ensemble: Annotated[
        Ensemble, typer.Option(help="nvt: Langevin thermostat; nve: velocity Verlet.")
    ] = Ensemble.nvt,
    friction: Annotated[float, typer.Option(help="Of the thermostat, 1/fs.")] = 0.01,
    seed: Annotated[int, typer.Option(help="Of velocities and thermostat.")] = 0,
    every: Annotated[int, typer.Option(min=1, help="Steps between recorded structures.")] = 10,
    index: Annotated[int, typer.Option(help="Which structure of the file to start from.")] = 0,
    device: Device = "cpu",
    dtype: Precision = "float32",
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Run molecular dynamics from a structure of a file and write the trajectory.

    Velocities are drawn anew at the temperature, without drift or, for a molecule, rotation.
    Ctrl-C and SIGTERM end the run after the step at hand; what was recorded is kept. The exit
    status is 1 where the run blew up: energies that aren't finite, or above 100,000 K.
    """
    common.start_logging(quiet=as_json)
    if timestep <= 0 or friction <= 0:
        raise ConfigError("--timestep and --friction: expected numbers above 0.")
    check_output(to, force)
    if to.suffix not in (".traj", ".extxyz", ".xyz"):
        raise ConfigError(f"--to {to}: found '{to.suffix}', expected .traj, .extxyz or .xyz.")
    calculator = load_calculator(checkpoint, head, device, dtype)
    structures = read_atoms(file)
    if not -len(structures) <= index < len(structures):
        raise ConfigError(f"--index {index}: {file} has {len(structures)} structures, from 0.")
    if ensemble is Ensemble.nve and calculator.model.config.forces == "direct" and not as_json:
        typer.echo(
            "note: direct forces are no gradient of the energy, which therefore isn't conserved. "
            "For constant energy use a model with `forces: gradient`.",
            err=True,
        )
    atoms = structures[index]
    atoms.calc = calculator
    _draw_velocities(atoms, temperature, seed)
    dynamics = _dynamics(atoms, ensemble, timestep, temperature, friction, seed)
    started = time.monotonic()
    record, done, fault, signal_number = _run(
        dynamics, atoms, to, steps, every, timestep, visible=not as_json
    )
    seconds = time.monotonic() - started
    result: dict[str, Any] = {
        "to": to,
        "head": calculator.head,
        "ensemble": ensemble.value,
        "steps": done,
        "picoseconds": done * timestep / 1000,
        "atoms": len(atoms),
        "seconds": seconds,
        "steps_per_s": done / max(seconds, 1e-9),
        **record.summary(len(atoms)),
        "fault": fault,
    }
    if as_json:
        common.emit_json(result)
    else:
        _say(result, ensemble)
    if fault is not None:
        typer.echo(f"the run blew up: {fault}. Lower --timestep, or relax first.", err=True)
        raise typer.Exit(common.BAD_ANSWER)
    if signal_number is not None:
        raise typer.Exit(128 + signal_number)


def _draw_velocities(atoms: Atoms, temperature: float, seed: int) -> None:
    """Momenta of the Maxwell-Boltzmann distribution; fixed atoms have none."""
    import numpy as np
    from ase import units
    from ase.md.velocitydistribution import Stationary, ZeroRotation

    width = np.sqrt(atoms.get_masses() * units.kB * temperature)[:, None]  # (N, 1)
    atoms.set_momenta(width * np.random.default_rng(seed).normal(size=(len(atoms), 3)))
    if not atoms.constraints and len(atoms) > 1:
        Stationary(atoms)
        if not atoms.pbc.any():
            ZeroRotation(atoms)


def _dynamics(
    atoms: Atoms,
    ensemble: Ensemble,
    timestep: float,
    temperature: float,
    friction: float,
    seed: int,
) -> Any:
    import numpy as np
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.verlet import VelocityVerlet

    if ensemble is Ensemble.nve:
        return VelocityVerlet(atoms, timestep=timestep * units.fs)
    return Langevin(
        atoms,
        timestep=timestep * units.fs,
        temperature_K=temperature,
        friction=friction / units.fs,
        fixcm=False,  # the centre of mass takes part, so that the temperature is that of all atoms
        rng=np.random.default_rng([seed, 1]),
    )


def _run(
    dynamics: Any,
    atoms: Atoms,
    to: Path,
    steps: int,
    every: int,
    timestep: float,
    *,
    visible: bool,
) -> tuple[Record, int, str | None, int | None]:
    """Step, record and watch.

    Returns:
        What was recorded, the steps done, what went wrong, and the signal that stopped it.
    """
    from ase.io.trajectory import Trajectory

    from lamm.cli.structures import structure_writer
    from lamm.files import replaced_file
    from lamm.train.stopping import StopRequest

    record, fault, done = Record(), None, 0
    with (
        StopRequest() as stop,
        counting("molecular dynamics", steps, "steps", visible=visible) as show,
    ):

        def loop(write: Any) -> None:
            nonlocal fault, done
            try:
                for done, _ in enumerate(dynamics.irun(steps=steps)):
                    fault = _fault(atoms)
                    if fault is not None:
                        return
                    last = done == steps or stop.signal_number is not None
                    if done % every == 0 or last:
                        write(atoms)
                        record.time.append(done * timestep / 1000)
                        record.potential.append(float(atoms.get_potential_energy()))
                        record.total.append(float(atoms.get_total_energy()))
                        record.temperature.append(float(atoms.get_temperature()))
                        show(done)
                    if last:
                        return
            except DataError as error:  # positions that aren't numbers
                fault = str(error).split(":")[0]

        if to.suffix == ".traj":
            with replaced_file(to) as temporary, closing(Trajectory(temporary, "w")) as file:
                loop(file.write)
        else:
            with structure_writer(to) as write:
                loop(write)
    return record, done, fault, stop.signal_number


def _fault(atoms: Atoms) -> str | None:
    """What shows that the run has blown up, if it has."""
    energy = float(atoms.get_potential_energy())
    temperature = float(atoms.get_temperature())
    if not math.isfinite(energy):
        return f"the potential energy is {energy}"
    if not temperature <= HOTTEST:
        return f"the temperature is {temperature:.3g} K"
    return None


def _say(result: dict[str, Any], ensemble: Ensemble) -> None:
    common.say(
        f"{result['steps']:,} steps ({result['picoseconds']:g} ps) of {result['atoms']} atoms, "
        f"{result['steps_per_s']:.3g} steps/s -> {result['to']}"
    )
    common.say(
        f"  temperature, second half   {result['temperature_mean_k']:.0f} "
        f"± {result['temperature_std_k']:.0f} K"
    )
    drift = result["total_energy_drift_mev_per_atom_per_ps"]
    if ensemble is Ensemble.nve and drift is not None:
        common.say(f"  drift of the total energy  {drift:.3g} meV/atom/ps")
