"""``lamm bench store``: every format gives back the same, and the result says how fast."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lamm.bench.peers import PEERS, Peer, open_store
from lamm.bench.store import bench_store, catalyst_structures, check_content, choose_peers
from lamm.bench.timing import alternate, spread
from lamm.cli.main import run
from lamm.data.cards import CardHeader
from lamm.data.store import StoreWriter
from lamm.errors import ConfigError, DataError

SMALL = ("--structures", "20", "--reads", "100", "--rounds", "2")


def lamm(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["lamm", "bench", "store", *arguments])
    with pytest.raises(SystemExit) as ended:
        run()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_the_result_has_costs_ratios_and_where_they_come_from(monkeypatch, capsys, tmp_path):
    target = tmp_path / "store.json"
    arguments = (*SMALL, "--peers", "pickle-lmdb", "--to", str(target), "--json")
    status, out, _ = lamm(monkeypatch, capsys, *arguments)
    assert status == 0
    result = json.loads(out)
    assert json.loads(target.read_text()) == result
    assert set(result["single_reads"]) == {"lamm", "pickle-lmdb"}
    for one in result["single_reads"].values():
        cost = one["microseconds"]
        assert 0 < cost["min"] <= cost["median"] <= cost["p95"] <= cost["max"]
        assert one["per_second"] == pytest.approx(1e6 / cost["median"])
        assert one["bytes_per_atom"] > 25
    assert result["single_reads"]["lamm"]["lamm_is_faster_by"]["median"] == 1
    environment = result["environment"]
    assert {"git_commit", "date", "processor", "python", "seed", "packages"} <= set(environment)
    assert "lmdb" in environment["packages"]
    assert result["settings"]["atoms"]["min"] >= 30


def test_a_person_gets_a_table(monkeypatch, capsys):
    status, out, _ = lamm(monkeypatch, capsys, *SMALL, "--peers", "pickle-lmdb")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[2:4]] == ["lamm", "pickle-lmdb"]
    assert "page cache" in out


def test_an_unknown_peer_ends_the_command(monkeypatch, capsys):
    status, _, message = lamm(monkeypatch, capsys, "--peers", "pickle-lmbd")
    assert status == 2
    assert "no peer 'pickle-lmbd'. Did you mean 'pickle-lmdb'" in message


def test_a_peer_that_is_not_installed_says_how_to_get_it(monkeypatch):
    absent = Peer("", ("absent-db",), ("no_such_module",), "x", lambda *_: None, open_store)
    monkeypatch.setitem(PEERS, "absent", absent)
    with pytest.raises(ConfigError, match="'absent' is not installed: pip install absent-db"):
        choose_peers(["absent"])
    chosen, missing = choose_peers(None)
    assert "absent" not in chosen
    assert missing["absent"] == "not installed: pip install absent-db"


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_gives_back_what_was_written(name: str, tmp_path: Path):
    peer = PEERS[name]
    for module in peer.modules:
        pytest.importorskip(module)
    structures = catalyst_structures(5, seed=1)
    peer.write(structures, tmp_path / peer.file)
    check_content(name, peer.open(tmp_path / peer.file).read, structures)


def test_formats_that_hold_something_else_are_not_compared():
    structures = catalyst_structures(2, seed=1)

    def read(number: int):
        one = structures[number]
        forces = one.forces.astype(np.float16)
        return one.atomic_numbers, one.positions, one.cell, one.pbc, one.energy, forces

    with pytest.raises(DataError, match="'forces' of structure 0 isn't what was written"):
        check_content("half", read, structures)


def test_structures_of_a_store_are_taken_where_they_have_labels(tmp_path: Path):
    with StoreWriter(tmp_path / "mine", CardHeader(edge_cutoff=1.0)) as writer:
        for one in catalyst_structures(6, seed=2):
            writer.add(one)
    result = bench_store(structures=4, reads=50, rounds=1, peers=[], source=tmp_path / "mine")
    assert result["settings"]["structures"] == 4
    assert result["settings"]["source"] == "mine"
    with pytest.raises(ConfigError, match="expected numbers of at least 1"):
        bench_store(reads=0)


def test_everybody_has_a_turn_in_each_round():
    turns: list[str] = []
    costs = alternate({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, rounds=2)
    assert turns == ["b", "a", "a", "b", "b", "a"]  # the first round warms up
    assert {name: len(of) for name, of in costs.items()} == {"a": 2, "b": 2}


def test_a_spread_is_median_percentile_and_extremes():
    found = spread(list(range(101)))
    assert found == {"median": 50.0, "p95": 95.0, "min": 0.0, "max": 100.0}
