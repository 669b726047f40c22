"""FAIR-Chem's EquiformerV2: its layouts and its configurations."""

from __future__ import annotations

import logging

import pytest
import torch

from lamm.errors import CheckpointError, ConfigError
from lamm.models import from_fairchem
from lamm.models.fairchem.equiformer_v2 import EQUIFORMER_V2
from originals import EQUIFORMER as TINY
from originals import original, water


def hydra(weights: dict, prefix: str = "") -> dict:
    """The same weights as newer versions name them."""
    where = {"energy_block": "output_heads.e.", "force_block": "output_heads.f."}
    names = {name: where.get(name.partition(".")[0], "backbone.") + name for name in weights}
    return {prefix + names[name]: one for name, one in weights.items()}


HEADS = {
    "e": {"module": "equiformerV2_scalar_head"},
    "f": {"module": "equiformerV2_vector_head"},
}


def test_every_layout_of_the_same_weights_is_the_same_model():
    model, weights = original()
    expected = model(water())
    backbone = {"model": "equiformer_v2_backbone", **TINY}
    path = {"model": "fairchem.core.models.equiformer_v2.EquiformerV2Backbone", **TINY}
    for config, state in (
        (TINY, weights),
        ({"name": "equiformer_v2", "use_pbc": True, **TINY}, weights),
        ({"name": "hydra", "backbone": backbone, "heads": HEADS}, hydra(weights)),
        ({"backbone": path, "heads": HEADS}, hydra(weights, "module.module.")),
    ):
        result = from_fairchem(config, state)(water())
        assert torch.equal(result.energy, expected.energy)
        assert torch.equal(result.forces, expected.forces)


def test_another_head_is_left_out_and_named(caplog):
    _, weights = original()
    config = {
        "backbone": {"model": "equiformer_v2_backbone", **TINY},
        "heads": {**HEADS, "stress": {"module": "rank2_symmetric_head"}},
    }
    state = hydra(weights) | {"output_heads.stress.block.weight": torch.zeros(2)}
    with caplog.at_level(logging.WARNING):
        from_fairchem(config, state)
    assert "output head 'stress' (rank2_symmetric_head) is left out" in caplog.text


def test_without_forces_they_are_the_energys_gradient():
    model, weights = original(forces="gradient")
    taken = from_fairchem(TINY | {"regress_forces": False}, weights)
    assert taken.config.forces == "gradient"
    assert torch.equal(taken(water()).forces, model(water()).forces)


@pytest.mark.parametrize(
    ("change", "ours"),
    [
        ({"use_gate_act": True}, ("gate", "separable_s2")),
        ({"use_gate_act": True, "use_grid_mlp": False}, ("gate", "gate")),
        ({"use_sep_s2_act": False}, ("s2", "s2")),
        ({"use_grid_mlp": False}, ("separable_s2", "separable_s2")),
    ],
)
def test_activations_are_taken_over(change, ours):
    config = EQUIFORMER_V2.configure(EQUIFORMER_V2.defaults | TINY | change, {}).encoder
    assert (config.attention_activation, config.feed_forward_activation) == ours
    assert config.grid_mlp is change.get("use_grid_mlp", True)


def test_what_is_left_out_has_fairchems_defaults():
    config = EQUIFORMER_V2.configure(EQUIFORMER_V2.defaults, {}).encoder
    assert (config.num_layers, config.l_max, config.m_max, config.channels) == (12, 6, 2, 128)
    assert (config.norm, config.grid_resolution, config.grid_mlp) == ("rms_norm_sh", None, False)
    assert (config.cutoff, config.max_neighbors, config.ties) == (5.0, 500, "strict")
    assert config.average_atoms == 77.81317


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lmax_list": [4, 2]}, "only one resolution"),
        ({"share_atom_edge_embedding": True}, "only False is known"),
        ({"distance_function": "sigmoid"}, "only gaussian is known"),
        ({"num_layer": 2}, "unknown key 'num_layer'. Did you mean 'num_layers'"),
        ({"mmax_list": [3]}, "m_max is 3, expected at most l_max, 2"),
        ({"name": "escn"}, "FAIR-Chem model 'escn' is not known. Known: painn, equiformer_v2"),
    ],
)
def test_a_configuration_that_isnt_ours_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        from_fairchem(TINY | change, original()[1])


def test_a_mean_over_atoms_is_refused():
    config = {
        "backbone": {"model": "equiformer_v2_backbone", **TINY},
        "heads": {"e": {"module": "equiformerV2_scalar_head", "reduce": "mean"}},
    }
    with pytest.raises(ConfigError, match="energies are sums over atoms"):
        from_fairchem(config, hydra(original()[1]))


def test_weights_that_dont_fit_are_named_as_fairchem_does():
    _, weights = original()
    name = "blocks.1.ga.so2_conv_1.so2_m_conv.0.fc.weight"
    less = {key: one for key, one in weights.items() if key != name}
    with pytest.raises(CheckpointError, match=f"missing weight '{name}'"):
        from_fairchem(TINY, less)
    with pytest.raises(CheckpointError, match=r"unknown weight 'blocks\.0\.ga\.extra'"):
        from_fairchem(TINY, weights | {"blocks.0.ga.extra": torch.zeros(1)})
    with pytest.raises(
        CheckpointError, match=r"source_embedding\.weight' has shape \(20, 9\), expected \(30, 9\)"
    ):
        from_fairchem(TINY | {"max_num_elements": 30}, weights)


def test_names_go_there_and_back():
    model, _ = original({"attention_activation": "gate", "norm": "layer_norm"})
    for name, _ in model.named_parameters():
        assert EQUIFORMER_V2.our_name(EQUIFORMER_V2.original(name)) == name
