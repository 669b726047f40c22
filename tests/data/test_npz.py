"""NumPy's npz: one molecule a file, or padded arrays of many."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hdf5_samples import write_rmd17

from lamm.data.cards import CardHeader
from lamm.data.ingest import ingest
from lamm.data.readers import FORMATS, KeysFound, SkippedRecord
from lamm.data.readers.npz import count_npz, read_npz
from lamm.data.store import Store
from lamm.errors import ConfigError, DataError
from lamm.structure import Structure

KCAL_PER_MOL = 4184.0 / 6.02214076e23 / 1.602176634e-19
RMD17: dict[str, Any] = {
    "reader": {"layout": "rmd17"},
    "units": {"energy": "kcal/mol"},
    "labels": ["energy", "forces"],
}


def structures(path: Path, **entries: Any) -> list[Structure]:
    read = list(read_npz(path, CardHeader.model_validate(entries)))
    assert all(isinstance(one, Structure) for one in read)
    return read  # type: ignore[return-value]


def complaint(path: Path, **entries: Any) -> str:
    with pytest.raises(DataError) as error:
        structures(path, **entries)
    return str(error.value)


def hydrogen(structures: int = 3, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "z": np.array([1, 1]),
        "R": rng.normal(size=(structures, 2, 3)),
        "E": rng.normal(size=(structures, 1)),
        "F": rng.normal(size=(structures, 2, 3)),
    } | changes


@pytest.mark.parametrize("compress", [False, True], ids=["stored", "compressed"])
def test_rmd17_is_read_in_ev(tmp_path: Path, compress: bool) -> None:
    path = write_rmd17(tmp_path / "rmd17_ethanol.npz", compress=compress)
    found = KeysFound()
    read = list(read_npz(path, CardHeader.model_validate(RMD17), found=found))
    source = np.load(path)
    assert len(read) == 5
    for number, one in enumerate(read):
        assert isinstance(one, Structure)
        assert one.atomic_numbers.tolist() == [6, 6, 8, 1]
        assert (one.positions == source["coords"][number]).all()
        assert one.energy == pytest.approx(source["energies"][number] * KCAL_PER_MOL, rel=1e-14)
        assert one.forces is not None
        assert np.allclose(one.forces, source["forces"][number] * KCAL_PER_MOL, rtol=1e-14)
        assert one.id == one.origin == f"rmd17_ethanol.npz:{number}"
    assert found.names == {"energy": "energies", "forces": "forces"}
    assert "old_energies" in found.seen


def test_genuine_padded_structures_of_qm7x(shared: Path) -> None:
    path = shared / "data/pretrain/qm7x/qm7x_250_small.npz"
    read = structures(path, reader={"layout": "qm7x-npz"}, labels=["energy", "forces"])
    source = np.load(path)
    assert len(read) == 2500 == count_npz(path, CardHeader())
    sizes = (source["z"] > 0).sum(axis=1)
    assert [one.num_atoms for one in read] == sizes.tolist()
    assert (min(sizes), max(sizes)) == (4, 23)
    for number in range(0, 2500, 50):
        one, size = read[number], sizes[number]
        assert one.atomic_numbers.tolist() == source["z"][number, :size].tolist()
        assert (one.positions == source["R"][number, :size]).all()
        assert one.forces is not None
        assert (one.forces == source["F"][number, :size]).all()
        assert one.energy == source["E"][number, 0]


@pytest.mark.parametrize("compress", [False, True], ids=["stored", "compressed"])
def test_parts_are_the_whole(tmp_path: Path, compress: bool) -> None:
    path = write_rmd17(tmp_path / "a.npz", 11, compress)
    card = CardHeader.model_validate(RMD17)
    whole = [one.id for one in structures(path, **RMD17)]
    assert count_npz(path, card) == 11
    for start in range(0, 13, 4):
        part = list(read_npz(path, card, start=start, stop=start + 4))
        assert [one.id for one in part if isinstance(one, Structure)] == whole[start : start + 4]


def test_other_types_and_orders_of_numbers_are_read(tmp_path: Path) -> None:
    positions = np.arange(18.0).reshape(3, 2, 3)
    arrays = hydrogen(R=np.asfortranarray(positions.astype(">f4")), z=np.array(["H", "H"]))
    np.savez(tmp_path / "a.npz", **arrays)
    read = structures(tmp_path / "a.npz")
    assert read[1].positions.dtype == np.dtype("float32")
    assert read[1].positions.tolist() == positions[1].tolist()
    assert read[1].atomic_numbers.tolist() == [1, 1]


def test_one_structure_may_be_all_there_is(tmp_path: Path) -> None:
    arrays = {"numbers": np.array([1, 1]), "positions": np.eye(3)[:2], "energy": np.array(-1.0)}
    np.savez(tmp_path / "a.npz", **arrays)
    (one,) = structures(tmp_path / "a.npz")
    assert (one.energy, one.id) == (-1.0, "a.npz")


def test_it_goes_into_a_store(tmp_path: Path) -> None:
    path = write_rmd17(tmp_path / "a.npz", 7)
    card = ingest("npz", [path], tmp_path / "store", CardHeader.model_validate(RMD17))
    assert card.num_structures == 7
    assert Store.open(tmp_path / "store")[3].id == "a.npz:3"


def test_the_units_that_sgdml_files_name_are_held_against_the_card(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **hydrogen(e_unit="kcal/mol", r_unit="Ang"))
    with pytest.raises(ConfigError, match="'E' is in kcal/mol"):
        structures(tmp_path / "a.npz")
    assert len(structures(tmp_path / "a.npz", units={"energy": "kcal/mol"})) == 3


def test_a_bad_structure_is_named_and_can_be_skipped(tmp_path: Path) -> None:
    arrays = hydrogen()
    arrays["E"][1] = np.inf
    np.savez(tmp_path / "a.npz", **arrays)
    assert "a.npz, the file, structure 1: energy is inf" in complaint(tmp_path / "a.npz")
    read = list(read_npz(tmp_path / "a.npz", CardHeader(), on_error="skip"))
    assert isinstance(read[1], SkippedRecord)
    assert read[1].record == "a.npz:1"
    assert len(read) == 3


def test_files_that_can_not_be_read_say_why(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    assert "no such file" in complaint(path)
    ragged = np.array([np.zeros((2, 3)), np.zeros((3, 3))], dtype=object)
    np.savez(path, **hydrogen(R=ragged))
    assert "Python objects" in complaint(path)
    np.savez(path, **hydrogen(z=np.array([1, 1, 1])))
    assert "don't fit together" in complaint(path)
    np.savez(path, x=np.zeros(3))
    assert "the group has: x" in complaint(path)
    np.savez_compressed(path, **hydrogen(500))
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    assert "cut short" in complaint(path)
    broken = bytearray(content)
    broken[len(content) // 2 : len(content) // 2 + 50] = bytes(50)
    path.write_bytes(broken)
    assert "damaged" in complaint(path)


def test_the_dictionary_of_formats_has_it() -> None:
    assert FORMATS["npz"].read is read_npz
