"""FAIR-Chem's checkpoint files: heads beside energy and forces, averages, and how outputs scale."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
import torch

from lamm.errors import CheckpointError, ConfigError
from lamm.models import from_fairchem
from lamm.models.fairchem.checkpoint import potential_of, read_checkpoint
from originals import EQUIFORMER, PAINN, original, original_weights, water

FLAT = {"name": "equiformer_v2", **EQUIFORMER}
ENERGY = {"module": "equiformerV2_scalar_head"}
FORCES = {"module": "equiformerV2_vector_head"}


def hydra_config(heads=None, **backbone):
    return {
        "name": "hydra",
        "backbone": {"model": "equiformer_v2_backbone", **EQUIFORMER, **backbone},
        "heads": {"energy": ENERGY, "forces": FORCES} | (heads or {}),
    }


def hydra_weights():
    heads = {"energy_block": "output_heads.energy.", "force_block": "output_heads.forces."}
    weights = original()[1]
    return {
        heads.get(name.partition(".")[0], "backbone.") + name: weights[name] for name in weights
    }


@pytest.fixture
def read(tmp_path):
    def save_and_read(model, weights, **others):
        torch.save({"config": {"model": model}, "state_dict": weights} | others, tmp_path / "a.pt")
        return read_checkpoint(tmp_path / "a.pt")

    return save_and_read


def is_learnt(name):
    constants = ("expand_index", "balance_degree", "SO3_grid", "distance_expansion")
    return not any(one in name for one in constants)


def test_the_models_own_references_are_scaled_with_its_output(read):
    own = torch.zeros(20)
    own[1], own[8] = 1.0, 3.0
    config = FLAT | {"use_energy_lin_ref": True, "load_energy_lin_ref": True}
    weights = original()[1] | {"energy_lin_ref": own}
    normalisers = {"energy": {"mean": torch.tensor(0.5), "rmsd": torch.tensor(10.0)}}
    model = potential_of(read(config, weights, normalizers=normalisers), "x")
    output = original()[0](water()).energy.item()
    assert model(water()).energy.item() == pytest.approx(10 * (output + 5) + 0.5, rel=1e-6)


def test_output_heads_dont_add_the_backbones_references():
    config = hydra_config(use_energy_lin_ref=True, load_energy_lin_ref=True)
    weights = hydra_weights() | {"backbone.energy_lin_ref": torch.ones(20)}
    assert not from_fairchem(config, weights).reference_energies.any()


def test_averages_are_found_where_there_are_other_heads_too(read):
    stress = {"output_heads.stress.block.0.weight": torch.ones(3, 3)}
    weights = hydra_weights() | stress
    shadow = [torch.full_like(one, 0.125) for name, one in weights.items() if is_learnt(name)]
    config = hydra_config({"stress": {"module": "rank2_symmetric_head"}})
    found = read(config, weights, ema={"shadow_params": shadow})
    model = potential_of(found, "x")
    assert found.averaged
    assert all((one == 0.125).all() for one in model.parameters())


def test_a_frozen_backbone_has_no_averages(read):
    weights = hydra_weights()
    heads = [name for name in weights if name.startswith("output_heads") and is_learnt(name)]
    shadow = [torch.full_like(weights[name], 0.125) for name in heads]
    config = hydra_config() | {"freeze_backbone": True}
    model = potential_of(read(config, weights, ema={"shadow_params": shadow}), "x")
    assert (model.energy_head.block.linear_1.weight == 0.125).all()
    assert torch.equal(model.encoder.embedding.weight, weights["backbone.sphere_embedding.weight"])


def test_of_two_scalar_heads_the_one_of_the_energy_is_taken():
    gap = {
        name.replace("heads.energy", "heads.gap"): torch.full_like(one, 9.0)
        for name, one in hydra_weights().items()
        if name.startswith("output_heads.energy")
    }
    config = hydra_config({"gap": ENERGY | {"output_name": "band_gap"}})
    model = from_fairchem(config, hydra_weights() | gap)
    assert torch.equal(model(water()).energy, original()[0](water()).energy)
    with pytest.raises(ConfigError, match="2 of its heads make energy"):
        from_fairchem(hydra_config({"gap": ENERGY}), hydra_weights() | gap)


def test_the_heads_decide_whether_forces_are_direct():
    model = from_fairchem(hydra_config(regress_forces=False), hydra_weights())
    assert model.config.forces == "direct"
    heads = {"energy": {"module": "painn_energy_head"}}
    config = {"backbone": {"model": "painn_backbone", **PAINN}, "heads": heads}
    weights = original_weights(hydra=True)
    leftover = {name.replace("output_heads.forces", "backbone"): weights[name] for name in weights}
    assert from_fairchem(config, leftover).config.forces == "gradient"


def test_scales_beside_the_weights_of_older_files_are_used(read):
    scales = {"upd_out_scalar_scale_0": 2.0, "upd_out_scalar_scale_1": torch.tensor(3.0)}
    weights = original_weights(prefix="module.")
    for given in (weights, {name: weights[name] for name in weights if "scale" not in name}):
        found = read({"name": "painn", **PAINN}, given, scale_dict=scales)
        assert potential_of(found, "x").config.encoder.layer_scales == (2.0, 3.0)


def test_a_target_may_have_the_name_of_an_output(read):
    normalisers = {"omat_energy": {"mean": torch.tensor(-3.0), "rmsd": torch.tensor(7.0)}}
    with pytest.raises(CheckpointError, match="normalizers are of omat_energy; which of them"):
        read(FLAT, original()[1], normalizers=normalisers)
    config = {"model": FLAT, "outputs": {"omat_energy": {"property": "energy"}}}
    found = read(FLAT, original()[1], normalizers=normalisers, config=config)
    assert (found.energy_mean, found.energy_scale) == (-3.0, 7.0)


def test_numbers_of_either_numpy_are_read(read, tmp_path):
    metrics = {"mae": np.float64(0.3), "numel": np.int32(3), "best": np.bool_(True)}
    read(FLAT, original()[1], val_metrics=metrics)
    older = tmp_path / "older.pt"
    with zipfile.ZipFile(tmp_path / "a.pt") as new, zipfile.ZipFile(older, "w") as old:
        for entry in new.infolist():
            content = new.read(entry)
            old.writestr(entry, content.replace(b"numpy._core.multi", b"numpy.core.multi"))
    assert read_checkpoint(older).weights.keys() == original()[1].keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ema": [1]}, "ema is a list"),
        ({"ema": {"shadow_params": [1.0]}}, "1 averaged weights don't belong"),
        ({"normalizers": {"energy": {"mean": float("nan")}}}, "isn't finite"),
        ({"normalizers": {"energy": 3}}, "energy is a int, expected a dictionary"),
        ({"elementrefs": {"energy": {"other": 1}}}, "no finite tensor 'element_references'"),
        ({"state_dict": [1]}, "state_dict is a list"),
    ],
)
def test_parts_of_another_kind_are_named(read, change, message):
    with pytest.raises(CheckpointError, match=message):
        read(FLAT, original()[1], **change)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FLAT | {"lmax_list": 4}, "lmax_list is 4; only one resolution, in a list"),
        (hydra_config() | {"heads": ["energy"]}, "heads is .* expected keys and values"),
        (hydra_config({"energy": None}), "heads: energy is None"),
        ({"name": "hydra", "backbone": "painn"}, "backbone is 'painn'"),
    ],
)
def test_a_configuration_of_another_shape_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        from_fairchem(config, hydra_weights())


@pytest.mark.parametrize("name", ["distance_expansion.weight", "blocks.0.ga.SO3_grid.0.extra"])
def test_only_known_constants_are_passed_over(name):
    with pytest.raises(CheckpointError, match="unknown weight"):
        from_fairchem(FLAT, original()[1] | {name: torch.ones(1)})
