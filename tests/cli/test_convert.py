"""``lamm convert fairchem``: files as FAIR-Chem's trainer saves them, and others."""

from __future__ import annotations

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch

from lamm.models import from_fairchem
from lamm.train.checkpoint import load
from originals import EQUIFORMER, PAINN, carbon_monoxide, original, original_weights, water


def saved(path, model, weights, **others):
    """What FAIR-Chem's trainer writes."""
    content = {
        "epoch": 1.5,
        "step": 100,
        "state_dict": OrderedDict(("module." + name, one) for name, one in weights.items()),
        "normalizers": {
            "energy": {"mean": torch.tensor(-0.75), "rmsd": torch.tensor(2.5)},
            "forces": {"mean": torch.tensor(0.0), "rmsd": torch.tensor(1.25)},
        },
        "elementrefs": {"energy": {"element_references": torch.arange(119.0)}},
        "config": {"model": {"name": model[0], **model[1]}, "task": {"dataset": "lmdb"}},
        "val_metrics": {"energy_mae": {"metric": np.float64(0.3), "total": np.float32(3)}},
        "amp": None,
        "ema": None,
    }
    torch.save(content | others, path)
    return path


CASES = {
    "painn": (("painn", PAINN), original_weights, carbon_monoxide, 14.0),
    "equiformer": (("equiformer_v2", EQUIFORMER), lambda: original()[1], water, 10.0),
}


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_predicts_as_it_did(lamm, tmp_path, case):
    config, weights, batch, references = CASES[case]
    file = saved(tmp_path / "a.pt", config, weights())
    status, out, _ = lamm("convert", "fairchem", file, "--to", tmp_path / "ours", "--json")
    answer = json.loads(out)
    assert (status, answer["encoder"]) == (0, config[0])
    assert (answer["energy_shift"], answer["energy_scale"]) == (-0.75, 2.5)
    raw, converted = from_fairchem(config[1], weights())(batch()), load(tmp_path / "ours")(batch())
    expected = 2.5 * raw.energy - 0.75 + references
    torch.testing.assert_close(converted.energy, expected, rtol=1e-12, atol=1e-6)
    torch.testing.assert_close(converted.forces, 1.25 * raw.forces)


def test_averaged_weights_are_taken_unless_not_wanted(lamm, tmp_path):
    config, weights, *_ = CASES["equiformer"]
    learnt = [name for name in weights() if "expand_index" not in name]
    learnt = [name for name in learnt if "balance" not in name and "SO3" not in name]
    learnt.remove("distance_expansion.offset")
    shadow = [torch.full_like(weights()[name], 0.125) for name in learnt]
    file = saved(tmp_path / "a.pt", config, weights(), ema={"shadow_params": shadow, "decay": 0.9})
    assert lamm("convert", "fairchem", file, "--to", tmp_path / "averaged")[0] == 0
    assert lamm("convert", "fairchem", file, "--to", tmp_path / "live", "--no-ema")[0] == 0
    assert (load(tmp_path / "averaged").encoder.embedding.weight == 0.125).all()
    live = load(tmp_path / "live").encoder.embedding.weight
    assert torch.equal(live, weights()["sphere_embedding.weight"])


def test_an_older_file_has_other_names_for_the_same(lamm, tmp_path):
    file = saved(
        tmp_path / "a.pt",
        ("painn", {}),
        original_weights(),
        config={"model": "painn", "model_attributes": PAINN},
        normalizers={
            "target": {"mean": torch.tensor(1.5), "std": torch.tensor(2.0)},
            "grad_target": {"mean": 0.0, "std": torch.tensor(3.0)},
        },
        elementrefs={},
    )
    _, out, _ = lamm("convert", "fairchem", file, "--to", tmp_path / "ours", "--json")
    answer = json.loads(out)
    assert (answer["energy_shift"], answer["energy_scale"], answer["force_scale"]) == (1.5, 2, 3)
    assert not answer["reference_energies"]


class Harmful:
    """What a file that runs code when it is loaded would hold."""

    def __reduce__(self):
        return (open, ("harmed", "w"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}, "config": {"model": {"name": "painn"}}}, "holds no weights"),
        ({"weights": {}}, "no 'state_dict'; found weights"),
        ({"state_dict": {}, "config": {}}, "its configuration has no 'model'"),
        ([1, 2], "found a list, expected a dictionary"),
        ({"state_dict": {}, "extra": Harmful()}, "would run code"),
    ],
)
def test_what_isnt_a_checkpoint_is_refused_and_nothing_written(
    lamm, tmp_path, monkeypatch, content, message
):
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "a.pt")
    status, _, err = lamm("convert", "fairchem", "a.pt", "--to", tmp_path / "ours")
    assert status == 2
    assert message in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt"]


def test_files_that_arent_there_or_are_in_the_way(lamm, tmp_path):
    status, _, err = lamm("convert", "fairchem", tmp_path / "none.pt", "--to", tmp_path / "ours")
    assert (status, "no such file" in err) == (2, True)
    (tmp_path / "text.pt").write_text("not a checkpoint")
    status, _, err = lamm("convert", "fairchem", tmp_path / "text.pt", "--to", tmp_path / "ours")
    assert (status, "text.pt" in err) == (2, True)
    file = saved(tmp_path / "a.pt", ("painn", PAINN), original_weights())
    (tmp_path / "ours").mkdir()
    status, _, err = lamm("convert", "fairchem", file, "--to", tmp_path / "ours")
    assert (status, "Add --force" in err) == (2, True)
    assert lamm("convert", "fairchem", file, "--to", tmp_path / "ours", "--force")[0] == 0


def test_averages_of_another_model_are_refused(lamm, tmp_path):
    ema = {"shadow_params": [torch.zeros(2)]}
    file = saved(tmp_path / "a.pt", ("painn", PAINN), original_weights(), ema=ema)
    status, _, err = lamm("convert", "fairchem", file, "--to", tmp_path / "ours")
    assert (status, "--no-ema" in err) == (2, True)


def hydra_file(path, heads, **others):
    """An EquiformerV2 of the newer layout."""
    names = {"energy_block": "output_heads.energy.", "force_block": "output_heads.forces."}
    weights = {
        names.get(name.partition(".")[0], "backbone.") + name: one
        for name, one in original()[1].items()
    }
    backbone = {"model": "equiformer_v2_backbone", **EQUIFORMER}
    model = {"name": "hydra", "backbone": backbone, "heads": heads}
    return saved(path, ("hydra", model), weights, **others)


HEADS = {
    "energy": {"module": "equiformerV2_scalar_head"},
    "forces": {"module": "equiformerV2_vector_head"},
}


def test_a_second_head_of_energies_is_not_taken_for_the_first(lamm, tmp_path):
    heads = HEADS | {"gap": {"module": "equiformerV2_scalar_head"}}
    status, _, err = lamm("convert", "fairchem", hydra_file(tmp_path / "a.pt", heads), "--to", "b")
    assert (status, "2 of its heads make energy" in err) == (2, True)
    heads["gap"]["output_name"] = "gap"
    file = hydra_file(tmp_path / "a.pt", heads)
    assert lamm("convert", "fairchem", file, "--to", tmp_path / "ours")[0] == 0


def test_normalisers_by_the_name_of_an_output_are_found_or_asked_for(lamm, tmp_path):
    energy = {"mean": torch.tensor(0.5), "rmsd": torch.tensor(4.0)}
    others = {"normalizers": {"omat_energy": energy}}
    file = hydra_file(tmp_path / "a.pt", HEADS, **others)
    status, _, err = lamm("convert", "fairchem", file, "--to", tmp_path / "ours")
    assert (status, "which of them is of energy?" in err) == (2, True)
    content = torch.load(file, weights_only=False)
    content["config"]["outputs"] = {"omat_energy": {"property": "energy"}}
    torch.save(content, file)
    _, out, _ = lamm("convert", "fairchem", file, "--to", tmp_path / "ours", "--json")
    assert (json.loads(out)["energy_shift"], json.loads(out)["energy_scale"]) == (0.5, 4.0)


def test_scales_beside_the_weights_of_older_files_are_used(lamm, tmp_path):
    scales = {"upd_out_scalar_scale_0": 1.5, "upd_out_scalar_scale_1": 0.5}
    file = saved(tmp_path / "a.pt", ("painn", PAINN), original_weights(), scale_dict=scales)
    assert lamm("convert", "fairchem", file, "--to", tmp_path / "ours")[0] == 0
    assert load(tmp_path / "ours").config.encoder.layer_scales == (1.5, 0.5)


@pytest.mark.parametrize(
    "part",
    [
        {"normalizers": [1]},
        {"elementrefs": {"energy": {}, "more": 1}, "normalizers": {"energy": {"mean": np.nan}}},
        {"ema": [1]},
        {"state_dict": {"norm.affine_weight": "text"}},
    ],
)
def test_a_part_that_is_something_else_is_one_message(lamm, tmp_path, part):
    file = hydra_file(tmp_path / "a.pt", HEADS, **part)
    status, _, err = lamm("convert", "fairchem", file, "--to", tmp_path / "ours")
    assert (status, err.count("Error: "), "Traceback" in err) == (2, 1, False)
    assert not (tmp_path / "ours").exists()
