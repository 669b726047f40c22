"""Parquet tables: ColabFit's layout and declared columns, with nulls, parts and damage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from parquet_samples import colabfit_row, colabfit_rows, write_colabfit
from pyarrow import parquet

from lamm.data.cards import CardHeader
from lamm.data.readers import FORMATS, KeysFound, SkippedRecord
from lamm.data.readers.parquet import count_parquet, read_parquet
from lamm.errors import ConfigError, DataError
from lamm.structure import Structure


def read(path: Path, *, on_error: Any = "stop", **header: Any) -> list[Any]:
    return list(read_parquet(path, CardHeader(**header), on_error=on_error))


def structures(path: Path, **header: Any) -> list[Structure]:
    found = read(path, **header)
    assert all(isinstance(one, Structure) for one in found)
    return found


def write(path: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def test_rows_of_colabfit_become_the_structures_that_were_written(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    rows = colabfit_rows(25, rng)
    found = structures(write_colabfit(tmp_path / "co_0.parquet", rows))
    assert [one.id for one in found] == [row["property_id"] for row in rows]
    for row, one in zip(rows, found, strict=True):
        assert one.energy == row["energy"]
        np.testing.assert_array_equal(one.positions, row["positions"])
        np.testing.assert_array_equal(one.forces, row["atomic_forces"])
        np.testing.assert_array_equal(one.atomic_numbers, row["atomic_numbers"])
        np.testing.assert_array_equal(one.cell, row["cell"])
        assert one.pbc.tolist() == row["pbc"]
        assert one.stress is None


def test_the_stress_of_colabfit_is_a_label_where_the_card_promises_it(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    rows = colabfit_rows(2, rng)
    rows[1]["cauchy_stress_volume_normalized"] = True
    path = write_colabfit(tmp_path / "co_0.parquet", rows)
    labels = ["energy", "forces", "stress"]
    first, second = structures(path, labels=labels, units={"stress_sign": -1})
    voigt = [np.array(row["cauchy_stress"]).ravel()[[0, 4, 8, 5, 2, 1]] for row in rows]
    volume = abs(np.linalg.det(rows[1]["cell"]))
    np.testing.assert_allclose(first.stress, -voigt[0], rtol=1e-14)
    np.testing.assert_allclose(second.stress, -voigt[1] / volume, rtol=1e-14)
    _, second = structures(path, labels=labels, reader={"stress_times_volume": False})
    np.testing.assert_allclose(second.stress, voigt[1], rtol=1e-14)


def test_a_null_is_an_absent_label(tmp_path: Path, rng: np.random.Generator) -> None:
    rows = colabfit_rows(3, rng)
    rows[0]["energy"] = None
    rows[1]["atomic_forces"] = None
    first, second, third = structures(write_colabfit(tmp_path / "co_0.parquet", rows))
    assert (first.energy, first.has_forces) == (None, True)
    assert (second.has_energy, second.forces) == (True, None)
    assert (third.has_energy, third.has_forces) == (True, True)


def test_a_null_of_a_promised_label_is_an_error_that_names_the_row(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    rows = colabfit_rows(3, rng)
    rows[1]["energy"] = None
    path = write_colabfit(tmp_path / "co_0.parquet", rows)
    with pytest.raises(DataError, match=r"co_0.parquet, row 1: no 'energy', which the card"):
        read(path, labels=["energy"])
    found = read(path, labels=["energy"], on_error="skip")
    assert [isinstance(one, SkippedRecord) for one in found] == [False, True, False]


@pytest.mark.parametrize(("start", "stop"), [(0, 7), (7, 8), (10, 20), (13, 31), (29, None)])
def test_a_part_has_the_structures_that_the_whole_has(
    tmp_path: Path, rng: np.random.Generator, start: int, stop: int | None
) -> None:
    path = write_colabfit(tmp_path / "co_0.parquet", colabfit_rows(37, rng), row_group_size=10)
    whole = read(path)
    part = list(read_parquet(path, CardHeader(), start=start, stop=stop))
    assert count_parquet(path, CardHeader()) == 37
    assert [one.origin for one in part] == [one.origin for one in whole[start:stop]]
    for one, other in zip(part, whole[start:stop], strict=True):
        np.testing.assert_array_equal(one.positions, other.positions)
        np.testing.assert_array_equal(one.forces, other.forces)


def test_rows_of_another_method_are_an_error_until_one_is_chosen(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    rows = [colabfit_row(number, rng, 2) | {"method": f"DFT-{number % 2}"} for number in range(4)]
    path = write_colabfit(tmp_path / "co_0.parquet", rows)
    with pytest.raises(DataError, match=r"row 1: its method is 'DFT-1', and 'DFT-0' in the first"):
        read(path)
    found = read(path, reader={"where": {"method": "DFT-1"}})
    assert [one.id for one in found if isinstance(one, Structure)] == ["PO_1", "PO_3"]
    assert "`reader.where` asks for 'DFT-1'" in found[0].reason


def test_a_configuration_may_be_the_id(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_colabfit(tmp_path / "co_0.parquet", colabfit_rows(2, rng))
    assert [one.id for one in structures(path, keys={"id": "configuration_id"})] == ["CO_0", "CO_1"]


def test_another_energy_is_the_label_where_it_is_named(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    rows = [colabfit_row(0, rng, 2) | {"adsorption_energy": -0.5}]
    path = write_colabfit(tmp_path / "co_0.parquet", rows)
    found = KeysFound()
    header = CardHeader(keys={"energy": "adsorption_energy"}, labels=["energy"])
    (one,) = read_parquet(path, header, found=found)
    assert isinstance(one, Structure)
    assert one.energy == -0.5
    assert found.names == {"energy": "adsorption_energy"}
    assert "energy_above_hull" in found.seen


def test_declared_columns_of_any_list_type_are_read(tmp_path: Path) -> None:
    flat = pa.array([[0.0, 0, 0, 0, 0, 1], [1.0, 2, 3]], pa.large_list(pa.float32()))
    path = write(
        tmp_path / "own.parquet",
        symbols=[["O", "H"], ["He"]],
        xyz=flat,
        box=pa.array([[1.0, 0, 0, 0, 2, 0, 0, 0, 3]] * 2, pa.list_(pa.float64(), 9)),
        e=[1.5, 2.5],
        f=pa.array([[[1.0, 2, 3], [4, 5, 6]], [[7, 8, 9]]], pa.list_(pa.list_(pa.float64(), 3))),
    )
    columns = {"atomic_numbers": "symbols", "positions": "xyz", "cell": "box"}
    first, second = structures(
        path,
        reader={"columns": columns},
        keys={"energy": "e", "forces": "f"},
        units={"energy": "Hartree", "length": "bohr", "forces_sign": -1},
    )
    hartree, bohr = 27.211386245988, 0.529177210903  # CODATA 2018
    assert first.atomic_numbers.tolist() == [8, 1]
    assert first.positions.dtype == np.float32
    np.testing.assert_allclose(first.positions[1], [0, 0, bohr], rtol=1e-6)
    np.testing.assert_allclose(first.cell, np.diag([1, 2, 3]) * bohr, rtol=1e-12)
    assert first.pbc.all()
    assert first.energy == pytest.approx(1.5 * hartree, rel=1e-12)
    np.testing.assert_allclose(second.forces, -np.array([[7, 8, 9]]) * hartree / bohr, rtol=1e-9)
    assert (first.id, second.id) == ("own.parquet:0", "own.parquet:1")


def test_lists_may_be_written_as_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "text.parquet",
        atomic_numbers=["[1, 8]"],
        positions=["[[0.0, 0.0, 0.0], [0.0, 0.0, 1.5]]"],
        cell=["[[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]"],
        pbc=["[True, True, False]"],
        atomic_forces=["[[0, 0, 1], [0, 0, -1]]"],
    )
    (one,) = structures(path)
    assert one.pbc.tolist() == [True, True, False]
    assert one.positions.tolist() == [[0, 0, 0], [0, 0, 1.5]]
    assert one.forces is not None
    assert one.forces.tolist() == [[0, 0, 1], [0, 0, -1]]


def test_nan_in_a_column_of_numbers_is_an_absent_label(tmp_path: Path) -> None:
    path = write(
        tmp_path / "pandas.parquet",
        atomic_numbers=[[1], [1]],
        positions=[[[0.0, 0, 0]], [[0.0, 0, 0]]],
        energy=[float("nan"), -1.0],
    )
    assert [one.energy for one in structures(path)] == [None, -1.0]


def test_splits_and_fixed_atoms_are_taken_from_their_columns(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.parquet",
        atomic_numbers=[[1, 2], [1, 2]],
        positions=[[[0.0, 0, 0], [0, 0, 1]]] * 2,
        fixed=[[True, False], None],
        split=["Validation", "train"],
    )
    first, second = structures(path)
    assert (first.split, second.split) == ("val", "train")
    assert first.fixed is not None
    assert first.fixed.tolist() == [True, False]
    assert second.fixed is None


def test_a_table_of_something_else_names_its_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "ds.parquet", name=["a set"], nconfigurations=[5])
    with pytest.raises(ConfigError, match=r"no column 'atomic_numbers'.*it has: name, nconf"):
        read(path)


def test_a_column_that_the_card_names_has_to_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", atomic_numbers=[[1]], positions=[[[0.0, 0, 0]]])
    with pytest.raises(ConfigError, match=r"no column 'box' \(`reader.columns.cell`\)"):
        read(path, reader={"columns": {"cell": "box"}})
    with pytest.raises(ConfigError, match=r"no column 'E' \(`keys.energy`\)"):
        read(path, keys={"energy": "E"})


def test_positions_that_do_not_fit_the_atoms_are_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", atomic_numbers=[[1, 1]], positions=[[[0.0, 0, 0]]])
    with pytest.raises(DataError, match=r"row 0: 'positions' has 3 numbers, expected 3 for each"):
        read(path)


def test_a_file_that_was_cut_short_names_itself(tmp_path: Path, rng: np.random.Generator) -> None:
    path = write_colabfit(tmp_path / "co_0.parquet", colabfit_rows(5, rng))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"co_0.parquet: not a Parquet file, or cut short"):
        read(path)


def test_the_format_is_known_by_its_name() -> None:
    kind = FORMATS["parquet"]
    assert kind.read is read_parquet
    assert kind.suffixes == (".parquet",)
    assert kind.count is count_parquet
