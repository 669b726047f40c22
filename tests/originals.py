"""FAIR-Chem's models, small: configurations, and weights under its names."""

from __future__ import annotations

import numpy as np
import torch

from lamm.graph import GraphBatch
from lamm.models import ModelConfig, Potential, build
from lamm.models.fairchem.equiformer_v2 import EQUIFORMER_V2

PAINN = {"hidden_channels": 8, "num_layers": 2, "num_rbf": 6, "cutoff": 4.0, "num_elements": 10}

EQUIFORMER = {
    "num_layers": 2,
    "sphere_channels": 8,
    "lmax_list": [2],
    "mmax_list": [1],
    "num_heads": 2,
    "attn_hidden_channels": 6,
    "attn_alpha_channels": 5,
    "attn_value_channels": 4,
    "ffn_hidden_channels": 7,
    "edge_channels": 9,
    "max_radius": 5.0,
    "max_neighbors": 6,
    "max_num_elements": 20,
    "norm_type": "layer_norm_sh",
    "grid_resolution": 14,
    "use_grid_mlp": True,
    "weight_init": "uniform",
}


def original_weights(config=PAINN, heads=("energy", "forces"), prefix="", hydra=False):
    """Random weights under FAIR-Chem's names, as its layers are made."""
    c, k = config["hidden_channels"], config["num_rbf"]
    shapes = {"atom_emb.embeddings.weight": (config["num_elements"], c)}

    def linear(name, inputs, outputs, bias=True):
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    for layer in range(config["num_layers"]):
        message, update = f"message_layers.{layer}", f"update_layers.{layer}"
        linear(f"{message}.x_proj.0", c, c)
        linear(f"{message}.x_proj.2", c, 3 * c)
        linear(f"{message}.rbf_proj", k, 3 * c)
        shapes[f"{message}.x_layernorm.weight"] = shapes[f"{message}.x_layernorm.bias"] = (c,)
        linear(f"{update}.vec_proj", c, 2 * c, bias=False)
        linear(f"{update}.xvec_proj.0", 2 * c, c)
        linear(f"{update}.xvec_proj.2", c, 3 * c)
        shapes[f"upd_out_scalar_scale_{layer}.scale_factor"] = ()
    if hydra:
        shapes = {f"backbone.{name}": shape for name, shape in shapes.items()}
    where = "output_heads.{}." if hydra else ""
    if "energy" in heads:
        linear(where.format("energy") + "out_energy.0", c, c // 2)
        linear(where.format("energy") + "out_energy.2", c // 2, 1)
    if "forces" in heads:
        for block, (inputs, outputs) in enumerate(((c, c // 2), (c // 2, 1))):
            name = where.format("forces") + f"out_forces.output_network.{block}"
            linear(f"{name}.vec1_proj", inputs, inputs, bias=False)
            linear(f"{name}.vec2_proj", inputs, outputs, bias=False)
            linear(f"{name}.update_net.0", 2 * inputs, inputs)
            linear(f"{name}.update_net.2", inputs, 2 * outputs)
    generator = torch.Generator().manual_seed(2)
    weights = {
        name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()
    }
    return {prefix + name: value for name, value in weights.items()}


def carbon_monoxide():
    arrays = ([6, 8], [[0.0, 0, 0], [0, 0, 1.1]], np.zeros((3, 3)), [False] * 3)
    return GraphBatch.from_arrays(*arrays, [[0, 1], [1, 0]], np.zeros((2, 3)))


def original(encoder: dict | None = None, forces: str = "direct") -> tuple[Potential, dict]:
    """A small potential, and its weights under FAIR-Chem's names with some of its constants."""
    flat = EQUIFORMER_V2.defaults | EQUIFORMER
    config = EQUIFORMER_V2.configure(flat, {}).encoder.model_copy(update=encoder or {})
    model = build(ModelConfig(encoder=config, forces=forces), ["one"], seed=3)
    weights = {EQUIFORMER_V2.original(name): one for name, one in model.named_parameters()}
    assert len(weights) == len(list(model.named_parameters()))
    weights["blocks.0.ga.proj.expand_index"] = torch.arange(9)
    weights["blocks.0.norm_1.balance_degree_weight"] = torch.zeros(8, 1)
    weights["blocks.1.ga.SO3_grid.0.0.to_grid_mat"] = torch.zeros(14, 14, 1)
    weights["distance_expansion.offset"] = torch.linspace(0, 5, 600)
    return model.eval(), weights


def water() -> GraphBatch:
    positions = [[0.0, 0.1, 0], [0.9, 0.3, 0.2], [-0.3, 0.9, 0.1]]
    edges = [[1, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2]]
    return GraphBatch.from_arrays(
        [8, 1, 1], positions, np.zeros((3, 3)), [False] * 3, edges, np.zeros((6, 3))
    )
