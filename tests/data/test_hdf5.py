"""HDF5 files of groups of structures, with named layouts and with declared ones."""

import fcntl
import lzma
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hdf5_samples import (
    CONFORMERS,
    ENERGY,
    FORCES,
    NUMBERS,
    REACTIONS,
    write_ani1x,
    write_qm7x,
    write_transition1x,
)

from lamm.data.cards import CardHeader
from lamm.data.ingest import ingest
from lamm.data.readers import FORMATS, KeysFound, SkippedRecord
from lamm.data.readers import arrays as arrays_module
from lamm.data.readers.hdf5 import count_hdf5, read_hdf5
from lamm.data.readers.layouts import LAYOUTS
from lamm.data.store import Store
from lamm.errors import ConfigError, DataError
from lamm.structure import Structure

HARTREE, BOHR = 27.211386245988, 0.529177210903  # CODATA 2018


def header(layout: Any = None, **entries: Any) -> CardHeader:
    """A card with a layout, and the units that a named one asks for."""
    options = {} if layout is None else {"layout": layout}
    options |= entries.pop("options", {})
    named = LAYOUTS.get(layout) if isinstance(layout, str) else None
    if named is not None and named.units is not None:
        entries.setdefault("units", named.units.model_dump(exclude_unset=True))
    return CardHeader.model_validate({"reader": options, **entries})


def structures(path: Path, card: CardHeader, **how: Any) -> list[Structure]:
    read = list(read_hdf5(path, card, **how))
    assert all(isinstance(one, Structure) for one in read)
    return read  # type: ignore[return-value]


def complaint(path: Path, card: CardHeader, **how: Any) -> str:
    with pytest.raises(DataError) as error:
        list(read_hdf5(path, card, **how))
    return str(error.value)


def write(path: Path, groups: dict[str, dict[str, Any]]) -> Path:
    with h5py.File(path, "w") as file:
        for name, arrays in groups.items():
            group = file.require_group(name) if name else file
            for key, values in arrays.items():
                group[key] = values
    return path


def water(structures: int = 3, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays = {
        "atomic_numbers": np.array([8, 1, 1]),
        "positions": rng.normal(size=(structures, 3, 3)),
        "energy": rng.normal(-76.0, 1.0, structures),
        "forces": rng.normal(size=(structures, 3, 3)),
    }
    return {key: value for key, value in (arrays | changes).items() if value is not None}


def test_transition1x_is_read_as_by_a_loop_over_its_groups(tmp_path: Path) -> None:
    path = write_transition1x(tmp_path / "t1x.h5")
    read = structures(path, header("transition1x", labels=["energy", "forces"]), name="t1x.h5")
    with h5py.File(path) as file:
        expected = [
            (f"{formula}/{reaction}/{image}", NUMBERS[formula], position, energy, force)
            for formula in file["data"]
            for reaction, group in file["data"][formula].items()
            for image, (position, energy, force) in enumerate(
                zip(group["positions"], group[ENERGY], group[FORCES], strict=True)
            )
        ]
    assert len(read) == len(expected) == 14 + 12 + 10
    for one, (name, numbers, position, energy, force) in zip(read, expected, strict=True):
        assert (one.id, one.atomic_numbers.tolist()) == (name, numbers)
        assert one.origin == f"t1x.h5:data/{name}"
        assert one.forces is not None
        assert (one.positions == position).all()
        assert (one.forces == force).all()
        assert one.energy == energy
        assert one.split is None


def test_transition1x_gives_its_official_splits_when_asked(tmp_path: Path) -> None:
    path = write_transition1x(tmp_path / "t1x.h5")
    card = header("transition1x", options={"splits": "official"})
    splits = {one.id.rpartition("/")[0]: one.split for one in structures(path, card)}
    assert splits == {
        f"{formula}/{reaction}": split
        for formula, reactions in REACTIONS.items()
        for reaction, (split, _) in reactions.items()
    }


def test_transition_states_can_be_read_too(tmp_path: Path) -> None:
    path = write_transition1x(tmp_path / "t1x.h5")
    layout = {"like": "transition1x", "groups": ["data/*/*", "data/*/*/transition_state"]}
    ids = [one.id for one in structures(path, header(layout))]
    assert len(ids) == len(set(ids)) == 36 + 3
    assert ids[-1] == "C3H4/rxn0007/transition_state/0"


def test_qm7x_takes_the_energies_and_forces_that_belong_together(tmp_path: Path) -> None:
    path = write_qm7x(tmp_path / "1000.hdf5")
    found = KeysFound()
    read = structures(path, header("qm7x", labels=["energy", "forces"]), found=found)
    assert len(read) == 2 * len(CONFORMERS)
    with h5py.File(path) as file:
        for one in read:
            group = file[one.id]
            assert one.forces is not None
            assert (one.forces == group["pbe0FOR"][()] + group["vdwFOR"][()]).all()
            assert one.energy == pytest.approx(group["ePBE0"][0] + group["eMBD"][0], rel=1e-14)
    assert read[0].id == "1/Geom-m1-i1-c1-d1"
    assert found.names == {"energy": "ePBE0+MBD", "forces": "totFOR"}
    assert {"pbe0FOR", "eDFTB+MBD"} <= set(found.seen)


def test_duplicates_of_qm7x_are_left_out_with_what_was_displaced_from_them(tmp_path: Path) -> None:
    path = write_qm7x(tmp_path / "1000.hdf5")
    duplicates = tmp_path / "DupMols.dat"
    duplicates.write_text("Geom-m1-i1-c1-opt\nGeom-m77-i1-c1-opt\n", encoding="utf-8")
    card = header("qm7x", options={"leave_out": str(duplicates)})
    read = list(read_hdf5(path, card))
    skipped = [one for one in read if isinstance(one, SkippedRecord)]
    assert {one.record.rpartition("/")[2] for one in skipped} == set(CONFORMERS[:3])
    assert "DupMols.dat" in skipped[0].reason
    assert len(read) == 8 == count_hdf5(path, card)


def test_a_compressed_file_is_unpacked_to_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = write_qm7x(tmp_path / "1000.hdf5")
    packed = tmp_path / "1000.xz"
    packed.write_bytes(lzma.compress(plain.read_bytes()))
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with caplog.at_level("INFO", logger="lamm"):
        read = structures(packed, header("qm7x"))
    assert "unpacking" in caplog.text
    assert [one.id for one in read] == [one.id for one in structures(plain, header("qm7x"))]
    assert count_hdf5(packed, header("qm7x")) is None  # it is not to be read in parts
    reader = read_hdf5(packed, header("qm7x"))
    next(reader)
    reader.close()  # type: ignore[attr-defined]
    assert not list(temporary.iterdir())
    packed.write_bytes(packed.read_bytes()[:-200])
    assert "cut short" in complaint(packed, header("qm7x"))
    assert not list(temporary.iterdir())


def test_a_level_of_ani1x_that_was_not_computed_is_left_out_and_counted(tmp_path: Path) -> None:
    path = write_ani1x(tmp_path / "ani1x.h5")
    assert len(structures(path, header("ani1x"))) == 3
    keys = {"energy": "wb97x_tz.energy", "forces": "wb97x_tz.forces"}
    first, second, third = read_hdf5(path, header("ani1x", keys=keys))
    assert isinstance(first, Structure)
    assert isinstance(third, Structure)
    assert second == ("ani1x.h5:C1H4/1", "the source has no energy and no forces of it (NaN)")
    keys = {"energy": "ccsd(t)_cbs.energy"}
    one, _, three = structures(path, header("ani1x", keys=keys))
    assert (one.has_energy, one.has_forces) == (False, True)
    assert three.energy == pytest.approx(-40.5 * HARTREE)
    promised = list(read_hdf5(path, header("ani1x", keys=keys, labels=["energy"])))
    assert [isinstance(record, Structure) for record in promised] == [False, False, True]


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("spice", "formats/SPICE-1.1.4_n2.hdf5", 55),
        ("ani1x", "formats/ani1_n5.hdf5", 8),
        ("ani2x", "formats/ani2x_minimal.hdf5", 5706),
        ("comp6", "pretrain/comp6_s66x8/s66x8_wb97x6-31gd.h5", 528),
    ],
)
def test_genuine_files_are_read_as_by_a_bare_loop(
    shared: Path, name: str, file: str, count: int
) -> None:
    path, layout = shared / "data" / file, LAYOUTS[name]
    assert layout.units is not None
    length = {"bohr": BOHR, "Å": 1.0}[layout.units.length]
    read = structures(path, header(name, labels=["energy", "forces"]))
    assert len(read) == count == count_hdf5(path, header(name))
    assert len({one.id for one in read}) == count
    with h5py.File(path, locking=False) as source:
        for one in read[:: max(count // 60, 1)]:
            place, _, row = one.origin.partition(":")[2].rpartition("/")
            group, number = source[place], int(row)
            positions = group[layout.positions[0]][number]
            assert one.positions.dtype == positions.dtype
            assert np.allclose(one.positions, positions * length, rtol=1e-6, atol=0)
            energy = group[layout.energy[0]][number]
            assert one.energy == pytest.approx(energy * HARTREE, rel=1e-14)
            force = group[layout.forces[0]][number] * layout.units.forces_sign
            assert one.forces is not None
            assert np.allclose(one.forces, force * HARTREE / length, rtol=1e-6, atol=0)


def test_the_forces_of_a_stretched_dimer_point_down_its_energy(shared: Path) -> None:
    path = shared / "data/pretrain/comp6_s66x8/s66x8_wb97x6-31gd.h5"
    read = structures(path, header("comp6"))
    change, work = [], []
    for group in range(0, len(read), 8):  # eight distances of each pair of molecules
        for one, other in zip(read[group : group + 7], read[group + 1 : group + 8], strict=True):
            assert one.forces is not None
            assert other.forces is not None
            step = other.positions - one.positions
            if abs(step).max() > 0.4:  # too far for the mean of two forces
                continue
            work.append(float(((one.forces + other.forces) / 2 * step).sum()))
            change.append((other.energy or 0.0) - (one.energy or 0.0))
    assert np.polyfit(work, change, 1)[0] == pytest.approx(-1.0, abs=0.03)


def test_any_file_with_usual_names_needs_no_declaration(tmp_path: Path) -> None:
    path = write(tmp_path / "own.h5", {"a/b": water(2), "c": water(1)})
    read = structures(path, CardHeader())
    assert [one.id for one in read] == ["own.h5:a/b/0", "own.h5:a/b/1", "own.h5:c/0"]
    assert read[0].atomic_numbers.tolist() == [8, 1, 1]


def test_a_layout_is_declared_in_a_few_lines(tmp_path: Path) -> None:
    lattice = np.array([[9.0, 0, 0], [0, 9, 0], [1, 0, 9]])
    arrays = {
        "Z": np.array([b"O", b"H", b"H"]),
        "xyz": np.arange(18.0, dtype=np.float32).reshape(2, 9),
        "e": np.array([[-1.0], [-2.0]]),
        "grad": np.ones((2, 9)),
        "virial": np.arange(18.0).reshape(2, 3, 3) * 0 + np.eye(3),
        "h": lattice,
        "held": np.array([True, False, False]),
        "label": np.array([b"x", b"y"]),
        "use": np.array([b"train", b"Validation"]),
    }
    path = write(tmp_path / "own.h5", {"runs/w1/frames": arrays, "runs/readme": {"text": 1}})
    layout = {"groups": "runs/*/frames", "atomic_numbers": "Z", "positions": "xyz", "energy": "e"}
    layout |= {"forces": "grad", "stress": "virial", "cell": "h", "fixed": "held"}
    card = header(
        layout,
        units={"length": "nm", "forces": "eV/nm", "forces_sign": -1, "stress": "GPa"},
        keys={"id": "label", "split": "use"},
    )
    one, other = structures(path, card)
    assert one.atomic_numbers.tolist() == [8, 1, 1]
    assert one.positions.dtype == np.float32
    assert other.positions[0].tolist() == [90.0, 100.0, 110.0]
    assert other.energy == -2.0
    assert one.forces is not None
    assert np.allclose(one.forces, -0.1)
    assert one.stress is not None
    assert one.stress[0] == pytest.approx(0.00624151, rel=1e-5)
    assert one.cell.tolist() == (lattice * 10).tolist()
    assert one.pbc.tolist() == [True, True, True]
    assert one.fixed is not None
    assert one.fixed.tolist() == [True, False, False]
    assert [(one.id, one.split), (other.id, other.split)] == [("x", "train"), ("y", "val")]


def test_cell_and_pbc_may_be_of_each_structure(tmp_path: Path) -> None:
    boxes = np.array([[4.0, 5, 6], [7, 8, 9]])
    pbc = np.array([[True, True, False], [False, False, False]])
    path = write(tmp_path / "own.h5", {"": water(2, cell=boxes, pbc=pbc)})
    slab, cluster = structures(path, header({"groups": "/"}))
    assert slab.cell.tolist() == [[4, 0, 0], [0, 5, 0], [0, 0, 6]]
    assert slab.pbc.tolist() == [True, True, False]
    assert not cluster.pbc.any()
    assert slab.id == "own.h5:/0"


def test_one_structure_per_group_may_have_attributes(tmp_path: Path) -> None:
    path = tmp_path / "own.h5"
    with h5py.File(path, "w") as file:
        for name in ("m1", "m2"):
            group = file.create_group(name)
            group["elements"], group["positions"] = np.array([1, 1]), np.eye(3)[:2]
            group.attrs["energy"] = -1.5
    layout = {"groups": "*", "one_per_group": True, "energy": "@energy"}
    read = structures(path, header(layout, labels=["energy"]))
    assert [one.id for one in read] == ["own.h5:m1", "own.h5:m2"]
    assert read[1].energy == -1.5
    assert count_hdf5(path, header(layout)) == 2


def test_padding_is_cut_off_and_an_index_of_elements_is_no_padding(tmp_path: Path) -> None:
    numbers = np.array([[8, 1, 1], [1, 1, 0]])
    positions = np.arange(18.0).reshape(2, 3, 3)
    positions[1, 2] = 0.0
    path = write(tmp_path / "own.h5", {"": water(2, atomic_numbers=numbers, positions=positions)})
    whole, cut = structures(path, CardHeader())
    assert (whole.num_atoms, cut.num_atoms) == (3, 2)
    assert cut.positions.shape == (2, 3)
    assert cut.forces is not None
    assert cut.forces.shape == (2, 3)

    indices = np.array([[1, 0, 0], [0, 0, -1]])
    path = write(tmp_path / "index.h5", {"": water(2, atomic_numbers=indices)})
    assert "elements" in complaint(path, header({"groups": "/", "padding": -1}))
    whole, cut = structures(path, header({"groups": "/", "elements": ["H", "O"]}))
    assert whole.atomic_numbers.tolist() == [8, 1, 1]
    assert cut.atomic_numbers.tolist() == [1, 1]
    assert "has 1" in complaint(path, header({"groups": "/", "elements": ["H"]}))


@pytest.mark.parametrize("block_atoms", [1, 10, 10**6])
def test_parts_of_a_file_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_atoms: int
) -> None:
    monkeypatch.setattr(arrays_module, "BLOCK_ATOMS", block_atoms)
    path = write_transition1x(tmp_path / "t1x.h5")
    card = header("transition1x")
    whole = structures(path, card)
    assert count_hdf5(path, card) == len(whole)
    for start in range(0, len(whole) + 2, 5):
        part = structures(path, card, start=start, stop=start + 5)
        assert [one.id for one in part] == [one.id for one in whole[start : start + 5]]
        pairs = zip(part, whole[start:], strict=False)
        assert all((one.positions == same.positions).all() for one, same in pairs)


def test_parts_of_a_file_of_single_structures_are_the_whole(tmp_path: Path) -> None:
    path = write_qm7x(tmp_path / "1000.hdf5", molecules=("1", "2", "3"))
    whole = [one.id for one in structures(path, header("qm7x"))]
    for start in range(0, 14, 3):
        part = structures(path, header("qm7x"), start=start, stop=start + 3)
        assert [one.id for one in part] == whole[start : start + 3]


def test_it_goes_into_a_store(tmp_path: Path) -> None:
    path = write_transition1x(tmp_path / "t1x.h5")
    card = ingest("hdf5", [path], tmp_path / "store", header("transition1x", name="t1x"))
    assert card.num_structures == 36
    assert card.keys_found == {"energy": ENERGY, "forces": FORCES}
    assert "wB97x_6-31G(d).atomization_energy" in card.keys_seen
    store = Store.open(tmp_path / "store")
    assert store[20].id == "C2H2N2O/rxn2092/6"


def test_a_missing_array_is_named_with_what_the_group_has(tmp_path: Path) -> None:
    path = write(tmp_path / "own.h5", {"a": water(2), "b": water(2, forces=None)})
    card = header(labels=["energy", "forces"])
    message = complaint(path, card)
    assert "group 'b'" in message
    assert "atomic_numbers, energy, positions" in message
    read = list(read_hdf5(path, card, on_error="skip"))
    assert [isinstance(one, Structure) for one in read] == [True, True, False, False]
    assert count_hdf5(path, card) == 4
    message = complaint(path, header({"groups": "*", "positions": "xyz"}))
    assert "no 'xyz', expected the positions; the group has: atomic_numbers" in message
    assert "layout: {positions: NAME}" in message


def test_a_group_that_is_not_there_is_answered_with_an_outline(tmp_path: Path) -> None:
    path = write(tmp_path / "own.h5", {f"a/m{number}": water(2) for number in range(6)})
    message = complaint(path, header({"groups": "data/*/*"}))
    assert "no group 'data/*/*'" in message
    assert "a/ (6 members)" in message
    assert "m0/ (4 members)" in message
    assert "2 more" in message
    assert "groups: ..." in message
    with pytest.raises(DataError, match="no group"):
        count_hdf5(path, header({"groups": "data/*/*"}))


def test_a_value_that_is_not_finite_is_found_with_its_number(tmp_path: Path) -> None:
    arrays = water(4)
    arrays["forces"][2, 1, 0] = np.nan
    path = write(tmp_path / "own.h5", {"g": arrays})
    assert "group 'g', structure 2: 'forces' has a value" in complaint(path, CardHeader())
    read = list(read_hdf5(path, CardHeader(), on_error="skip"))
    assert [isinstance(one, Structure) for one in read] == [True, True, False, True]
    assert isinstance(read[2], SkippedRecord)
    assert read[2].record == "own.h5:g/2"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"energy": np.zeros(2)}, "the energy array has shape (2,), expected (3,) or (3, 1)"),
        ({"forces": np.zeros((3, 2, 3))}, "forces array has shape (3, 2, 3), expected (3, 3, 3)"),
        ({"positions": np.zeros((3, 2, 3))}, "don't fit together"),
        ({"energy": np.array([b"a", b"b", b"c"])}, "expected numbers"),
        ({"atomic_numbers": np.array([8, 1, 200])}, "unknown element 200"),
        ({"atomic_numbers": np.array([b"O", b"Hh", b"H"])}, "unknown element 'Hh'"),
        ({"energies": np.zeros(3)}, "could all be the energy"),
        ({"coords": np.zeros((3, 3, 3))}, "could all be the positions"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    path = write(tmp_path / "own.h5", {"g": water(3, **changes)})
    message = complaint(path, CardHeader())
    assert says in message
    assert "own.h5, group 'g'" in message


def test_the_units_of_a_named_layout_and_of_the_file_are_held_against_the_card(
    tmp_path: Path,
) -> None:
    path = write_ani1x(tmp_path / "ani1x.h5")
    with pytest.raises(ConfigError, match=r"units: \{energy: Hartree"):
        list(read_hdf5(path, header("ani1x", units={})))
    own = write(tmp_path / "own.h5", {"g": water(3)})
    with h5py.File(own, "a") as file:
        file["g/positions"].attrs["units"] = "bohr"
        file["g/energy"].attrs["units"] = "furlong"
    with pytest.raises(ConfigError, match=r"'positions' is in bohr.*\n.*units: {length: bohr}"):
        list(read_hdf5(own, CardHeader()))
    assert len(structures(own, header(units={"length": "bohr"}))) == 3


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "own.h5", {"g": water(3)})
    with pytest.raises(ConfigError, match="Did you mean 'transition1x'"):
        list(read_hdf5(path, header(options={"layout": "transition1"})))
    with pytest.raises(ConfigError, match="Did you mean 'positions'"):
        list(read_hdf5(path, header({"position": "xyz"})))
    with pytest.raises(ConfigError, match="split_groups"):
        list(read_hdf5(path, header(options={"splits": "official"})))
    assert "one_per_group" in complaint(path, header({"groups": "*", "one_per_group": True}))


def test_damaged_files_say_so(tmp_path: Path) -> None:
    path = write(tmp_path / "own.h5", {"g": water(500)})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "cut short" in complaint(path, CardHeader())
    path.write_text("not HDF5", encoding="utf-8")
    assert "not an HDF5 file" in complaint(path, CardHeader())
    assert "no such file" in complaint(tmp_path / "absent.h5", CardHeader())
    with h5py.File(path, "w") as file:
        for name, values in water(500).items():
            file.create_dataset(f"g/{name}", data=values, compression="gzip", chunks=values.shape)
        place = file["g/forces"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 100 : place + 140] = bytes(40)
    path.write_bytes(content)
    message = complaint(path, CardHeader())
    assert "group 'g'" in message
    assert "damaged" in message


def test_a_file_that_someone_has_locked_can_be_read(tmp_path: Path) -> None:
    path = write(tmp_path / "own.h5", {"g": water(2)})
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert len(structures(path, CardHeader())) == 2
    with h5py.File(path):  # a notebook, perhaps
        assert len(structures(path, CardHeader())) == 2


def test_both_formats_are_in_the_dictionary() -> None:
    assert FORMATS["hdf5"].read is read_hdf5
    assert FORMATS["hdf5"].count is count_hdf5


def test_a_card_without_labels_leaves_what_there_is_unread(tmp_path: Path) -> None:
    path = write_transition1x(tmp_path / "t1x.h5")
    (one, *_) = structures(path, header("transition1x", labels=[]))
    assert (one.energy, one.forces) == (None, None)
    (one, *_) = structures(path, header("transition1x", labels=["energy"]))
    assert one.has_energy
    assert not one.has_forces


def test_a_group_with_two_paths_is_read_once(tmp_path: Path) -> None:
    path = write(tmp_path / "own.h5", {"all/g": water(2)})
    with h5py.File(path, "a") as file:
        file.require_group("train")["g"] = file["all/g"]
        file["zoo"] = h5py.SoftLink("/all")
    assert [one.id for one in structures(path, CardHeader())] == [
        "own.h5:all/g/0",
        "own.h5:all/g/1",
    ]


def test_ids_that_files_share_can_be_numbered(tmp_path: Path) -> None:
    paths = [write_transition1x(tmp_path / name) for name in ("a.h5", "b.h5")]
    with pytest.raises(DataError, match=r"given twice.*\n.*`keys: {id: none}`"):
        ingest("hdf5", paths, tmp_path / "s", header("transition1x"))
    card = ingest("hdf5", paths, tmp_path / "s", header("transition1x", keys={"id": "none"}))
    assert card.num_structures == 2 * len(structures(paths[0], header("transition1x")))
