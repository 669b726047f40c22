"""Stores become one store, or one with fewer labels."""

from collections.abc import Callable
from pathlib import Path

import pytest
from data_samples import assert_same, some_structures

from lamm.data.cards import CardHeader
from lamm.data.ingest import ingest
from lamm.data.store import Store
from lamm.errors import ConfigError, DataError

MakeStore = Callable[..., Store]


def test_two_stores_become_one(make_store: MakeStore, tmp_path: Path) -> None:
    structures = some_structures(30)
    first = make_store(structures[:20], "first").path
    second = make_store(structures[20:], "second").path
    card = ingest("store", [first, second], tmp_path / "both", CardHeader(name="both"))
    both = Store.open(tmp_path / "both")
    assert len(both) == 30
    for one, expected in zip(both, structures, strict=True):
        assert_same(one, expected)
    assert set(card.source_sha256) == {"first", "second"}


def test_labels_may_be_left_behind(make_store: MakeStore, tmp_path: Path) -> None:
    structures = [one for one in some_structures(30) if one.energy is not None]
    path = make_store(structures, "all").path
    card = ingest("store", [path], tmp_path / "s", CardHeader(labels=("energy",)))
    assert card.label_counts == {"energy": len(structures), "forces": 0, "stress": 0}
    assert [one.energy for one in Store.open(tmp_path / "s")] == [one.energy for one in structures]


def test_a_promised_label_has_to_be_there(make_store: MakeStore, tmp_path: Path) -> None:
    path = make_store(some_structures(30), "all").path
    with pytest.raises(DataError, match=r"structure 0: no 'energy', which the card promises"):
        ingest("store", [path], tmp_path / "s", CardHeader(labels=("energy",)))
    header = CardHeader(labels=("energy",))
    card = ingest("store", [path], tmp_path / "s", header, on_error="skip")
    assert (card.num_structures, card.num_skipped) == (22, 8)


def test_ids_that_two_stores_share_can_be_numbered(make_store: MakeStore, tmp_path: Path) -> None:
    paths = [make_store(some_structures(3), name).path for name in ("a", "b")]
    with pytest.raises(DataError, match="id 'structure 0' is given twice"):
        ingest("store", paths, tmp_path / "s", CardHeader())
    header = CardHeader.model_validate({"keys": {"id": "none", "split": "none"}})
    ingest("store", paths, tmp_path / "s", header)
    assert [one.id for one in Store.open(tmp_path / "s")] == [
        *(f"a:{row}" for row in range(3)),
        *(f"b:{row}" for row in range(3)),
    ]
    assert not Store.open(tmp_path / "s").index.split.any()


def test_a_store_has_no_other_units(make_store: MakeStore, tmp_path: Path) -> None:
    path = make_store(some_structures(3), "a").path
    header = CardHeader.model_validate({"units": {"energy": "Hartree"}})
    with pytest.raises(ConfigError, match="a store is in eV and Å"):
        ingest("store", [path], tmp_path / "s", header)
