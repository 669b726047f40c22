"""``lamm evaluate``: errors of a potential on labelled structures."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
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
    check_device,
    counting,
    read_atoms,
    say_table,
)
from lamm.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lamm.evaluate.evaluation import Evaluation
    from lamm.structure import Structure

_FILES = (
    "results.json",
    "structures.csv",
    "report.html",
    "parity.png",
    "parity.svg",
    "parity.csv",
)
_NAMES = {
    "energy_mae_mev_per_atom": ("energy MAE", "meV/atom"),
    "energy_rmse_mev_per_atom": ("energy RMSE", "meV/atom"),
    "forces_mae_mev_per_ang": ("forces MAE", "meV/Å"),
    "forces_rmse_mev_per_ang": ("forces RMSE", "meV/Å"),
    "force_norm_mae_mev_per_ang": ("force vector MAE", "meV/Å"),
    "stress_mae_mev_per_ang3": ("stress MAE", "meV/Å³"),
    "stress_rmse_mev_per_ang3": ("stress RMSE", "meV/Å³"),
    "denoising_mae_own_ang": ("noise MAE, own labels", "Å"),
    "denoising_mae_fair_ang": ("noise MAE, fair", "Å"),
}


class Split(StrEnum):
    """Which structures to look at."""

    train = "train"
    val = "val"
    test = "test"
    all = "all"


@dataclass
class Source:
    """The structures to evaluate on."""

    structures: Iterator[Structure]
    count: int
    split: Split
    denoising: bool = False


def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[
        str, typer.Argument(metavar="STORE-or-FILE", help="A store, or a file with labels.")
    ],
    head: Head = None,
    split: Annotated[
        Split | None, typer.Option(help="Of a store: val where left out; of a file: all.")
    ] = None,
    val_fraction: Annotated[
        float,
        typer.Option(min=0, max=0.999, help="Validation share where the source has no split."),
    ] = 0.01,
    card: Annotated[
        Path | None, typer.Option(help="Units and keys (YAML) of an extended XYZ file.")
    ] = None,
    noise: Annotated[
        float, typer.Option(help="Standard deviation in Å for a store of the denoising task.")
    ] = 0.1,
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder for results.json, figures and a page.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch at most.")] = 32,
    device: Device = "cpu",
    dtype: Precision = "float32",
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare predictions with labels: MAE and RMSE of energy, forces and stress.

    A store of the denoising task is given fixed noise and both errors of Fig. 7. The exit status
    is 1 where an error isn't a finite number.
    """
    common.start_logging(quiet=as_json)
    if to is not None:
        _check_folder(to, force)
    from lamm.cli.structures import load_calculator
    from lamm.evaluate.evaluation import evaluate_structures

    calculator = load_calculator(checkpoint, head, check_device(device), dtype)
    source = _source(data, split, val_fraction, card, noise)
    with counting("evaluating", source.count, "structures", visible=not as_json) as show:
        evaluation = evaluate_structures(
            calculator.model,
            source.structures,
            calculator.column,
            denoising=source.denoising,
            batch_size=batch_size,
            progress=show,
        )
    result = {
        "checkpoint": str(checkpoint),
        "data": data,
        "head": calculator.head,
        "split": source.split.value,
        "errors": evaluation.errors,
    }
    if to is not None:
        _write(to, result, evaluation)
    if as_json:
        common.emit_json(result)
    else:
        _say(result, evaluation, to)
    if not evaluation.is_finite:
        typer.echo("some errors are not finite numbers: this model is broken.", err=True)
        raise typer.Exit(common.BAD_ANSWER)


def _source(
    data: str, split: Split | None, val_fraction: float, card: Path | None, noise: float
) -> Source:
    """Structures of a store or a file.

    Raises:
        LaMMError: nothing there, nothing of that split, or unreadable.
    """
    from lamm.data.joint import store_path

    path = store_path(data)
    if path.is_file():
        return _file_source(path, split or Split.all, card)
    if card is not None:
        raise ConfigError("--card is for extended XYZ files; a store has its own card.")
    return _store_source(path, split or Split.val, val_fraction, noise)


def _store_source(path: Path, split: Split, val_fraction: float, noise: float) -> Source:
    import numpy as np

    from lamm.data.denoising import DenoisingConfig, denoising_structure
    from lamm.data.joint import FIXED_NOISE
    from lamm.data.splits import SPLIT_CODES, assign_splits
    from lamm.data.store import Store

    store = Store.open(path)
    rows = np.arange(len(store))
    if split is not Split.all:
        index = store.index
        codes = assign_splits(index.id_hash, index.split, val_fraction=val_fraction)
        rows = np.flatnonzero(codes == SPLIT_CODES[split.value])
        if len(rows) == 0:
            raise ConfigError(
                f"{path}: no structure of the {split.value} split.\n"
                f"  See `lamm data split {path}`, raise --val-fraction, or use --split all."
            )
    if store.card.task != "denoising":
        return Source(store.structures(rows), len(rows), split)
    if noise <= 0:
        raise ConfigError(f"--noise {noise}: expected a standard deviation above 0, in Å.")
    config = DenoisingConfig(std=noise)
    hashes = store.index.id_hash
    noisy = (
        denoising_structure(store[int(row)], int(hashes[row]), config, 0, FIXED_NOISE)
        for row in rows
    )
    return Source(noisy, len(rows), split, denoising=True)


def _file_source(path: Path, split: Split, card: Path | None) -> Source:
    from lamm.data.cards import CardHeader, read_header
    from lamm.data.readers.common import SkippedRecord
    from lamm.data.readers.extxyz import SUFFIXES, read_extxyz
    from lamm.evaluate.predict import structure_of

    if path.name.lower().endswith(SUFFIXES):
        header = read_header(card) if card is not None else CardHeader()
        records = read_extxyz(path, header)
        structures = [one for one in records if not isinstance(one, SkippedRecord)]
    elif card is not None:
        raise ConfigError(f"--card is for extended XYZ files, and {path} isn't one.")
    else:
        structures = [
            structure_of(one, f"{path}, structure {k}") for k, one in enumerate(read_atoms(path))
        ]
    if not structures:
        raise DataError(f"{path}: no structure in it.")
    if split is not Split.all:
        structures = [one for one in structures if one.split == split.value]
        if not structures:
            raise ConfigError(
                f"{path}: no structure says that it is of the {split.value} split "
                "(`split=` in the comment line). Use --split all."
            )
    return Source(iter(structures), len(structures), split)


def _check_folder(to: Path, force: bool) -> None:
    if to.is_file():
        raise ConfigError(f"--to {to}: this is a file; expected the name of a folder.")
    present = [name for name in _FILES if (to / name).exists()]
    if present and not force:
        raise ConfigError(
            f"--to {to}: holds {', '.join(present)} already. Add --force to replace them."
        )


def _write(to: Path, result: dict[str, Any], evaluation: Evaluation) -> None:
    """Results, table of structures, figure and page; each file whole or not there."""
    from lamm.evaluate.figures import parity_plot, parity_rows, save_figure
    from lamm.evaluate.page import Page
    from lamm.files import replaced_file, write_json

    write_json(to / "results.json", common.finite(result))
    with (
        replaced_file(to / "structures.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, fieldnames=list(evaluation.rows[0]))
        writer.writeheader()
        writer.writerows(evaluation.rows)
    page = Page(
        f"Evaluation of head '{result['head']}'",
        f"{result['checkpoint']} on {result['data']}, {_split_words(result)}",
    )
    means = [(name, value, unit) for name, unit, value in _table(evaluation) if "RMSE" not in name]
    page.facts([("structures", evaluation.errors["structures"], _split_words(result)), *means])
    is_noise = "denoising_mae_own_ang" in evaluation.errors
    page.section("Errors", _NOISE_EXPLANATION if is_noise else _EXPLANATION)
    page.table(
        ["Quantity", "Error", "Unit"],
        [(name, value, unit) for name, unit, value in _table(evaluation)],
        f"Errors over {evaluation.errors['structures']:,} structures.",
    )
    if evaluation.is_finite:
        figure = parity_plot(evaluation.panels)
        save_figure(figure, to / "parity", parity_rows(evaluation.panels))
        page.figure(figure, _parity_caption(evaluation))
    worst = evaluation.worst()
    if worst:
        columns = [(key, title) for key, title in _ERRORS_OF_ONE if worst[0].get(key) is not None]
        page.section("Largest errors", "All structures are in `structures.csv`.")
        page.table(
            ["Structure", "Atoms", *(title for _, title in columns)],
            [
                (
                    row["id"] or row["origin"] or "–",
                    row["num_atoms"],
                    *(row[key] for key, _ in columns),
                )
                for row in worst
            ],
            "The structures that are predicted worst.",
        )
    page.write(to / "report.html")


_ERRORS_OF_ONE = (
    ("energy_error_mev_per_atom", "Energy error (meV/atom)"),
    ("forces_mae_mev_per_ang", "Forces MAE (meV/Å)"),
    ("denoising_mae_own_ang", "Noise MAE (Å)"),
)
_NOISE_EXPLANATION = (
    "Each structure has the same noise in every evaluation. The error is the mean absolute one "
    "over the components of all atoms: against the labels as they are and (fair) with each "
    "structure's mean removed from label and prediction (Fig. 7)."
)
_EXPLANATION = (
    "Energies are compared per atom, forces by Cartesian component over all free atoms, stresses "
    "by component. The force vector error is the mean length of the difference."
)


def _parity_caption(evaluation: Evaluation) -> str:
    from lamm.evaluate.evaluation import MAX_POINTS

    caption = "Predictions against labels."
    if evaluation.num_points > MAX_POINTS:
        caption += f" The first {MAX_POINTS:,} labels are drawn; the errors are over all."
    return caption


def _table(evaluation: Evaluation) -> list[tuple[str, str, float]]:
    return [(*_NAMES[key], value) for key, value in evaluation.errors.items() if key in _NAMES]


def _split_words(result: dict[str, Any]) -> str:
    split = result["split"]
    return "all structures" if split == "all" else f"{split} split"


def _say(result: dict[str, Any], evaluation: Evaluation, to: Path | None) -> None:
    count = evaluation.errors["structures"]
    common.say(f"{count:,} structures ({_split_words(result)}), head '{result['head']}'")
    rows = [(name, f"{value:.4g}", unit) for name, unit, value in _table(evaluation)]
    say_table(("error", "value", "unit"), rows)
    if to is not None:
        common.say(f"-> {to / 'report.html'}")
