"""FAIR-Chem 1.x checkpoint files: read without running any code, and made into a potential.

What its trainer saves: the configuration, the weights, their running average, and how outputs are
normalised. A prediction there is

    E = rmsd * output + mean + sum over atoms of element_references[element],    F = rmsd * output
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lamm.errors import CheckpointError
from lamm.models.fairchem import from_fairchem, translation_of
from lamm.models.potential import Potential
from lamm.structure import MAX_ATOMIC_NUMBER
from lamm.typing import JSONDict

logger = logging.getLogger(__name__)

_SCALAR = np.float64(0).__reduce__()[0]

_HARMLESS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),  # what NumPy 1 calls it
    (_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")),
]
"""Beside tensors and plain values: the metrics in such files are NumPy's numbers."""

_OLD_TARGETS = {"target": "energy", "grad_target": "forces"}


@dataclass
class FairChemCheckpoint:
    """What a file holds of a model."""

    config: JSONDict
    """The ``model`` section of its configuration."""
    weights: dict[str, Tensor]
    averaged: bool
    """Whether the weights are the running average."""
    energy_mean: float
    energy_scale: float
    """eV."""
    force_scale: float
    """eV/Å."""
    reference_energies: Tensor
    """(119,) eV, float64; zeros where it has none."""


def read_checkpoint(
    path: Path, *, averaged: bool = True, config: Mapping[str, Any] | None = None
) -> FairChemCheckpoint:
    """Read a file that FAIR-Chem's trainer saved.

    Args:
        path: the ``.pt`` file.
        averaged: take the running average of the weights where there is one, as FAIR-Chem's
            trainer does in validation; its ASE calculator takes the weights as they are.
        config: the ``model`` section, for files that lack it.

    Raises:
        CheckpointError: the file can't be read safely, or a part of it is missing or unknown.
    """
    content = _load(path)
    if "state_dict" not in content:
        raise CheckpointError(
            f"{path}: no 'state_dict'; found {', '.join(sorted(map(str, content))) or 'nothing'}. "
            "Give a checkpoint of a FAIR-Chem 1.x training."
        )
    model = dict(config) if config is not None else _model_section(path, content.get("config"))
    weights = _part(path, content, "state_dict")
    weights |= _scales(weights, _part(path, content, "scale_dict"))
    shadow = _part(path, content, "ema").get("shadow_params") if averaged else None
    if shadow is not None:
        weights = _with_average(path, model, weights, shadow)
    energy_mean, energy_scale = _normaliser(path, content, "energy")
    force_mean, force_scale = _normaliser(path, content, "forces")
    if force_mean:
        raise CheckpointError(f"{path}: forces are normalised by a mean of {force_mean}, not zero.")
    return FairChemCheckpoint(
        config=model,
        weights=weights,
        averaged=shadow is not None,
        energy_mean=energy_mean,
        energy_scale=energy_scale,
        force_scale=force_scale,
        reference_energies=_references(path, content),
    )


def potential_of(checkpoint: FairChemCheckpoint, subset: str) -> Potential:
    """The potential that predicts what FAIR-Chem would, in eV and eV/Å.

    Raises:
        ConfigError: its architecture or a setting isn't known here.
        CheckpointError: weights and configuration don't fit.
    """
    model = from_fairchem(checkpoint.config, checkpoint.weights, subset=subset)
    # The model's own are added to its output, before the scale.
    own = checkpoint.energy_scale * model.reference_energies[0]
    references = checkpoint.reference_energies + own
    model.set_normalisation(
        0,
        references,
        model.known_elements[0],
        checkpoint.energy_scale,
        checkpoint.force_scale,
        energy_shift=checkpoint.energy_mean,
    )
    gradient = model.config.forces == "gradient"
    if gradient and checkpoint.force_scale != checkpoint.energy_scale:
        logger.warning(
            "forces are the energy's gradient here; FAIR-Chem scales them by %g, the energy by %g",
            checkpoint.force_scale,
            checkpoint.energy_scale,
        )
    return model


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Give a checkpoint of FAIR-Chem, a .pt file.")
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: holds more than tensors and plain values, which would run code ({reason}).\n"
            "  Save `config`, `state_dict`, `ema`, `normalizers` and `elementrefs` alone."
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not a file of torch.save ({error}).") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: found a {type(content).__name__}, expected a dictionary.")
    return content


def _model_section(path: Path, config: Any) -> JSONDict:
    """The model's part of a configuration, of FAIR-Chem 1.x or of the OCP code before it."""
    model = config.get("model") if isinstance(config, dict) else None
    if isinstance(model, dict):
        return dict(model)
    if isinstance(model, str):
        return {"name": model, **(config.get("model_attributes") or {})}
    raise CheckpointError(
        f"{path}: its configuration has no 'model'. Give the training's YAML by --config."
    )


def _with_average(
    path: Path, config: JSONDict, weights: dict[str, Tensor], shadow: list[Tensor]
) -> dict[str, Tensor]:
    """Weights with the learnt ones replaced by their averages, which come in the same order."""
    learnt = translation_of(config, weights).learnt(weights)
    if config.get("freeze_backbone"):
        learnt = [name for name in learnt if "output_heads." in name]
    shapes = [getattr(weights[name], "shape", None) for name in learnt]
    if shapes != [getattr(one, "shape", "?") for one in shadow]:
        raise CheckpointError(
            f"{path}: {len(shadow)} averaged weights don't belong to the {len(learnt)} weights. "
            "Take the weights as they are with --no-ema."
        )
    return weights | dict(zip(learnt, shadow, strict=True))


def _part(path: Path, content: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A dictionary in the file; empty where there is none."""
    part = content.get(key)
    if part is not None and not isinstance(part, Mapping):
        raise CheckpointError(f"{path}: {key} is a {type(part).__name__}, expected a dictionary.")
    return dict(part or {})


def _scales(weights: dict[str, Any], scales: dict[str, Any]) -> dict[str, Tensor]:
    """Scales that older files hold beside the weights, as weights; they come before those there."""
    there = {name.removesuffix(".scale_factor"): name for name in weights}
    names = {one.removeprefix("module."): name for one, name in there.items()}
    return {
        names.get(one, f"{one}.scale_factor"): torch.as_tensor(scale)
        for one, scale in scales.items()
    }


def _state(path: Path, content: dict[str, Any], key: str, target: str) -> dict[str, Any]:
    """What `key` holds of a target, whose name may be that of an output with this property.

    Raises:
        CheckpointError: it is there under several names, or only under one that isn't understood.
    """
    part = _part(path, content, key)
    outputs = _part(path, _part(path, content, "config"), "outputs")
    named = {
        name: (outputs[name] or {}).get("property", name) if name in outputs else name
        for name in part
    }
    found = [name for name, one in named.items() if _OLD_TARGETS.get(one, one) == target]
    near = [name for name in named if target in name and name not in found]
    if len(found) > 1 or (near and not found):
        raise CheckpointError(
            f"{path}: {key} are of {', '.join(part)}; which of them is of {target}? "
            f"Rename that one to '{target}' in the file."
        )
    return _part(path, part, found[0]) if found else {}


def _normaliser(path: Path, content: dict[str, Any], target: str) -> tuple[float, float]:
    """Mean and scale of a target; 0 and 1 where it isn't normalised."""
    state = _state(path, content, "normalizers", target)
    try:
        mean = float(state.get("mean", 0.0))
        scale = float(state.get("std", state.get("rmsd", 1.0)))
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: normaliser of {target} isn't two numbers: {state}"
        ) from error
    if not np.isfinite([mean, scale]).all():
        raise CheckpointError(f"{path}: normaliser of {target} isn't finite: {state}")
    return mean, scale


def _references(path: Path, content: dict[str, Any]) -> Tensor:
    state = _state(path, content, "elementrefs", "energy")
    energies = torch.zeros(MAX_ATOMIC_NUMBER + 1, dtype=torch.float64)
    if state:
        given = state.get("element_references")
        if not isinstance(given, Tensor) or not given.isfinite().all():
            raise CheckpointError(
                f"{path}: elementrefs of energy have no finite tensor 'element_references'."
            )
        given = given.double().flatten()[: len(energies)]
        energies[: len(given)] = given
    return energies
