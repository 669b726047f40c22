"""How many numbers FAIR-Chem's state dict of a model holds, constants included.

The paper counts LaMM-L's parameters that way: 33.8M, of which 31.1M are learnt. FAIR-Chem keeps its
mapping, rotation and grid constants as buffers, and again under every module that refers to them.
"""

from __future__ import annotations

from typing import Any

from lamm.models.equiformer_config import EquiformerV2Config
from lamm.models.potential import count_parameters
from lamm.models.presets import resolve_model
from lamm.models.so3 import Layout, num_coefficients


def parameter_counts(model: Any, num_subsets: int) -> dict[str, int]:
    """Learnable parameters, and for EquiformerV2 FAIR-Chem's constants too, as in the paper.

    Args:
        model: a preset's name or a configuration.
        num_subsets: D, outputs of each head.
    """
    counts = {"parameters": count_parameters(model, num_subsets)}
    config = resolve_model(model)
    if isinstance(config.encoder, EquiformerV2Config):
        constants = fairchem_constants(config.encoder, direct_forces=config.forces == "direct")
        counts["parameters_with_constants"] = counts["parameters"] + constants
    return counts


def fairchem_constants(config: EquiformerV2Config, *, direct_forces: bool = True) -> int:
    """Numbers in the buffers of FAIR-Chem's EquiformerV2 of this configuration.

    Args:
        config: sizes of the encoder.
        direct_forces: whether there is a force head.
    """
    size = num_coefficients(config.l_max)
    rotation = _mapping(size, config.l_max)
    reduced = _mapping(config.edge_layout.size, config.m_max)
    grids = sum(
        _grid(config, degree, order)
        for degree in range(config.l_max + 1)
        for order in range(config.l_max + 1)
    )
    attention = rotation + 3 * reduced + grids + size  # the last: which degree a row has
    if config.attention_activation == "gate":
        attention += config.edge_layout.size - 1
    if config.shared_radial:
        attention += size
    feed_forward = grids + 2 * size
    if config.feed_forward_activation == "gate" and not config.grid_mlp:
        feed_forward += size - 1
    norm = {"layer_norm_sh": size - 1, "rms_norm_sh": 2 * size, "layer_norm": 0}[config.norm]
    encoder = config.num_radial + 2 * (rotation + reduced) + grids + norm
    layers = config.num_layers * (attention + feed_forward + 2 * norm)
    return encoder + layers + feed_forward + (attention if direct_forces else 0)


def _mapping(size: int, orders: int) -> int:
    """Degrees and orders of so many coefficients (three lists), their permutation, and counts."""
    return 3 * size + 1 + size * size + orders + 1


def _grid(config: EquiformerV2Config, degree: int, order: int) -> int:
    """Both matrices of the grid of a degree and an order, and their mapping."""
    beta = config.grid_resolution or 2 * (degree + 1)
    alpha = config.grid_resolution or (2 * order + (3 if degree == order else 1))
    columns = Layout(degree, min(order, degree)).size
    return 2 * beta * alpha * columns + _mapping(num_coefficients(degree), degree)
