"""JSON of pymatgen's structures becomes ours, with labels found wherever an entry has them."""

import bz2
import gzip
import json
import lzma
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lamm.data.cards import CardHeader
from lamm.data.ingest import ingest
from lamm.data.readers import FORMATS, KeysFound, SkippedRecord
from lamm.data.readers.pymatgen import read_pymatgen
from lamm.errors import ConfigError, DataError
from lamm.structure import Structure


def crystal(**changes: Any) -> dict[str, Any]:
    """Rock salt, two atoms, in a cell that is not orthogonal."""
    matrix = [[0.0, 2.82, 2.82], [2.82, 0.0, 2.82], [2.82, 2.82, 0.0]]
    sites = [
        {"species": [{"element": "Na", "occu": 1}], "abc": [0, 0, 0], "xyz": [0, 0, 0]},
        {
            "species": [{"element": "Cl", "occu": 1.0}],
            "abc": [0.5, 0.5, 0.5],
            "xyz": [2.82, 2.82, 2.82],
        },
    ]
    return {"@class": "Structure", "lattice": {"matrix": matrix}, "sites": sites, **changes}


def entry(energy: float = -6.75, **outputs: Any) -> dict[str, Any]:
    forces = [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]]
    return {"structure": crystal(), "outputs": {"energy": energy, "forces": forces, **outputs}}


def write(folder: Path, content: Any, name: str = "made.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def structures(path: Path, **header: Any) -> list[Structure]:
    read = list(read_pymatgen(path, CardHeader.model_validate(header)))
    assert all(isinstance(one, Structure) for one in read)
    return read  # type: ignore[return-value]


def complaint(path: Path, **header: Any) -> str:
    with pytest.raises(DataError) as error:
        structures(path, **header)
    assert path.name in str(error.value)
    return str(error.value)


def test_atoms_cell_and_labels_are_those_of_the_entry(tmp_path: Path):
    stress = [[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]]
    (one,) = structures(write(tmp_path, [entry(stress=stress)]))
    assert one.atomic_numbers.tolist() == [11, 17]
    np.testing.assert_array_equal(one.positions, [[0, 0, 0], [2.82, 2.82, 2.82]])
    np.testing.assert_array_equal(one.cell, [[0, 2.82, 2.82], [2.82, 0, 2.82], [2.82, 2.82, 0]])
    assert one.pbc.tolist() == [True, True, True]
    assert one.energy == -6.75
    np.testing.assert_array_equal(one.forces, [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]])
    np.testing.assert_array_equal(one.stress, [1, 2, 3, 4, 5, 6])
    assert (one.id, one.split, one.fixed) == ("made.json:0", None, None)


def test_units_of_the_card_are_converted(tmp_path: Path):
    (one,) = structures(
        write(tmp_path, [entry()]),
        units={"energy": "meV", "length": "nm", "forces": "eV/Å", "forces_sign": -1},
    )
    assert one.energy == pytest.approx(-6.75e-3)
    np.testing.assert_allclose(one.positions[1], 28.2)
    np.testing.assert_allclose(one.cell[0], [0, 28.2, 28.2])
    np.testing.assert_allclose(one.forces[0], [-0.1, -0.2, -0.3])  # type: ignore[index]


def test_virial_stress_is_left_alone_and_said_to_be_there(tmp_path: Path):
    path, found = write(tmp_path, [entry(virial_stress=[1, 2, 3, 4, 5, 6])]), KeysFound()
    (one,) = read_pymatgen(path, CardHeader(), found=found)
    assert isinstance(one, Structure)
    assert one.stress is None
    assert found.names == {"energy": "outputs.energy", "forces": "outputs.forces"}
    assert "outputs.virial_stress" in found.seen


@pytest.mark.parametrize(
    ("name", "order", "expected"),
    [
        ("virial_stress", None, [1, 2, 3, 5, 6, 4]),
        ("virial_stress", "voigt", [1, 2, 3, 4, 5, 6]),
        ("stress", None, [1, 2, 3, 4, 5, 6]),
        ("stress", "vasp", [1, 2, 3, 5, 6, 4]),
    ],
)
def test_six_numbers_of_stress_are_put_into_our_order(
    tmp_path: Path, name: str, order: str | None, expected: list[float]
):
    path = write(tmp_path, [entry(**{name: [1, 2, 3, 4, 5, 6]})])
    reader = {} if order is None else {"stress_order": order}
    (one,) = structures(path, keys={"stress": f"outputs.{name}"}, reader=reader)
    np.testing.assert_array_equal(one.stress, expected)


def test_nine_numbers_of_stress_have_an_order_of_their_own(tmp_path: Path):
    matrix = [[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]]
    path = write(tmp_path, [entry(virial_stress=matrix)])
    (one,) = structures(path, keys={"stress": "outputs.virial_stress"})
    np.testing.assert_array_equal(one.stress, [1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize(
    ("key", "made"),
    [
        ("energy", {"energy": -1.0}),
        ("uncorrected_total_energy", {"uncorrected_total_energy": -1.0}),
        ("output.energy", {"output": {"energy": -1.0}}),
        ("data.energy", {"data": {"energy": -1.0}}),
        ("a.b.e", {"a": {"b": {"e": -1.0}}}),
    ],
)
def test_labels_are_found_where_an_entry_has_them(tmp_path: Path, key: str, made: dict[str, Any]):
    keys = {"energy": key} if key == "a.b.e" else {}
    path = write(tmp_path, [{"structure": crystal(), **made}])
    assert structures(path, labels=["energy"], keys=keys)[0].energy == -1.0


def test_two_energies_want_a_word_from_the_card(tmp_path: Path):
    path = write(tmp_path, [entry() | {"energy": -7.0}])
    assert "could all be the energy" in complaint(path)
    assert structures(path, keys={"energy": "outputs.energy"})[0].energy == -6.75


def test_entries_may_have_names_and_lie_deeper(tmp_path: Path):
    content = {"version": 1, "all": {"mp-1": entry(-1.0), "mp-2": entry(-2.0)}}
    path = write(tmp_path, content)
    read = structures(path, reader={"entries": "all"})
    assert [(one.id, one.origin, one.energy) for one in read] == [
        ("mp-1", "made.json:0", -1.0),
        ("mp-2", "made.json:1", -2.0),
    ]
    anonymous = structures(path, reader={"entries": "all"}, keys={"id": "none"})
    assert [one.id for one in anonymous] == ["made.json:0", "made.json:1"]


def test_one_entry_alone_is_an_entry(tmp_path: Path):
    assert structures(write(tmp_path, entry()))[0].energy == -6.75


def test_ids_and_splits_come_from_the_keys_of_the_card(tmp_path: Path):
    made = entry() | {"tag": "test", "task": {"id": 17}}
    (one,) = structures(write(tmp_path, [made]), keys={"id": "task.id", "split": "tag"})
    assert (one.id, one.split) == ("17", "test")
    bad = write(tmp_path, [made | {"tag": "Vacancy"}])
    assert "'tag' is 'Vacancy'" in complaint(bad, keys={"split": "tag"})
    assert "no 'name'" in complaint(bad, keys={"id": "name"})


def test_a_molecule_has_no_cell(tmp_path: Path):
    molecule = {
        "@class": "Molecule",
        "sites": [
            {"species": [{"element": "H", "occu": 1}], "xyz": [0, 0, 0.37]},
            {"species": [{"element": "H", "occu": 1}], "xyz": [0, 0, -0.37]},
        ],
    }
    (one,) = structures(write(tmp_path, [{"molecule": molecule}]), reader={"structure": "molecule"})
    assert one.pbc.tolist() == [False, False, False]
    assert not one.cell.any()
    assert one.energy is None


def test_a_lattice_may_say_where_it_repeats(tmp_path: Path):
    made = crystal()
    made["lattice"]["pbc"] = [True, True, False]
    assert structures(write(tmp_path, [{"structure": made}]))[0].pbc.tolist() == [True, True, False]


def test_positions_may_be_fractional_alone(tmp_path: Path):
    made = crystal()
    for site in made["sites"]:
        del site["xyz"]
    (one,) = structures(write(tmp_path, [{"structure": made}]))
    np.testing.assert_allclose(one.positions, [[0, 0, 0], [2.82, 2.82, 2.82]])


def test_selective_dynamics_hold_atoms(tmp_path: Path):
    made = crystal()
    made["sites"][0]["properties"] = {"selective_dynamics": [True, True, False], "frozen": False}
    made["sites"][1]["properties"] = {"selective_dynamics": [True, True, True], "frozen": True}
    path = write(tmp_path, [{"structure": made}])
    assert structures(path)[0].fixed.tolist() == [True, False]  # type: ignore[union-attr]
    frozen = structures(path, keys={"fixed": "frozen"})[0].fixed
    assert frozen is not None
    assert frozen.tolist() == [False, True]
    assert structures(path, keys={"fixed": "none"})[0].fixed is None


def test_an_empty_label_is_absent_or_missed_where_it_is_promised(tmp_path: Path):
    path = write(tmp_path, [entry(energy=None)])  # type: ignore[arg-type]
    assert structures(path)[0].energy is None
    assert "no 'energy'" in complaint(path, labels=["energy", "forces"])


def test_a_bad_entry_is_named_and_can_be_skipped(tmp_path: Path):
    shared = crystal()
    shared["sites"][1]["species"] = [
        {"element": "Cl", "occu": 0.5},
        {"element": "Br", "occu": 0.5},
    ]
    unknown = crystal()
    unknown["sites"][0]["species"][0]["element"] = "Xx"
    bad = [shared, unknown, crystal(lattice={}), crystal(sites=[7]), crystal(sites=[])]
    path = write(tmp_path, [entry(), *({"structure": one} for one in bad), {"other": 1}])
    assert "entry 1: site 1: found [" in complaint(path)
    read = list(read_pymatgen(path, CardHeader(), on_error="skip"))
    reasons = [one.reason for one in read if isinstance(one, SkippedRecord)]
    assert [one.record for one in read[1:]] == [  # type: ignore[union-attr]
        f"made.json:{number}" for number in range(1, 7)
    ]
    for reason, words in zip(
        reasons, ("site 1", "'Xx'", "matrix", "'sites'", "no atoms", "no structure"), strict=True
    ):
        assert words in reason


def test_properties_that_are_none_hold_no_atom(tmp_path: Path):
    odd = crystal()
    odd["sites"][0]["properties"] = ["no", "names"]
    (one,) = structures(write(tmp_path, [{"structure": odd}]))
    assert one.fixed is None


def test_a_record_is_the_same_wherever_reading_begins(tmp_path: Path):
    path = write(tmp_path, [entry(-float(number)) for number in range(6)])
    part = list(read_pymatgen(path, CardHeader(), start=2, stop=4))
    assert [(one.id, one.energy) for one in part] == [  # type: ignore[union-attr]
        ("made.json:2", -2.0),
        ("made.json:3", -3.0),
    ]


@pytest.mark.parametrize(
    "content",
    ["{", "17", '"text"', "", '[{"structure": 1', "[" * 100_000],
    ids=["open", "number", "text", "empty", "cut", "deep"],
)
def test_what_is_no_list_of_entries_is_said_so(tmp_path: Path, content: str):
    path = tmp_path / "made.json"
    path.write_text(content, encoding="utf-8")
    complaint(path)


def test_unknown_options_are_errors(tmp_path: Path):
    with pytest.raises(ConfigError, match="structures"):
        structures(write(tmp_path, [entry()]), reader={"structures": "x"})


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress), (".bz2", bz2.compress)]
)
def test_packed_files_are_read(tmp_path: Path, suffix: str, pack: Any):
    path = tmp_path / f"made.json{suffix}"
    path.write_bytes(pack(json.dumps([entry()]).encode()))
    assert structures(path)[0].id == f"made.json{suffix}:0"
    path.write_bytes(path.read_bytes()[:-9])
    complaint(path)
    assert f".json{suffix}" in FORMATS["pymatgen"].suffixes


def test_a_store_is_made_of_entries(tmp_path: Path):
    path = write(tmp_path, [entry(-6.0 - number) for number in range(4)])
    header = CardHeader(name="made", labels=("energy", "forces"), task="S2EF-Total")
    card = ingest("pymatgen", [path], tmp_path / "store", header)
    assert card.num_structures == 4
    assert card.keys_found == {"energy": "outputs.energy", "forces": "outputs.forces"}


def test_all_of_mlearn_is_read_as_it_is_written(shared: Path):
    header = CardHeader.model_validate(
        {"labels": ["energy", "forces"], "keys": {"split": "tag"}, "periodic": True}
    )
    total = 0
    for path in sorted((shared / "data" / "pretrain" / "mlearn").glob("*.json.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as file:
            entries = json.load(file)
        read = list(read_pymatgen(path, header))
        assert len(read) == len(entries)
        for one, made in zip(read, entries, strict=True):
            assert isinstance(one, Structure)
            sites = made["structure"]["sites"]
            assert one.num_atoms == made["num_atoms"] == len(sites)
            assert one.energy == made["outputs"]["energy"]
            np.testing.assert_array_equal(one.forces, made["outputs"]["forces"])
            np.testing.assert_array_equal(one.positions, [site["xyz"] for site in sites])
            np.testing.assert_array_equal(one.cell, made["structure"]["lattice"]["matrix"])
            assert one.split == made["tag"]
        total += len(read)
    assert total == 1041


@pytest.mark.parametrize("element", ["Ge", "Si"])
def test_the_virial_stress_of_mlearn_is_the_slope_of_its_energies(shared: Path, element: str):
    header = {
        "keys": {"stress": "outputs.virial_stress"},
        "units": {"stress": "kbar", "stress_sign": -1},
    }
    path = shared / "data" / "pretrain" / "mlearn" / f"{element}_training.json.xz"
    with lzma.open(path, "rt", encoding="utf-8") as file:
        groups = [made["group"] for made in json.load(file)]
    read = structures(path, **header)
    elastic = [one for one, group in zip(read, groups, strict=True) if group == "Elastic"]
    found, expected = [], []
    for one, other in combinations(elastic, 2):
        strain = np.linalg.solve(one.cell, other.cell) - np.eye(3)
        strain = (strain + strain.T) / 2
        if not 1e-4 < np.abs(strain).max() < 0.03:
            continue
        volume = (np.linalg.det(one.cell) + np.linalg.det(other.cell)) / 2
        xx, yy, zz = np.diag(strain)
        voigt = [xx, yy, zz, 2 * strain[1, 2], 2 * strain[0, 2], 2 * strain[0, 1]]
        found.append(volume * (one.stress + other.stress) / 2 @ voigt)
        expected.append(other.energy - one.energy - _work(one, other))
    assert len(found) > 50
    slope = np.dot(found, expected) / np.dot(found, found)
    assert slope == pytest.approx(1.0, abs=0.02)
    assert np.corrcoef(found, expected)[0, 1] > 0.999


def _work(one: Structure, other: Structure) -> float:
    """What the forces do to the energy, in eV, where atoms move beside the strain."""
    moved = other.positions @ np.linalg.inv(other.cell) - one.positions @ np.linalg.inv(one.cell)
    moved -= np.round(moved)
    forces = (one.forces + other.forces) / 2
    return -float(np.sum(forces * (moved @ ((one.cell + other.cell) / 2))))
