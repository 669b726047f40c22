"""What the verbs that use a potential share: structures in and out, and loading the model."""

from __future__ import annotations

import bz2
import gzip
import lzma
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer

from lamm.cli.common import say
from lamm.errors import ConfigError, DataError, nearest_names

if TYPE_CHECKING:
    from ase import Atoms

    from lamm.calculators.ase import LaMMCalculator
    from lamm.train.report import ProgressLine

Checkpoint = Annotated[Path, typer.Argument(help="Run folder, saved step or .safetensors file.")]
StructureFile = Annotated[Path, typer.Argument(help="Structures, in any format that ASE reads.")]
Head = Annotated[
    str | None,
    typer.Option("--head", help="Output to use, named as its subset; needed where there are some."),
]
Device = Annotated[str, typer.Option("--device", help="Where to compute: cpu, cuda, cuda:1.")]
Precision = Annotated[str, typer.Option("--dtype", help="Precision: float32 or float64.")]

_WRITTEN = (".extxyz", ".xyz")
_OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
}


def check_output(path: Path | None, force: bool, option: str = "--to") -> None:
    """Refuse an output that is there already, before any work is done.

    Args:
        path: the file; none where the option was left out.
        force: whether a file may be replaced.
        option: that names the file.

    Raises:
        ConfigError: it exists and wasn't to be replaced, is a folder, or would be below a file.
    """
    if path is None:
        return
    if path.is_dir():
        raise ConfigError(f"{option} {path}: this is a folder; expected the name of a file.")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise ConfigError(f"{option} {path}: {above} is a file; expected a folder or nothing.")
    if path.exists() and not force:
        raise ConfigError(f"{option} {path}: the file exists. Add --force to replace it.")


def check_structure_output(path: Path, force: bool) -> None:
    """The same for a file of structures, which is written as extended XYZ."""
    kind = path.with_suffix("").suffix if path.suffix in _OPENERS else path.suffix
    if kind not in _WRITTEN:
        raise ConfigError(
            f"--to {path}: found '{path.suffix}', expected a name ending in .extxyz or .xyz, "
            "with .gz, .xz or .bz2 behind it if you like."
        )
    check_output(path, force)


def check_folder(to: Path, names: Iterable[str], force: bool) -> None:
    """Refuse a folder that holds some of the files to be written, before any work is done.

    Raises:
        ConfigError: one exists and wasn't to be replaced, or the folder is a file.
    """
    if to.exists() and not to.is_dir():
        raise ConfigError(f"--to {to}: found a file, expected a folder or nothing.")
    there = [name for name in names if (to / name).exists()]
    if there and not force:
        raise ConfigError(f"--to {to}: {there[0]} exists. Add --force to replace it.")


def own_configuration(checkpoint: Path, instead: str) -> Path:
    """The configuration of the run that a checkpoint belongs to, for what no data was named.

    Args:
        checkpoint: any.
        instead: what may be named after it.

    Raises:
        ConfigError: there is none beside it.
    """
    from lamm.train.run import run_config_file

    file = run_config_file(checkpoint)
    if file is None:
        raise ConfigError(
            f"{checkpoint}: found no config.yaml of its run beside it, so its subsets aren't "
            f"known.\n  Name {instead} after the checkpoint."
        )
    return file


def check_device(device: str) -> str:
    """The device, if this machine has it.

    Raises:
        ConfigError: it doesn't.
    """
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device {device}: can't be used here ({str(error).splitlines()[0]}). "
            "Use --device cpu."
        ) from error
    return device


def read_atoms(path: Path) -> list[Atoms]:
    """All structures of a file, by ASE.

    Raises:
        DataError: the file is missing, empty or can't be read.
    """
    import ase.io

    if not path.exists():
        near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = nearest_names(path.name, near) if near else ""
        raise DataError(f"{path}: no such file. {hint}".rstrip())
    if path.is_dir():
        raise DataError(
            f"{path}: found a folder, expected a file of structures. Take structures out of a "
            "store with `lamm data export STORE --to FILE.extxyz`."
        )
    try:
        atoms = cast("list[Atoms]", ase.io.read(path, ":"))
    except Exception as error:  # ASE's readers raise whatever their parsing meets
        raise DataError(
            f"{path}: ASE can't read it: {type(error).__name__}: {error}\n"
            "  Give it the suffix of its format, or convert it with `ase convert`."
        ) from error
    if not atoms:
        raise DataError(f"{path}: no structure in it.")
    for number, one in enumerate(atoms):
        if len(one) == 0:
            raise DataError(f"{path}, structure {number}: no atoms. Remove it.")
    return atoms


@contextmanager
def structure_writer(path: Path) -> Iterator[Callable[[Atoms], None]]:
    """Give a function that appends a structure to an extended XYZ file, whole or not there."""
    from ase.io.extxyz import write_extxyz

    from lamm.files import replaced_file

    opener = _OPENERS.get(path.suffix, open)
    with (
        replaced_file(path) as temporary,
        cast(TextIO, opener(temporary, "wt", encoding="utf-8")) as file,
    ):
        yield lambda atoms: write_extxyz(file, [atoms])


def with_results(atoms: Atoms, results: dict[str, Any], info: dict[str, Any]) -> Atoms:
    """A copy that carries results as ASE writes them; labels that it had become ``reference_...``.

    Args:
        atoms: the structure, perhaps with labels that were read with it.
        results: energy, forces and perhaps stress.
        info: entries of the comment line, such as head and model.
    """
    from ase.calculators.singlepoint import SinglePointCalculator

    # ASE copies arrays, cell, constraints and info, and leaves the calculator behind.
    copy: Atoms = atoms.copy()
    old = {} if atoms.calc is None else getattr(atoms.calc, "results", {})
    for name in ("energy", "stress"):
        if old.get(name) is not None:
            copy.info[f"reference_{name}"] = old[name]
    if old.get("forces") is not None:
        copy.arrays["reference_forces"] = old["forces"]
    copy.info.update(info)
    copy.calc = SinglePointCalculator(copy, **results)
    return copy


def load_calculator(checkpoint: Path, head: str | None, device: str, dtype: str) -> LaMMCalculator:
    """The calculator of a checkpoint.

    Raises:
        LaMMError: no such checkpoint, head, device or precision.
    """
    from lamm.calculators.ase import LaMMCalculator

    return LaMMCalculator(checkpoint, head, device=check_device(device), dtype=dtype)  # type: ignore[arg-type]


@contextmanager
def counting(
    title: str, total: int, unit: str, *, visible: bool
) -> Iterator[Callable[[int], None]]:
    """A progress bar with rate and time left on a terminal, else a log line now and then."""
    from lamm.train.report import ProgressLine

    bar: ProgressLine
    start = time.monotonic()
    with ProgressLine(title, total, visible=visible) as bar:

        def show(done: int) -> None:
            seconds = max(time.monotonic() - start, 1e-9)
            bar.update(done, f"{done / seconds:.3g} {unit}/s")

        yield show


def say_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table to stdout, its first column to the left and the others to the right."""
    table = [list(columns), *map(list, rows)]
    widths = [max(len(row[k]) for row in table) for k in range(len(columns))]
    for row in table:
        cells = [
            text.ljust(width) if k == 0 else text.rjust(width)
            for k, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())
