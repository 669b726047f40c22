"""``lamm reproduce``: the experiments that train nothing, beside the paper's numbers."""

import json
import sys
from pathlib import Path

import pytest

from lamm.cli.main import run
from lamm.reproduce import experiments
from lamm.reproduce.experiments import REPRODUCTIONS, reproduce, shipped_scale
from lamm.reproduce.outcome import Table, markdown
from lamm.reproduce.settings import paper_values, read_settings
from small import small_store


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["lamm", *words])
    with pytest.raises(SystemExit) as end:
        run()
    return int(end.value.code or 0)


@pytest.mark.parametrize("name", REPRODUCTIONS)
def test_every_shipped_configuration_is_valid_and_says_how_it_differs(name: str):
    asked = read_settings(name, REPRODUCTIONS[name].kind)
    assert asked.changes == []
    assert all(len(line) > 20 for line in shipped_scale(name))
    assert paper_values(name)["where"].startswith(("Table", "Fig."))


def test_the_experiments_are_listed(monkeypatch, capsys):
    assert command(monkeypatch, "reproduce", "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert set(listed) == set(REPRODUCTIONS)


def test_table_1_counts_the_papers_models(tmp_path: Path):
    words = ["presets={lamm-s: LaMM-S, lamm-xs: null}"]
    results = reproduce("table1", tmp_path, words=words, quiet=True)
    counted = {one["preset"]: one for one in results["models"]}
    assert counted["lamm-s"]["beside_paper"] == pytest.approx(1, abs=0.003)
    assert counted["lamm-xs"]["beside_paper"] is None
    assert results["changes"] == words
    page = (tmp_path / "page.md").read_text()
    assert "| MACE-MP-0 | MACE |" in page
    assert "| lamm-s | painn |" in page


def test_table_2_stands_beside_the_papers(tmp_path: Path):
    results = reproduce("table2", tmp_path, quiet=True)
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["table2"] == json.loads(json.dumps(results["table2"]))
    assert written["paper"]["total"]["sampled"] == 432e6
    assert len(written["table2"]["subsets"]) == 9
    assert "molecules_unlabelled (for PubChem3D)" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize("name", ["fig2", "fig4"])
def test_a_figure_is_drawn_with_its_data(name: str, tmp_path: Path):
    results = reproduce(name, tmp_path, quiet=True)
    assert {path.name for path in tmp_path.iterdir()} >= {
        *(f"{name}.{suffix}" for suffix in ("png", "svg", "csv")),
        "page.html",
    }
    if name == "fig2":
        assert results["in_all_subsets"] == ["H", "C", "N", "O"]
    else:
        assert results["peaks"]["molecules_gfn2"] > results["peaks"]["oxides_chgnet"]


def test_planned_batches_are_faster_and_may_be_larger_in_the_same_memory(tmp_path: Path):
    words = ["structures=4000", "cases=[{model: S, ranks: 4, batch_size: 8}]"]
    (case,) = reproduce("fig6", tmp_path, words=words, quiet=True)["cases"]
    for gain in case["throughput_beside_random"].values():
        assert gain["same_batch"] > 1
        assert gain["equal_memory"] > gain["same_batch"]
        assert gain["batch_size_at_equal_memory"] > 8
    assert case["joint_over_oc20_step_time"] > 0


def test_a_wrong_request_says_what_to_do(tmp_path: Path, monkeypatch, capsys):
    to = ("--to", str(tmp_path / "out"))
    for words, expected in (
        (("fig22", *to), "fig2"),
        (("fig6", *to, "--shared", str(tmp_path)), "reads no data"),
        (("fig2", *to, "--shared", str(tmp_path / "none")), "shared_mini.sh"),
        (("fig2",), "--to"),
        (("fig6", *to, "structurez=3"), "structures"),
        (("fig2", *to, "stands_in_for.molecules_gfn2=QMux"), "QMux"),
    ):
        assert command(monkeypatch, "reproduce", *words) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_are_not_replaced_unless_asked(tmp_path: Path, monkeypatch, capsys):
    (tmp_path / "results.json").write_text("{}")
    assert command(monkeypatch, "reproduce", "table2", "--to", str(tmp_path)) == 2
    assert "--force" in capsys.readouterr().err
    assert command(monkeypatch, "reproduce", "table2", "--to", str(tmp_path), "--force") == 0
    assert json.loads((tmp_path / "results.json").read_text())["experiment"] == "table2"


def test_entries_of_a_file_are_put_in(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 4\nscale: [My own data and nothing else.]\n")
    asked = read_settings("fig2", REPRODUCTIONS["fig2"].kind, file=path)
    assert asked.settings.seed == 4
    assert asked.settings.scale == ["My own data and nothing else."]
    assert asked.changes == ["entries of mine.yaml"]
    words = ["data.subsets.crystals_chgnet=null"]
    asked = read_settings("fig2", REPRODUCTIONS["fig2"].kind, words=words)
    assert len(asked.settings.data.subsets) == 8


def test_genuine_samples_stand_in_place_of_the_shipped_data(tmp_path: Path):
    from lamm.reproduce.settings import shipped

    stores = tmp_path / "stores"
    for name in (*shipped("shared")["data"]["subsets"], "mad_pbesol"):
        small_store(stores / name, labels="" if name == "pubchem3d_like" else "EF")
    results = reproduce("table2", tmp_path / "to", shared=stores, quiet=True)
    assert len(results["table2"]["subsets"]) == 10
    assert "genuine samples" in results["scale"][0]
    assert results["changes"] == [f"data: genuine samples in {stores}"]
    asked = read_settings("table3", REPRODUCTIONS["table3"].kind, shared=stores)
    assert asked.settings.downstream.name == "mad_pbesol"
    assert [line for line in asked.settings.scale if "MAD" in line]
    assert not [line for line in asked.settings.scale if "the package ships" in line]
    asked = read_settings("fig7", REPRODUCTIONS["fig7"].kind, shared=stores)
    assert asked.settings.unlabelled == "pubchem3d_like"


def test_a_missing_number_is_a_dash_in_markdown():
    text = markdown(Table(("a", "b"), [("x|y", None), ("z", 2.5)], "What it is."))
    assert text.splitlines()[2] == "| x\\|y | – |"
    assert text.endswith("What it is.\n")


def test_all_of_them_run_in_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: dict[str, Path | None] = {}

    def run(name: str, to: Path, *, runs: Path | None, **_: object) -> None:
        calls[name] = runs
        to.mkdir(parents=True)
        (to / experiments.RESULTS).write_text("{}")

    monkeypatch.setattr(experiments, "reproduce", run)
    found = dict(experiments.reproduce_all(tmp_path))
    assert found.keys() == experiments.REPRODUCTIONS.keys() == calls.keys()
    assert calls["fig9"] == tmp_path / "table3" / "runs", "trained once"
    calls.clear()
    (tmp_path / "fig4" / experiments.RESULTS).unlink()
    monkeypatch.setattr(experiments, "reproduce", lambda name, to, **_: calls.__setitem__(name, to))
    dict(experiments.reproduce_all(tmp_path))
    assert list(calls) == ["fig4"], "the others are there"
