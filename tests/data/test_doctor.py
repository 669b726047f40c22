"""The doctor finds each fault that is planted into clean data, and none in clean data."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from doctor_samples import (
    MINI,
    Change,
    diagnose,
    energy_times,
    faults,
    forces_times,
    lengths_times,
    some_of,
    stress_times,
    turned,
)
from typer.testing import CliRunner

from lamm.cli.data import app
from lamm.data.cards import CardHeader
from lamm.data.doctor import examine
from lamm.data.ingest import ingest
from lamm.data.joint import store_path
from lamm.data.store import Store
from lamm.errors import StoreError
from lamm.structure import Structure
from lamm.units import BOHR, GPA, HARTREE, KCAL_PER_MOL, KJ_PER_MOL

Make = Callable[..., Store]
MOLECULES, SLABS, OXIDES = "molecules_wb97x", "slabs_chgnet", "oxides_chgnet"
_BASES: dict[str, list[Structure]] = {}


def _no_edges(structures: list[Structure]) -> np.ndarray:
    return np.zeros(len(structures), dtype=np.int64)


@pytest.fixture(autouse=True)
def _uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores are written without counting edges, which the doctor doesn't look at."""
    monkeypatch.setattr("lamm.data.writer.edge_counter", lambda header: _no_edges)


def base(name: str, count: int = 100) -> list[Structure]:
    """Clean structures, read once."""
    return list(_BASES.setdefault(name, some_of(name, 150))[:count])


def made(make_store: Make, structures: list[Structure], **entries: object) -> Store:
    return make_store(structures, **{"edge_cutoff": 3.0, **entries})


@pytest.mark.parametrize("name", MINI)
def test_the_stores_that_the_package_ships_are_clean(name: str) -> None:
    found = examine({name: Store.open(store_path(f"mini:{name}"))})
    assert faults(found) == {}


ENERGY_FACTORS = (1 / HARTREE, HARTREE, 2 / HARTREE, 1 / KCAL_PER_MOL, KCAL_PER_MOL, 1e-3)
FORCE_FACTORS = (
    *(1 / HARTREE, HARTREE, BOHR / HARTREE, HARTREE / BOHR, 1 / KCAL_PER_MOL, KCAL_PER_MOL),
    *(1 / KJ_PER_MOL, 1e3, BOHR, 1 / BOHR),
)


@pytest.mark.parametrize("name", [MOLECULES, SLABS])
@pytest.mark.parametrize(
    ("check", "change"),
    [
        *(("units.energy", energy_times(factor)) for factor in ENERGY_FACTORS),
        *(("units.forces", forces_times(factor)) for factor in FORCE_FACTORS),
        ("units.forces_sign", forces_times(-1.0)),
        *(("units.positions", lengths_times(factor)) for factor in (BOHR, 1 / BOHR, 0.1, 10.0)),
    ],
)
def test_a_wrong_unit_is_found_and_named(
    make_store: Make, name: str, check: str, change: Change
) -> None:
    found = faults(diagnose(made(make_store, [change(one) for one in base(name, 150)])))
    assert {one for one in found if one.startswith("units.")} == {check}


@pytest.mark.parametrize(
    ("factor", "name"),
    [(1 / HARTREE, "Hartree"), (1 / KCAL_PER_MOL, "kcal/mol"), (1 / KJ_PER_MOL, "kJ/mol")],
)
def test_the_unit_of_energies_is_named_first(make_store: Make, factor: float, name: str) -> None:
    found = faults(diagnose(made(make_store, [energy_times(factor)(o) for o in base(MOLECULES)])))
    assert f"perhaps the source is in {name} and" in found["units.energy"].title
    assert found["units.energy"].numbers["factor"] == pytest.approx(factor, rel=0.05)


def test_energies_and_forces_that_are_both_in_hartree_are_found(make_store: Make) -> None:
    both = [forces_times(1 / HARTREE)(energy_times(1 / HARTREE)(o)) for o in base(MOLECULES)]
    assert "units.energy" in faults(diagnose(made(make_store, both)))


def test_energies_per_atom_are_found(make_store: Make) -> None:
    for name in (MOLECULES, SLABS):
        spoiled = [replace(one, energy=one.energy / one.num_atoms) for one in base(name, 150)]
        found = faults(diagnose(made(make_store, spoiled, name=name)))
        assert "units.per_atom" in found, name


@pytest.mark.parametrize(
    ("check", "factor"), [("stress.sign", -1.0), ("stress.unit", GPA), ("stress.unit", 1 / GPA)]
)
def test_a_wrong_stress_is_found(make_store: Make, check: str, factor: float) -> None:
    spoiled = [stress_times(factor)(one) for one in base(OXIDES, 150)]
    assert set(faults(diagnose(made(make_store, spoiled)))) == {check}


@pytest.mark.parametrize("name", MINI)
def test_a_store_of_one_structure_has_no_faults(make_store: Make, name: str) -> None:
    one = replace(base(name, 1)[0], split="train")
    task = "denoising" if one.energy is None else None
    assert faults(diagnose(made(make_store, [one], task=task))) == {}


def test_what_cannot_be_told_is_said(make_store: Make) -> None:
    few = [replace(one, split=None) for one in base("downstream_sevennet", 5)]
    found = diagnose(made(make_store, few))
    assert faults(found) == {}
    assert {"units.untold", "stress.untold"} <= {one.check for one in found.findings}


def _zero_forces(one: Structure) -> Structure:
    assert one.forces is not None
    return replace(one, forces=np.zeros_like(one.forces))


def _held_atoms(one: Structure) -> Structure:
    assert one.forces is not None
    forces = one.forces.copy()
    forces[np.argsort(one.positions[:, 2])[:3]] = 0.0
    return replace(one, forces=forces, fixed=None)


def _pushed(one: Structure) -> Structure:
    assert one.forces is not None
    return replace(one, forces=one.forces + np.float32([3.0, 0.0, 0.0]))


def _twisted(one: Structure) -> Structure:
    assert one.forces is not None
    arm = one.positions - one.positions.mean(axis=0)
    return replace(one, forces=one.forces + 20 * np.cross([0.3, 0.5, 0.8], arm))


def _on_top(one: Structure) -> Structure:
    positions = one.positions.copy()
    positions[1] = positions[0] + 0.2
    return replace(one, positions=positions)


def _through_the_wall(one: Structure) -> Structure:
    """An atom 0.3 Å from a periodic image of another one."""
    positions = one.positions.copy()
    positions[1] = positions[0] + one.cell[0] + [0.3, 0, 0]
    return replace(one, positions=positions)


def _far_energy(one: Structure) -> Structure:
    assert one.energy is not None
    return replace(one, energy=one.energy + 60.0 * one.num_atoms)


@pytest.mark.parametrize(
    ("name", "check", "change"),
    [
        (MOLECULES, "forces.zero", _zero_forces),
        (OXIDES, "forces.zero", _zero_forces),
        (SLABS, "forces.constrained", _held_atoms),
        (MOLECULES, "forces.net_force", _pushed),
        (MOLECULES, "forces.torque", _twisted),
        (MOLECULES, "geometry.too_close", _on_top),
        (OXIDES, "geometry.too_close", _through_the_wall),
        (MOLECULES, "energies.outliers", _far_energy),
        (OXIDES, "energies.outliers", _far_energy),
    ],
)
def test_a_spoiled_record_is_named(make_store: Make, name: str, check: str, change: Change) -> None:
    structures = base(name)
    chosen = [17, 41, 78]
    if check == "forces.torque":
        chosen = [k for k, one in enumerate(structures) if one.num_atoms > 5][:3]
    for place in chosen:
        structures[place] = change(structures[place])
    found = faults(diagnose(made(make_store, structures)))
    assert check in found
    assert set(found[check].ids) == {structures[place].id for place in chosen}
    assert found[check].count == 3


def emt(atoms: Atoms, number: int) -> Structure:
    """A structure with labels of effective medium theory."""
    atoms.calc = EMT()
    return Structure(
        atomic_numbers=atoms.numbers.astype(np.uint8),
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=atoms.pbc,
        energy=atoms.get_potential_energy(),
        forces=atoms.get_forces(),
        id=f"emt_{number}",
    )


def rattled(count: int, size: float) -> list[Structure]:
    """Alloys of Cu and Al, expanded or compressed, with all atoms displaced at random."""
    rng = np.random.default_rng(1)
    found = []
    for number in range(count):
        atoms = bulk(("Cu", "Al")[number % 2], cubic=True) * (1 + (number % 3 == 0), 1, 1)
        atoms.symbols[rng.integers(len(atoms))] = ("Al", "Cu")[number % 2]
        atoms.set_cell(atoms.cell * (1 + 0.4 * size * rng.normal()), scale_atoms=True)
        atoms.rattle(size, seed=number)
        found.append(emt(atoms, number))
    return found


def test_one_record_of_extreme_forces_isnt_taken_for_a_wrong_unit(make_store: Make) -> None:
    structures = rattled(30, 0.1)
    structures[4] = forces_times(1e4)(structures[4])
    found = faults(diagnose(made(make_store, structures)))
    assert found["forces.extreme"].ids == (structures[4].id,)
    assert found["forces.extreme"].severity == "warning"
    assert not {check for check in found if check.startswith("units.")}


def test_small_forces_of_structures_at_rest_are_no_error(make_store: Make) -> None:
    rng = np.random.default_rng(2)
    relaxed = [
        replace(one, forces=rng.normal(0, 4e-3, one.forces.shape))  # type: ignore[union-attr]
        for one in rattled(30, 0.1)
    ]
    scan = [
        emt(bulk(symbol, a=a0 * x, cubic=True), n)
        for n, (symbol, a0, x) in enumerate(
            (s, a, x) for s, a in (("Cu", 3.61), ("Al", 4.05)) for x in np.linspace(0.9, 1.1, 20)
        )
    ]
    for name, structures in (("relaxed", relaxed), ("scan", scan)):
        found = diagnose(made(make_store, structures, name=name)).findings
        assert not [one for one in found if one.check == "units.forces" and one.severity == "error"]


def test_forces_that_are_copied_to_another_structure_are_found(make_store: Make) -> None:
    structures = base(SLABS)
    structures[4] = replace(structures[4], forces=structures[3].forces)
    found = faults(diagnose(made(make_store, structures)))
    assert set(found["forces.repeated"].ids) == {structures[3].id, structures[4].id}


@pytest.mark.parametrize("name", [MOLECULES, OXIDES])
@pytest.mark.parametrize("off", [0.0, 5.0])
def test_copies_are_found_turned_and_reordered(
    make_store: Make, rng: np.random.Generator, name: str, off: float
) -> None:
    structures = base(name)
    copied = [structures[k] for k in (3, 50, 97)]
    structures += [
        replace(turned(one, rng), id=f"copy of {one.id}", energy=one.energy + off)  # type: ignore[operator]
        for one in copied
    ]
    found = faults(diagnose(made(make_store, structures, position_dtype="float64")))
    check = "duplicates.contradict" if off else "duplicates.same"
    assert found[check].count == 3
    assert set(found[check].ids) == {
        text for one in copied for text in (one.id, f"copy of {one.id}")
    }


def test_copies_of_a_crystal_are_found_in_another_image(make_store: Make) -> None:
    structures = base(OXIDES)
    one = structures[8]
    moved = one.positions + np.arange(one.num_atoms)[:, None] % 2 * one.cell[1]
    structures.append(replace(one, positions=moved, id="moved"))
    found = faults(diagnose(made(make_store, structures, position_dtype="float64")))
    assert set(found["duplicates.same"].ids) == {one.id, "moved"}


def test_frames_of_a_slow_trajectory_are_no_copies(
    make_store: Make, rng: np.random.Generator
) -> None:
    start = base(MOLECULES)[60]
    frames = [
        replace(start, id=f"t_{k}", positions=start.positions + 1e-3 * k * rng.normal(size=3))
        for k in range(1)
    ]
    for k in range(1, 30):
        step = 1e-3 * rng.normal(size=start.positions.shape)
        frames.append(replace(start, id=f"t_{k}", positions=frames[-1].positions + step))
    frames = [replace(one, energy=None, forces=None) for one in frames]
    store = made(make_store, frames, position_dtype="float64", task="denoising")
    assert faults(diagnose(store)) == {}
    assert "duplicates.same" in faults(diagnose(store, tolerance=0.1))


def test_copies_between_stores_are_a_note_unless_the_theory_is_the_same(make_store: Make) -> None:
    structures = base(MOLECULES)
    stores = {
        name: made(make_store, structures, name=name, functional=functional)
        for name, functional in (("a", "PBE"), ("b", "PBE0"), ("c", "PBE"))
    }
    other = examine({name: stores[name] for name in "ab"})
    assert "duplicates.across" not in faults(other)
    assert "duplicates.across" in {one.check for one in other.findings}
    same = faults(examine({name: stores[name] for name in "ac"}))
    assert same["duplicates.across"].count == len(structures)


def test_two_conventions_in_one_store_are_found(make_store: Make) -> None:
    structures = [
        replace(one, energy=one.energy + 200.0) if k % 3 == 0 else one  # type: ignore[operator]
        for k, one in enumerate(base(SLABS, 150))
    ]
    found = faults(diagnose(made(make_store, structures)))
    assert "energies.two_groups" in found
    assert set(found["energies.two_groups"].ids) == {one.id for one in structures[::3]}
    assert found["energies.two_groups"].numbers["shift_ev"] == pytest.approx(200.0, rel=0.05)


def test_adsorption_energies_among_totals_are_found(make_store: Make) -> None:
    structures = [
        replace(one, energy=-0.7, forces=None) if k % 8 == 0 else one
        for k, one in enumerate(some_of(SLABS, 400))
    ]
    found = faults(diagnose(made(make_store, structures)))
    planted = {one.id for one in structures[::8]}
    named = set(found["energies.mixed"].ids)
    assert named <= planted
    assert len(named) > 0.6 * len(planted)  # others are within the spread of such small slabs


def test_adsorption_energies_that_the_card_calls_totals_are_found(
    make_store: Make, rng: np.random.Generator
) -> None:
    structures = [
        replace(one, energy=float(rng.normal(-0.4, 1.4)), forces=None) for one in base(SLABS, 150)
    ]
    said = made(make_store, structures, name="said", energy_convention="total energy")
    assert "adsorption" in faults(diagnose(said))["energies.convention"].title
    right = made(make_store, structures, name="right", task="IS2RE")
    assert faults(diagnose(right)) == {}


def _keys(store: Store, *seen: str) -> Store:
    store.card = store.card.model_copy(update={"keys_seen": seen})
    return store


def test_labels_that_were_left_behind_are_named(make_store: Make) -> None:
    structures = [replace(one, forces=None) for one in base(MOLECULES)]
    for key in ("forces", "dft_total_gradient", "pbe0FOR", "REF_force"):
        store = _keys(made(make_store, structures, name=key), "energy", key, "forces_unit")
        found = faults(diagnose(store))
        assert set(found) == {"labels.unused_forces"}
        assert f"'{key}'" in found["labels.unused_forces"].title
    store = _keys(made(make_store, base(MOLECULES), name="two"), "energy", "eDFTB", "ePBE0")
    assert faults(diagnose(store)) == {}


def test_elements_that_training_lacks_are_named(make_store: Make) -> None:
    structures = [replace(one, split="train") for one in base(MOLECULES)]
    numbers = structures[9].atomic_numbers.copy()
    numbers[0] = 34
    structures[9] = replace(structures[9], atomic_numbers=numbers, energy=None, split="val")
    found = faults(diagnose(made(make_store, structures)))
    assert found["splits.elements"].ids == (structures[9].id,)
    assert "Se" in found["splits.elements"].title


def test_leaks_between_splits_are_found(make_store: Make) -> None:
    structures = [
        replace(one, split="val" if k % 10 == 0 else "train", id=f"random{k // 10}_{k % 10}")
        for k, one in enumerate(base(SLABS))
    ]
    structures.append(replace(structures[11], id="other_3", split="test"))
    found = faults(diagnose(made(make_store, structures)))
    assert set(found["splits.copies"].ids) == {structures[11].id, "other_3"}
    assert found["splits.systems"].severity.value == "warning"


def test_numbers_that_are_not_finite_are_found_in_the_columns(
    make_store: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Structure, "check", lambda self: None)
    structures = base(MOLECULES)
    broken = structures[20].forces.copy()  # type: ignore[union-attr]
    broken[0, 1] = np.inf
    structures[20] = replace(structures[20], forces=broken, split="val")
    found = faults(diagnose(made(make_store, structures)))
    assert found["geometry.not_finite"].ids == (structures[20].id,)


def test_records_without_a_label_and_shared_ids_are_found(make_store: Make) -> None:
    structures = base(MOLECULES)
    structures[3] = replace(structures[3], energy=None, forces=None)
    store = made(make_store, structures)
    store.index.id_hash.flags.writeable or object.__setattr__(
        store.index, "id_hash", store.index.id_hash.copy()
    )
    store.index.id_hash[7] = store.index.id_hash[6]
    found = faults(diagnose(store))
    assert found["labels.none"].ids == (structures[3].id,)
    assert found["labels.ids"].ids == (structures[7].id,)


def test_a_damaged_file_is_found(make_store: Make) -> None:
    store = made(make_store, base(MOLECULES))
    shard = store.path / store.card.shards[0].name
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(bytes(data))
    assert set(faults(diagnose(store))) == {"files"}
    assert "files" not in faults(diagnose(store, verify=False))


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["doctor", *words])
    return result.exit_code, result.stdout


def test_the_command_ends_with_0_on_clean_stores_and_1_on_faults(
    make_store: Make, tmp_path: Path
) -> None:
    status, text = run(f"mini:{MOLECULES}")
    assert status == 0
    assert "NOTE splits.systems" in text
    structures = base(MOLECULES)
    structures[17] = _zero_forces(structures[17])
    path = str(made(make_store, structures).path)
    status, text = run(path, "--all-ids", str(tmp_path / "ids.csv"))
    assert status == 1
    assert "ERROR forces.zero in store" in text
    assert f"Records: {structures[17].id}" in text
    assert f"forces.zero,store,{structures[17].id}" in (tmp_path / "ids.csv").read_text()
    status, text = run(path, "--json")
    answer = json.loads(text)
    assert status == 1
    assert answer["counts"]["error"] == 1
    assert answer["findings"][0]["ids"] == [structures[17].id]


def test_the_command_refuses_what_is_no_store(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", str(tmp_path)])
    assert isinstance(result.exception, StoreError)


GENUINE: dict[str, tuple[str, dict[str, object], set[str]]] = {
    # Seven of its structures have forces of 13 to 83 eV/Å, where half have 0.11 eV/Å and less.
    "mptrj": ("pretrain/mptrj/mptrj-random-1k.xyz.xz", {}, {"forces.extreme"}),
    "bpa3": ("pretrain/bpa3/train_300K.xyz.xz", {}, set()),
    "mad": ("downstream/mad_pbesol/mad_val_1000.xyz.xz", {"keys": {"split": "none"}}, set()),
    # Two records of the set are twice in it: mpf-TP 128 and 852, 156 and 634.
    "mattersim_tp": ("downstream/mattersim_tp", {}, {"duplicates.same"}),
    "alexandria": (
        "pretrain/alexandria_pressure_is2re",
        {"keys": {"energy": "y_relaxed"}, "labels": ["energy"], "task": "IS2RE-Total"},
        set(),
    ),
    # System 7 jumps by 68 eV at frame 335; relaxations that stand still give frames twice; some
    # forces are over 10 eV/Å; and molybdenum is only in a system for validation.
    "oc20": (
        "pretrain/oc20_s2ef",
        {"split": "from_path", "task": "S2EF-Total"},
        {"energies.outliers", "duplicates.same", "forces.extreme", "splits.elements"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GENUINE)
def test_genuine_sets_have_no_faults_but_their_own(shared: Path, tmp_path: Path, name: str) -> None:
    source, entries, expected = GENUINE[name]
    header = CardHeader.model_validate({"name": name, "edge_cutoff": 0.5, **entries})
    ingest("extxyz", [shared / "data" / source], tmp_path / name, header)
    found = faults(examine({name: Store.open(tmp_path / name)}))
    assert set(found) == expected
    if name == "oc20":
        assert found["energies.outliers"].ids[0].endswith("7.extxyz.xz:336")


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_gradient_that_a_genuine_set_calls_forces_is_found(
    shared: Path, make_store: Make, sign: float
) -> None:
    import h5py

    path = shared / "data/pretrain/comp6_s66x8/s66x8_wb97x6-31gd.h5"
    structures: list[Structure] = []

    def take(name: str, group: object) -> None:
        if not isinstance(group, h5py.Group) or "coordinates" not in group:
            return
        numbers = np.array([{b"H": 1, b"C": 6, b"N": 7, b"O": 8}[s] for s in group["species"]])
        for k, energy in enumerate(group["energies"]):
            structures.append(
                Structure(
                    atomic_numbers=numbers.astype(np.uint8),
                    positions=group["coordinates"][k].astype(np.float64),
                    energy=float(energy) * HARTREE,
                    forces=sign * HARTREE * group["forces"][k],
                    id=f"{name}:{k}",
                )
            )

    with h5py.File(path) as file:
        file.visititems(take)
    found = faults(diagnose(made(make_store, structures)))
    assert set(found) == ({"units.forces_sign"} if sign > 0 else set())
