"""QMugs: the tar as it is published, the folder, and what the summary adds."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sdf_samples import WATER, molblock, record

from lamm.data.cards import CardHeader
from lamm.data.ingest import complete_header, ingest
from lamm.data.readers import FORMATS, KeysFound, SkippedRecord
from lamm.data.readers.qmugs import count_qmugs, read_qmugs
from lamm.data.store import Store
from lamm.errors import ConfigError, DataError
from lamm.structure import Structure

HARTREE = 27.211386245988  # CODATA 2018
IDS = ("CHEMBL10/conf_00", "CHEMBL10/conf_01", "CHEMBL2/conf_00", "CHEMBL2/conf_02")


def conformer(number: int, conformer_id: str, **fields: str) -> str:
    """A file of QMugs with energies that tell its number."""
    molecule, conf = conformer_id.split("/")
    atoms = tuple((symbol, x + number, y, z) for symbol, x, y, z in WATER)
    energies = {"GFN2__TOTAL_ENERGY": f"{-5.5 - number}", "DFT__TOTAL_ENERGY": f"{-76.25 - number}"}
    return record(
        molblock(atoms, molecule), CHEMBL_ID=molecule, CONF_ID=conf, **(energies | fields)
    )


def sample() -> dict[str, str]:
    """The files of two molecules, in the order of their names."""
    return {f"structures/{one}.sdf": conformer(number, one) for number, one in enumerate(IDS)}


def write_folder(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def write_tar(path: Path, files: Mapping[str, str]) -> Path:
    mode: Any = "w:" + path.suffix.removeprefix(".").removeprefix("tar")
    with tarfile.open(path, mode) as archive:
        folder = tarfile.TarInfo("structures")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def write_summary(folder: Path, rows: Mapping[str, tuple[str, bool]]) -> Path:
    """A summary with an energy (as text) and a flag of each conformer."""
    folder.mkdir(exist_ok=True)
    lines = ["chembl_id,conf_id,smiles,nonunique_smiles,GFN2_TOTAL_ENERGY,DFT_TOTAL_ENERGY"]
    for one, (energy, flag) in rows.items():
        molecule, conf = one.split("/")
        lines.append(f'{molecule},{conf},"[H]O[H]",{flag},-5.5,{energy}')
    path = folder / "summary.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def good_rows() -> dict[str, tuple[str, bool]]:
    return {one: (f"{-76.25 - number}", False) for number, one in enumerate(IDS)}


def header(**entries: Any) -> CardHeader:
    return complete_header(FORMATS["qmugs"], CardHeader(**entries))


def read(path: Path, *, on_error: Any = "stop", **entries: Any) -> list[Any]:
    return list(read_qmugs(path, header(**entries), on_error=on_error))


@pytest.mark.parametrize("kind", ["folder", "structures", "tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_every_form_of_the_source_has_the_same_conformers(tmp_path: Path, kind: str) -> None:
    if kind.startswith("tar"):
        source = write_tar(tmp_path / f"structures.{kind}", sample())
    else:
        source = write_folder(tmp_path / "qmugs", sample())
        source = source / "structures" if kind == "structures" else source
    found = KeysFound()
    conformers = list(read_qmugs(source, header(), found=found))
    assert all(isinstance(one, Structure) for one in conformers)
    assert [one.id for one in conformers] == list(IDS)  # type: ignore[union-attr]
    assert [one.origin for one in conformers] == [f"{source.name}:{one}" for one in IDS]  # type: ignore[union-attr]
    for number, one in enumerate(conformers):
        assert isinstance(one, Structure)
        assert one.energy == pytest.approx((-76.25 - number) * HARTREE, rel=1e-14)
        np.testing.assert_allclose(one.positions[:, 0], number, atol=1e-12)
    assert found.names == {"energy": "DFT:TOTAL_ENERGY"}
    assert "GFN2:TOTAL_ENERGY" in found.seen


def test_the_energy_of_gfn2_may_be_the_label(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "qmugs", sample())
    first, *_ = read(source, keys={"energy": "GFN2:TOTAL_ENERGY"})
    assert first.energy == pytest.approx(-5.5 * HARTREE, rel=1e-14)
    with pytest.raises(ConfigError, match="GFN2-xTB isn't a density functional"):
        read(source, keys={"energy": "GFN2:TOTAL_ENERGY"}, is_dft=True)


@pytest.mark.parametrize("value", ["nan", "None", ""])
def test_a_calculation_without_an_energy_is_passed_over(tmp_path: Path, value: str) -> None:
    files = sample()
    files[f"structures/{IDS[1]}.sdf"] = conformer(1, IDS[1], DFT__TOTAL_ENERGY=value)
    found = read(write_tar(tmp_path / "structures.tar", files))
    assert [isinstance(one, SkippedRecord) for one in found] == [False, True, False, False]
    assert found[1].record == "structures.tar:CHEMBL10/conf_01"
    assert "the energy isn't known" in found[1].reason


def test_a_file_without_the_field_is_an_error_that_names_the_conformer(tmp_path: Path) -> None:
    files = {f"structures/{IDS[0]}.sdf": record(CHEMBL_ID="CHEMBL10", CONF_ID="conf_00")}
    path = write_tar(tmp_path / "structures.tar", files)
    with pytest.raises(DataError, match=r"conformer CHEMBL10/conf_00: no 'DFT:TOTAL_ENERGY'"):
        read(path)
    assert isinstance(read(path, on_error="skip")[0], SkippedRecord)


def test_a_conformer_without_atoms_is_passed_over(tmp_path: Path) -> None:
    fields = {"CHEMBL_ID": "CHEMBL10", "CONF_ID": "conf_00", "DFT__TOTAL_ENERGY": "-1.0"}
    files = {f"structures/{IDS[0]}.sdf": record(molblock(()), **fields)}
    (one,) = read(write_folder(tmp_path / "qmugs", files))
    assert one.reason == "no atoms: a record without a structure."


def test_fields_that_name_another_conformer_are_an_error(tmp_path: Path) -> None:
    files = {f"structures/{IDS[0]}.sdf": conformer(0, IDS[1])}
    with pytest.raises(DataError, match="CHEMBL_ID and CONF_ID say 'CHEMBL10/conf_01'"):
        read(write_tar(tmp_path / "structures.tar", files))


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_what_only_the_summary_has_is_reported_at_the_end(tmp_path: Path, kind: str) -> None:
    rows = good_rows() | {"CHEMBL1/conf_00": ("-1.0", False), "CHEMBL3/conf_01": ("-1.0", False)}
    write_summary(tmp_path, rows)
    if kind == "tar":
        source = write_tar(tmp_path / "structures.tar", sample())
    else:
        source = write_folder(tmp_path, sample()) / "structures"
    found = read(source)
    assert len(found) == 6
    assert [one.record for one in found[4:]] == [
        f"{source.name}:CHEMBL1/conf_00",
        f"{source.name}:CHEMBL3/conf_01",
    ]
    assert "there is no such file" in found[4].reason
    assert count_qmugs(source, header()) == (None if kind == "tar" else 6)
    for start in range(7):  # a record has the same number wherever reading begins
        part = list(read_qmugs(source, header(), start=start, stop=start + 2))
        names = [getattr(one, "origin", None) or one.record for one in part]  # type: ignore[union-attr]
        whole = [getattr(one, "origin", None) or one.record for one in found]
        assert names == whole[start : start + 2]


def test_an_energy_that_differs_in_the_summary_is_an_error(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "structures.tar", sample())
    write_summary(tmp_path, good_rows() | {IDS[2]: ("-78.2502", False)})
    with pytest.raises(DataError, match=r"CHEMBL2/conf_00: its energy is -78.25000000 and in the"):
        read(source)
    found = read(source, on_error="skip")
    assert [isinstance(one, SkippedRecord) for one in found] == [False, False, True, False]
    assert len(read(source, reader={"summary": "none"})) == 4


def test_an_energy_that_the_summary_lacks_passes_the_conformer_over(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "structures.tar", sample())
    write_summary(tmp_path, good_rows() | {IDS[0]: ("", False), IDS[1]: ("NaN", False)})
    found = read(source)
    assert [isinstance(one, SkippedRecord) for one in found] == [True, True, False, False]
    assert "its calculation has failed" in found[0].reason


def test_flagged_conformers_are_left_out_where_the_card_says_so(tmp_path: Path) -> None:
    source = write_tar(tmp_path / "structures.tar", sample())
    rows = good_rows() | {IDS[3]: ("-79.25", True)}
    elsewhere = write_summary(tmp_path / "elsewhere", rows)
    options = {"summary": str(elsewhere), "leave_out": "nonunique_smiles"}
    found = read(source, reader=options)
    assert found[3].reason == "'nonunique_smiles' is true in the summary."
    with pytest.raises(ConfigError, match=r"no summary.csv beside it"):
        read(source, reader={"leave_out": "nonunique_smiles"})
    with pytest.raises(DataError, match=r"not a summary of QMugs with the columns .* rings"):
        read(source, reader=options | {"leave_out": "rings"})


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
@pytest.mark.parametrize("share", [0.25, 0.4])
def test_a_tar_that_is_cut_short_names_itself(tmp_path: Path, kind: str, share: float) -> None:
    path = write_tar(tmp_path / f"structures.{kind}", sample())
    content = path.read_bytes()
    length = int(len(content) * share)
    path.write_bytes(content[: length - length % 512 if kind == "tar" else length])
    with pytest.raises(DataError, match=r"structures.tar.*(cut short|no tar)"):
        read(path, on_error="skip")


def test_a_source_without_conformers_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file in it is like 'structures/CHEMBL123"):
        read(write_tar(tmp_path / "other.tar", {"a.sdf": record()}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no file in it is like 'CHEMBL123"):
        count_qmugs(tmp_path / "empty", header())


def test_files_that_are_no_conformers_are_left_alone(tmp_path: Path) -> None:
    files = sample() | {
        "structures/CHEMBL2/._conf_00.sdf": "of another system",
        "structures/CHEMBL2/notes.txt": "mine",
        "README.md": "QMugs",
    }
    assert len(read(write_folder(tmp_path / "qmugs", files))) == 4
    assert len(read(write_tar(tmp_path / "structures.tar", files))) == 4


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_store_is_made_of_a_source(tmp_path: Path, kind: str) -> None:
    write_summary(tmp_path, good_rows() | {"CHEMBL3/conf_01": ("-1.0", False)})
    source = tmp_path / "structures.tar"
    if kind == "tar":
        write_tar(source, sample())
    else:
        source = write_folder(tmp_path, sample()) / "structures"
    card = ingest("qmugs", [source], tmp_path / "store", CardHeader(functional="ωB97X-D/def2-SVP"))
    assert (card.num_structures, card.num_skipped) == (4, 1)
    assert card.keys_found == {"energy": "DFT:TOTAL_ENERGY"}
    assert card.units.energy == "Hartree"
    energy = Store.open(tmp_path / "store")[3].energy
    assert energy == pytest.approx(-79.25 * HARTREE, rel=1e-14)


def test_the_genuine_layout_gives_the_energies_of_its_summary(shared: Path, tmp_path: Path) -> None:
    packed = shared / "data" / "pretrain" / "qmugs_like_gfn2" / "qmugs_like.tar.xz"
    with tarfile.open(packed) as archive:
        archive.extract("summary.csv", tmp_path, filter="data")
    (tmp_path / packed.name).symlink_to(packed)
    gfn2 = header(keys={"energy": "GFN2:TOTAL_ENERGY"})
    conformers = list(read_qmugs(tmp_path / packed.name, gfn2))
    lines = (tmp_path / "summary.csv").read_text().splitlines()[1:]
    expected = {
        f"{words[0]}/{words[1]}": float(words[6]) for words in (x.split(",") for x in lines)
    }
    assert len(conformers) == len(expected) == 2000
    for one in conformers:
        assert isinstance(one, Structure)
        assert one.energy == pytest.approx(expected[one.id] * HARTREE, rel=1e-12)
