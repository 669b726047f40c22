"""Stores for the tests of the data modules."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lamm.data.cards import CardHeader
from lamm.data.store import Store, StoreWriter
from lamm.structure import Structure


@pytest.fixture
def make_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Store]:
    """Write structures to a store, without waiting for the disk, and open it."""
    monkeypatch.setattr("lamm.data.writer.sync", lambda path: None)

    def make(
        structures: list[Structure],
        name: str = "store",
        shard_structures: int = 100_000,
        **entries: object,
    ) -> Store:
        header = CardHeader.model_validate({"name": name, **entries})
        with StoreWriter(tmp_path / name, header, shard_structures=shard_structures) as writer:
            for structure in structures:
                writer.add(structure)
        return Store.open(tmp_path / name)

    return make
