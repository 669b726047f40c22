"""FAIR-Chem's EquiformerV2, with the norms and activations of its published configurations."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import ValidationError
from torch import Tensor

from lamm.errors import ConfigError
from lamm.models.equiformer_config import EquiformerV2Config
from lamm.models.fairchem.names import Renames, Translation
from lamm.models.potential import ModelConfig
from lamm.typing import JSONDict

_LABEL = "EquiformerV2"

_KEYS = {
    "sphere_channels": "channels",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "attn_hidden_channels": "attention_hidden",
    "attn_alpha_channels": "alpha_channels",
    "attn_value_channels": "value_channels",
    "ffn_hidden_channels": "feed_forward_hidden",
    "edge_channels": "edge_channels",
    "max_radius": "cutoff",
    "max_neighbors": "max_neighbors",
    "max_num_elements": "num_elements",
    "grid_resolution": "grid_resolution",
    "norm_type": "norm",
    "use_grid_mlp": "grid_mlp",
    "use_attn_renorm": "alpha_norm",
    "use_atom_edge_embedding": "atom_edge_embedding",
    "use_m_share_rad": "shared_radial",
    "alpha_drop": "alpha_dropout",
    "drop_path_rate": "drop_path",
    "proj_drop": "projection_dropout",
    "weight_init": "weight_init",
}
"""FAIR-Chem's keys that say in other words what ours do."""

_REFUSED = {
    "share_atom_edge_embedding": False,
    "use_s2_act_attn": False,
    "distance_function": "gaussian",
}
"""Keys of which only one value is known here; no published model has another."""


def _configure(config: JSONDict, beside: Mapping[str, Tensor]) -> ModelConfig:
    for key, known in _REFUSED.items():
        if config[key] != known:
            raise ConfigError(
                f"FAIR-Chem configuration of {_LABEL}: {key} is {config[key]}; "
                f"only {known} is known here."
            )
    degrees = {}
    for key, ours in (("lmax_list", "l_max"), ("mmax_list", "m_max")):
        if not isinstance(config[key], list | tuple) or len(config[key]) != 1:
            raise ConfigError(
                f"FAIR-Chem configuration of {_LABEL}: {key} is {config[key]}; "
                "only one resolution, in a list, is known here."
            )
        degrees[ours] = config[key][0]
    on_sphere = "separable_s2" if config["use_sep_s2_act"] else "s2"
    activation = "gate" if config["use_gate_act"] else on_sphere
    encoder = {ours: config[key] for key, ours in _KEYS.items()} | degrees
    encoder |= {
        "name": "equiformer_v2",
        "num_radial": 600,  # whatever num_distance_basis says
        "ties": "strict" if config["enforce_max_neighbors_strictly"] else "shell",
        "attention_activation": activation,
        "feed_forward_activation": on_sphere if config["use_grid_mlp"] else activation,
    }
    fields = EquiformerV2Config.model_fields
    for key, ours in (("avg_num_nodes", "average_atoms"), ("avg_degree", "average_degree")):
        encoder[ours] = config[key] or fields[ours].default
    try:
        return ModelConfig.model_validate(
            {"encoder": encoder, "forces": "direct" if config["regress_forces"] else "gradient"}
        )
    except ValidationError as error:
        raise ConfigError(f"FAIR-Chem configuration of {_LABEL}:\n{error}") from error


def _radial(theirs: str, ours: str) -> Renames:
    return (
        (theirs + r"(source|target)_embedding\.", ours + r"radial.{}."),
        (theirs + r"rad_func\.net\.", ours + "radial.net."),
    )


def _attention(theirs: str, ours: str) -> Renames:
    return (
        (theirs + r"so2_conv_1\.rad_func\.net\.", ours + "radial.net."),
        *_radial(theirs, ours),
        (theirs + r"so2_conv_(\d)\.fc_m0\.", ours + r"convolution_{}.zero."),
        (theirs + r"so2_conv_(\d)\.so2_m_conv\.(\d+)\.fc\.", ours + r"convolution_{}.nonzero.{}."),
        (theirs + r"alpha_norm\.", ours + "score_norm."),
        (theirs + r"alpha_dot", ours + "score"),
        (theirs + r"proj\.", ours + "project."),
    )


def _feed_forward(theirs: str, ours: str) -> Renames:
    return (
        (theirs + r"so3_linear_(\d)\.", ours + "linear_{}."),
        (theirs + r"scalar_mlp\.0\.", ours + "scalar."),
        (theirs + r"grid_mlp\.", ours + "grid."),
        (theirs + r"gating_linear\.", ours + "gate."),
    )


def _norm(theirs: str, ours: str) -> Renames:
    return (
        (theirs + r"affine_weight", ours + "weight"),
        (theirs + r"affine_bias", ours + "bias"),
        (theirs + r"norm_l0\.", ours + "scalar."),
    )


def _numbered(renames: Renames) -> Renames:
    """Give the groups of each pattern, ``{}``, their numbers in the order that they come in."""
    return tuple(
        (theirs, ours.format(*(rf"\{n}" for n in range(1, ours.count("{}") + 1))))
        for theirs, ours in renames
    )


EQUIFORMER_V2 = Translation(
    label=_LABEL,
    names=("equiformer_v2", "equiformer_v2_backbone"),
    defaults={
        "regress_forces": True,
        "max_neighbors": 500,
        "max_radius": 5.0,
        "max_num_elements": 90,
        "num_layers": 12,
        "sphere_channels": 128,
        "attn_hidden_channels": 128,
        "num_heads": 8,
        "attn_alpha_channels": 32,
        "attn_value_channels": 16,
        "ffn_hidden_channels": 512,
        "norm_type": "rms_norm_sh",
        "lmax_list": [6],
        "mmax_list": [2],
        "grid_resolution": None,
        "edge_channels": 128,
        "use_atom_edge_embedding": True,
        "share_atom_edge_embedding": False,
        "use_m_share_rad": False,
        "distance_function": "gaussian",
        "use_s2_act_attn": False,
        "use_attn_renorm": True,
        "use_gate_act": False,
        "use_grid_mlp": False,
        "use_sep_s2_act": True,
        "alpha_drop": 0.1,
        "drop_path_rate": 0.05,
        "proj_drop": 0.0,
        "weight_init": "normal",
        "enforce_max_neighbors_strictly": True,
        "avg_num_nodes": None,
        "avg_degree": None,
        "use_energy_lin_ref": False,
    },
    ignored=frozenset(
        {
            "activation_checkpoint",
            "attn_activation",
            "ffn_activation",
            "load_energy_lin_ref",
            "num_distance_basis",
            "num_sphere_samples",
        }
    ),
    renames=_numbered(
        (
            (r"sphere_embedding\.", "encoder.embedding."),
            *_radial(r"edge_degree_embedding\.", "encoder.degree."),
            *_attention(r"blocks\.(\d+)\.ga\.", "encoder.blocks.{}.attention."),
            *_attention(r"force_block\.", "force_head.block."),
            *_feed_forward(r"blocks\.(\d+)\.ffn\.", "encoder.blocks.{}.feed_forward."),
            *_feed_forward(r"energy_block\.", "energy_head.block."),
            *_norm(r"blocks\.(\d+)\.norm_(\d)\.", "encoder.blocks.{}.norm_{}."),
            *_norm(r"norm\.", "encoder.norm."),
        )
    ),
    constant=re.compile(
        r"(^|\.)(SO3_rotation\.\d+|SO3_grid\.\d+\.\d+|mappingReduced)\.(mapping\.)?"
        r"(l_harmonic|m_harmonic|m_complex|m_size|res_size|to_m|(to|from)_grid_mat|Jd_\d+)$"
        r"|^distance_expansion\.offset$|\.(expand_index|balance_degree_weight)$"
    ),
    beside=re.compile(r"energy_lin_ref"),
    configure=_configure,
)
