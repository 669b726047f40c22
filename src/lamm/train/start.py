"""The potential before the first step: new, or going on from a checkpoint; outputs normalised."""

from __future__ import annotations

import logging
from typing import Any

import torch

from lamm.config import RunConfig
from lamm.data.joint import JointDataset
from lamm.data.references import Normalisation
from lamm.errors import CheckpointError
from lamm.models.potential import ModelConfig, Potential, build
from lamm.train.checkpoint import load

logger = logging.getLogger(__name__)


def set_normalisation(model: Potential, normalisations: list[Normalisation]) -> None:
    """Give each output of the model its subset's reference energies and scales (Sec. 3.2)."""
    for column, fitted in enumerate(normalisations):
        set_one(model, column, fitted)


def set_one(model: Potential, column: int, fitted: Normalisation) -> None:
    """Give one output its subset's reference energies and scales.

    Where forces are the energy's gradient, the unit of the energy is also that of the forces, and
    the force scale (times 1 Å) is taken for both: in a structure of many atoms, or under pressure,
    the energies' own is far from what a displacement costs.
    """
    conservative = model.force_head is None and fitted.has_forces
    model.set_normalisation(
        column,
        torch.from_numpy(fitted.reference_energies),
        torch.from_numpy(fitted.known),
        fitted.force_scale if conservative else fitted.energy_scale,
        fitted.force_scale,
    )


def check_architecture(base: Potential, wanted: ModelConfig) -> None:
    """Refuse a base of another architecture than the configuration asks for.

    Raises:
        CheckpointError: an entry of the encoder's configuration differs.
    """
    has: dict[str, Any] = base.config.encoder.model_dump()
    asked: dict[str, Any] = wanted.encoder.model_dump()
    different = [
        f"{key} is {has.get(key)}, expected {value}"
        for key, value in asked.items()
        if has.get(key) != value and key not in wanted.encoder.no_architecture
    ]
    if different:
        raise CheckpointError(
            "the base checkpoint is of another architecture than `model` asks for: "
            f"{'; '.join(different)}.\n"
            "  Leave `model` out to take the checkpoint's own."
        )


def pretraining_model(config: RunConfig, joint: JointDataset) -> Potential:
    """The potential that a pre-training starts from, with the data's references (Sec. 3.2).

    Where the configuration names a checkpoint, its encoder is taken over, and the outputs of
    subsets that it knows by name, with their references and scales; elements that only the new data
    has are added to those. Outputs of other subsets start at their references.

    Raises:
        CheckpointError: the base can't be read, or is of another architecture.
    """
    fitted = [subset.normalisation() for subset in joint.subsets]
    if config.start_from is None:
        model = build(config.model, joint.names, seed=config.seed).start_at_references()
        set_normalisation(model, fitted)
        return model
    base = load(config.start_from)
    check_architecture(base, config.model)
    known = [name for name in joint.names if name in base.subsets]
    model = base.with_subsets(joint.names, heads={name: name for name in known}, seed=config.seed)
    new = [name for name in joint.names if name not in known]
    model.start_at_references(model.column(name) for name in new)
    for column, name in enumerate(joint.names):
        if name in new:
            set_one(model, column, fitted[column])
        else:
            _add_elements(model, column, fitted[column])
    logger.info(
        "goes on from %s: %d of its outputs, %d new%s",
        config.start_from,
        len(known),
        len(new),
        f" ({', '.join(new)})" if new else "",
    )
    return model


def _add_elements(model: Potential, column: int, fitted: Normalisation) -> None:
    """Give one output the references of elements that it doesn't know, and no other's."""
    references, known = torch.from_numpy(fitted.reference_energies), torch.from_numpy(fitted.known)
    added = known.to(model.known_elements) & ~model.known_elements[column]
    model.reference_energies[column, added] = references.to(model.reference_energies)[added]
    model.known_elements[column] |= added
