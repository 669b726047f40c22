"""FAIR-Chem's PaiNN."""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import ValidationError
from torch import Tensor

from lamm.errors import CheckpointError, ConfigError
from lamm.models.fairchem.names import Translation
from lamm.models.potential import ModelConfig
from lamm.typing import JSONDict

_SCALE = re.compile(r"upd_out_scalar_scale_(\d+)\.scale_factor")


def _configure(config: JSONDict, beside: Mapping[str, Tensor]) -> ModelConfig:
    for key, known in (("rbf", "gaussian"), ("envelope", "polynomial")):
        if config[key].get("name") != known:
            raise ConfigError(
                f"FAIR-Chem configuration of PaiNN: {key} is {config[key]}; "
                f"only the name '{known}' is known here."
            )
    num_layers = config["num_layers"]
    scales = _scales(beside)
    beyond = [layer for layer in scales if layer >= num_layers]
    if beyond:
        raise CheckpointError(
            f"unknown weight 'upd_out_scalar_scale_{beyond[0]}.scale_factor': "
            f"the configuration has {num_layers} layers. Use the one that the weights came with."
        )
    encoder = {
        "channels": config["hidden_channels"],
        "num_layers": num_layers,
        "num_radial": config["num_rbf"],
        "cutoff": config["cutoff"],
        "max_neighbors": config["max_neighbors"],
        "ties": "strict",
        "num_elements": config["num_elements"],
        "envelope_exponent": config["envelope"].get("exponent", 5),
        "layer_scales": tuple(scales.get(i, 1.0) for i in range(num_layers)) if scales else None,
    }
    direct = config["regress_forces"] and config["direct_forces"]
    try:
        return ModelConfig.model_validate(
            {"encoder": encoder, "forces": "direct" if direct else "gradient"}
        )
    except ValidationError as error:
        raise ConfigError(f"FAIR-Chem configuration of PaiNN:\n{error}") from error


def _scales(beside: Mapping[str, Tensor]) -> dict[int, float]:
    """The scale of each layer that has one; zero marks one that was never fitted nor used."""
    found = ((_SCALE.fullmatch(name), float(value)) for name, value in beside.items())
    return {int(match[1]): value or 1.0 for match, value in found if match}


PAINN = Translation(
    label="PaiNN",
    names=("painn", "painn_backbone"),
    defaults={
        "hidden_channels": 512,
        "num_layers": 6,
        "num_rbf": 128,
        "cutoff": 12.0,
        "max_neighbors": 50,
        "rbf": {"name": "gaussian"},
        "envelope": {"name": "polynomial", "exponent": 5},
        "regress_forces": True,
        "direct_forces": True,
        "num_elements": 83,
    },
    ignored=frozenset(),
    renames=(
        (r"atom_emb\.embeddings\.", "encoder.embedding."),
        (r"message_layers\.(\d+)\.x_proj\.", r"encoder.messages.\1.net."),
        (r"message_layers\.(\d+)\.rbf_proj\.", r"encoder.messages.\1.filter."),
        (r"message_layers\.(\d+)\.x_layernorm\.", r"encoder.messages.\1.norm."),
        (r"update_layers\.(\d+)\.vec_proj\.", r"encoder.updates.\1.mix."),
        (r"update_layers\.(\d+)\.xvec_proj\.", r"encoder.updates.\1.net."),
        (r"out_energy\.", "energy_head.net."),
        (r"out_forces\.output_network\.0\.vec1_proj\.", "force_head.first.length_mix."),
        (r"out_forces\.output_network\.0\.vec2_proj\.", "force_head.first.vector_mix."),
        (r"out_forces\.output_network\.0\.update_net\.", "force_head.first.net."),
        (r"out_forces\.output_network\.1\.vec1_proj\.", "force_head.last.length_mix."),
        (r"out_forces\.output_network\.1\.vec2_proj\.", "force_head.last.vector_mix."),
        (r"out_forces\.output_network\.1\.update_net\.", "force_head.last.net."),
    ),
    constant=re.compile(r"^radial_basis\."),
    beside=_SCALE,
    configure=_configure,
)
