"""FAIR-Chem's models as ours: its configuration and its weights, checked name by name.

The networks are those of FAIR-Chem at commit 9a1f866 (fairchem-core 1.10 has the same): with the
same weights and edges the numbers are the same. Periodicity comes from each structure here, so the
keys ``use_pbc`` and ``otf_graph`` say nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lamm.errors import ConfigError, nearest_names
from lamm.models.fairchem.equiformer_v2 import EQUIFORMER_V2
from lamm.models.fairchem.names import Translation
from lamm.models.fairchem.painn import PAINN
from lamm.models.potential import Potential
from lamm.typing import JSONDict

__all__ = ["TRANSLATIONS", "from_fairchem", "translation_of"]

logger = logging.getLogger(__name__)

TRANSLATIONS: tuple[Translation, ...] = (PAINN, EQUIFORMER_V2)
"""The architectures that can be taken over."""

_SAYS_NOTHING = {
    "name",
    "model",
    "use_pbc",
    "use_pbc_single",
    "otf_graph",
    "scale_file",
    "enforce_max_neighbors_strictly",
    "pass_through_head_outputs",
    "freeze_backbone",
    "finetune_config",
    "starting_checkpoint",
}
"""Keys that don't change the network: where edges and first weights come from."""


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
        ``direct_forces`` false) its forces are the energy's gradient. Heads for other quantities
        are left out, with a warning.

    Raises:
        ConfigError: an unknown model, key or value.
        CheckpointError: a weight is missing, unknown or of another shape; the message names it.
    """
    translation = translation_of(config, state_dict)
    heads = _other_heads(config)
    for name, module in heads.items():
        logger.warning("output head '%s' (%s) is left out", name, module)
    weights, beside = translation.rename(state_dict, frozenset(heads))
    flat = _flat(config, translation)
    model = Potential(translation.configure(flat, beside), [subset])
    own = {name: one for name, one in model.named_parameters() if one.requires_grad}
    translation.check(weights, own)
    dtype = weights["encoder.embedding.weight"].dtype
    model.to(dtype)
    model.load_state_dict(weights, strict=False)
    model.known_elements[:, 1 : model.config.encoder.highest_element + 1] = True
    references = beside.get("energy_lin_ref")
    # Output heads of their own don't add these, whatever the backbone's configuration says.
    if references is not None and flat.get("use_energy_lin_ref") and "heads" not in config:
        model.reference_energies[0, : len(references)] = references.to(torch.float64)
    return model.eval()


def translation_of(config: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Translation:
    """The architecture that a configuration names, or else the one whose weights these are.

    Raises:
        ConfigError: it isn't one of ours.
    """
    part = _mapping("backbone", config["backbone"]) if "backbone" in config else config
    name = str(part.get("name") or part.get("model") or "")
    if not name:
        return max(TRANSLATIONS, key=lambda one: one.knows(state_dict))
    short = name.rpartition(".")[2]  # newer files give the path of a class
    for one in TRANSLATIONS:
        classes = {known.replace("_", "") for known in one.names}
        if short in one.names or short.lower() in classes:
            return one
    known = ", ".join(one.names[0] for one in TRANSLATIONS)
    raise ConfigError(f"FAIR-Chem model '{name}' is not known. Known: {known}.")


def _other_heads(config: Mapping[str, Any]) -> dict[str, str]:
    """Heads that are neither the one of energy nor the one of forces: name to what it is."""
    heads = _heads(config)
    modules = {name: str(head.get("module", name)) for name, head in heads.items()}
    kept = set()
    for quantity, words in (("energy", _ENERGY), ("forces", _FORCES)):
        found = [name for name, module in modules.items() if _makes(module, words)]
        if len(found) > 1:
            found = [name for name in found if heads[name].get("output_name", quantity) == quantity]
            if len(found) != 1:
                raise ConfigError(
                    f"FAIR-Chem configuration: {len(found)} of its heads make {quantity}, expected "
                    f"one (heads: {', '.join(modules)}). Name the others' output_name, or take "
                    "them out of the configuration."
                )
        kept.update(found)
    return {name: one for name, one in modules.items() if name not in kept}


def _heads(config: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    heads = _mapping("heads", config.get("heads") or {})
    return {str(name): _mapping(f"heads: {name}", head) for name, head in heads.items()}


def _mapping(where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"FAIR-Chem configuration: {where} is {value!r}, expected keys and values."
        )
    return value


_ENERGY, _FORCES = ("scalar", "energy"), ("vector", "force", "rank1")


def _makes(module: str, words: tuple[str, ...]) -> bool:
    return any(word in module.lower() for word in words)


def _flat(config: Mapping[str, Any], translation: Translation) -> JSONDict:
    """The encoder's keys of either layout, defaults filled in."""
    given = dict(config)
    other = _other_heads(config)
    heads = {name: head for name, head in _heads(config).items() if name not in other}
    given.pop("heads", None)
    given |= given.pop("backbone", {})
    names = {str(key) for key in given}
    unknown = names - translation.defaults.keys() - translation.ignored - _SAYS_NOTHING
    if unknown:
        key = min(unknown)
        raise ConfigError(
            f"FAIR-Chem configuration of {translation.label}: unknown key '{key}'. "
            f"{nearest_names(key, translation.defaults)}"
        )
    known = {key: value for key, value in given.items() if key in translation.defaults}
    flat = translation.defaults | {key: one for key, one in known.items() if one is not None}
    if config.get("heads") is not None:  # they alone decide, whatever `regress_forces` says
        modules = [str(head.get("module", name)) for name, head in heads.items()]
        flat["regress_forces"] = any(_makes(one, _FORCES) for one in modules)
        for name, head in heads.items():
            if head.get("reduce", "sum") != "sum":
                raise ConfigError(
                    f"FAIR-Chem configuration of {translation.label}: head '{name}' has reduce: "
                    f"{head['reduce']}; energies are sums over atoms here."
                )
    return flat
