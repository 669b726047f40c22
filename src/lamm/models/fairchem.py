"""FAIR-Chem's models as ours: its configuration and its weights, checked name by name.

The networks are those of FAIR-Chem at commit 9a1f866 (fairchem-core 1.10 has the same): with the
same weights and edges the numbers are the same. Periodicity comes from each structure here, so the
keys ``use_pbc`` and ``otf_graph`` say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from lamm.errors import CheckpointError, ConfigError, nearest_names
from lamm.models.potential import ModelConfig, Potential
from lamm.typing import JSONDict

_PAINN_NAMES = ("painn", "painn_backbone")
_PAINN_DEFAULTS: JSONDict = {
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
}
_SAYS_NOTHING = {
    "name",
    "model",
    "use_pbc",
    "use_pbc_single",
    "otf_graph",
    "scale_file",
    "enforce_max_neighbors_strictly",
    "pass_through_head_outputs",
}
"""Keys that don't change the network: where edges come from, and a file of scales, here weights."""

_SCALE = re.compile(r"upd_out_scalar_scale_(\d+)\.scale_factor")
_CONSTANT = re.compile(r"radial_basis\.")
"""Buffers that follow from the configuration."""
_RENAMED = (
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
)
"""FAIR-Chem's PaiNN to ours."""
_PREFIX = re.compile(r"^(?:module\.)*(?:backbone\.|output_heads\.\w+\.)?(?:module\.)*")


def from_fairchem(
    config: Mapping[str, Any], state_dict: Mapping[str, Tensor], *, subset: str = "fairchem"
) -> Potential:
    """A potential with the architecture and the weights of a FAIR-Chem model.

    Args:
        config: its ``model`` section: flat, or ``backbone`` and ``heads``. Keys that are left out
            have FAIR-Chem's defaults.
        state_dict: its weights, with or without the prefixes of distributed training.
        subset: name of the one output.

    Returns:
        The potential in evaluation mode, in the precision of the weights, without reference
        energies and with scales of 1. Without a force head of its own (``regress_forces`` or
        ``direct_forces`` false) its forces are the energy's gradient.

    Raises:
        ConfigError: an unknown model, key or value.
        CheckpointError: a weight is missing, unknown or of another shape; the message names it.
    """
    weights, scales = _renamed(state_dict)
    model = Potential(_painn_config(_flat(config), scales), [subset])
    own = {name: one for name, one in model.named_parameters() if one.requires_grad}
    _check(weights, own)
    dtype = weights["encoder.embedding.weight"].dtype
    factors = torch.tensor(model.config.encoder.layer_scales or (1.0,), dtype=dtype)
    num_layers = model.config.encoder.num_layers
    model.to(dtype)
    model.load_state_dict(weights | {"encoder.scales": factors.expand(num_layers)}, strict=False)
    model.known_elements[:, 1 : model.config.encoder.num_elements + 1] = True
    return model.eval()


def _flat(config: Mapping[str, Any]) -> JSONDict:
    """The encoder's keys of either layout, defaults filled in."""
    given = dict(config)
    heads = given.pop("heads", None)
    given |= given.pop("backbone", {})
    unknown = given.keys() - _PAINN_DEFAULTS.keys() - _SAYS_NOTHING
    name = str(given.get("name") or given.get("model") or "painn")
    if name not in _PAINN_NAMES and name != "hydra":
        raise ConfigError(f"FAIR-Chem model '{name}' is not known. Known: {_PAINN_NAMES[0]}.")
    if unknown:
        key = min(unknown)
        raise ConfigError(
            f"FAIR-Chem configuration of PaiNN: unknown key '{key}'. "
            f"{nearest_names(key, _PAINN_DEFAULTS)}"
        )
    flat = _PAINN_DEFAULTS | {key: value for key, value in given.items() if value is not None}
    if heads is not None:
        flat["direct_forces"] = flat["direct_forces"] and "forces" in heads
    return flat


def _painn_config(config: JSONDict, scales: dict[int, float]) -> ModelConfig:
    for key, known in (("rbf", "gaussian"), ("envelope", "polynomial")):
        if config[key].get("name") != known:
            raise ConfigError(
                f"FAIR-Chem configuration of PaiNN: {key} is {config[key]}; "
                f"only the name '{known}' is known here."
            )
    num_layers = config["num_layers"]
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


def _renamed(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[int, float]]:
    """Weights under our names, and the scale of each layer that has one."""
    weights: dict[str, Tensor] = {}
    scales: dict[int, float] = {}
    for name, value in state_dict.items():
        short = _PREFIX.sub("", name)
        if _CONSTANT.match(short):
            continue
        if found := _SCALE.fullmatch(short):
            # FAIR-Chem marks a scale that was never fitted, and isn't used, by zero.
            scales[int(found[1])] = float(value) or 1.0
            continue
        for pattern, ours in _RENAMED:
            new, count = re.subn("^" + pattern, ours, short)
            if count:
                weights[new] = torch.as_tensor(value)
                break
        else:
            raise CheckpointError(
                f"unknown weight '{name}': not a part of FAIR-Chem's PaiNN. "
                "Give the state dict of the model alone."
            )
    if not weights:
        raise CheckpointError("the state dict holds no weights.")
    return weights, scales


def _check(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Name the first weight that is missing, left over or of another shape."""
    faults = [f"missing weight '{_original(name)}'" for name in sorted(own.keys() - weights.keys())]
    faults += [
        f"unknown weight '{_original(name)}'" for name in sorted(weights.keys() - own.keys())
    ]
    faults += [
        f"'{_original(name)}' has shape {tuple(weights[name].shape)}, expected "
        f"{tuple(own[name].shape)}"
        for name in sorted(own.keys() & weights.keys())
        if weights[name].shape != own[name].shape
    ]
    if faults:
        more = f" (and {len(faults) - 5} more)" if len(faults) > 5 else ""
        raise CheckpointError(
            f"weights and configuration don't fit: {'; '.join(faults[:5])}{more}.\n"
            "  Give the configuration that the weights were trained with."
        )


def _original(name: str) -> str:
    """FAIR-Chem's name of one of our weights, for messages."""
    for pattern, ours in _RENAMED:
        prefix = re.escape(ours).replace(r"\\1", r"(\d+)")
        if found := re.match(prefix, name):
            theirs = pattern.replace(r"\.", ".")
            if found.groups():
                theirs = theirs.replace(r"(\d+)", found[1])
            return theirs + name[found.end() :]
    return name
