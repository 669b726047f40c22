r"""How uncertain a potential's energies are, by its last-layer prediction rigidity.

Features are the mean over a structure's atoms of what the energy head's last layer is given, and a
one for its bias, so that errors per atom of small and large structures count alike; the standard
deviation of a total energy is N times that of the energy per atom. Heads share these features; the
training structures, and so the variances, are each head's own.

Energies only. A direct force isn't linear in the last layer alone (gates multiply vectors), and for
the energy's gradient the features' derivatives by all positions would be needed, which costs as
many backward passes as there are features.

Example::

    model = lamm.load("runs/mine")
    uncertainty = EnergyUncertainty.load("runs/mine/uncertainty.safetensors", model)
    for result in predict(model, structures, uncertainty=uncertainty):
        print(result.energy, result.energy_uncertainty)  # eV
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lamm.errors import CheckpointError, ConfigError, DataError, nearest_names
from lamm.evaluate.predict import EvaluatedBatch, predict_batches
from lamm.evaluate.rigidity import (
    Array,
    Calibration,
    FeatureGram,
    Rigidity,
    calibration,
    fit_rigidity,
)
from lamm.files import make_readable, replaced_file
from lamm.shipped import checkpoint_path
from lamm.structure import Structure
from lamm.typing import PathLike

if TYPE_CHECKING:
    from lamm.models.potential import Potential

FORMAT_VERSION = 1
FILE_NAME = "uncertainty.safetensors"


class HeadRecord(NamedTuple):
    """How one head's uncertainty came about."""

    training_structures: int
    calibration_structures: int
    scale_ev_per_atom: float
    regularisation: float


@dataclass
class EnergyUncertainty:
    """Standard deviations of energies, for some heads of one model."""

    model_hash: str
    """`fingerprint` of the model that this belongs to."""
    rigidities: dict[str, Rigidity] = field(default_factory=dict)
    """By head, per atom in eV."""
    records: dict[str, HeadRecord] = field(default_factory=dict)

    def sigma(self, head: str, batch: EvaluatedBatch) -> Array:
        """Standard deviations (B,) in eV of the total energies of a batch.

        Args:
            head: the output that was predicted.
            batch: with features of the last layer.

        Raises:
            ConfigError: nothing is known of this head.
        """
        if batch.last_layer is None:
            raise ValueError("this batch was predicted without features of the last layer")
        self.require(head)
        per_atom = self.rigidities[head].sigma(batch.last_layer.cpu().numpy())
        total: Array = per_atom * batch.batch.num_atoms.cpu().numpy()
        return total

    def require(self, head: str) -> None:
        """Make sure that a head's uncertainty is known.

        Raises:
            ConfigError: it isn't.
        """
        if head not in self.rigidities:
            raise ConfigError(
                f"no uncertainty was fitted for head '{head}'. "
                f"{nearest_names(head, self.rigidities)}\n"
                f"  Fit it: `lamm uncertainty CKPT STORE --head {head}`."
            )

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        heads = list(self.rigidities)
        description = {
            "model": self.model_hash,
            "heads": [{"name": name, **self.records[name]._asdict()} for name in heads],
        }
        metadata = {
            "format_version": str(FORMAT_VERSION),
            "uncertainty": json.dumps(description, ensure_ascii=False),
        }
        factors = {
            f"factor.{k}": np.ascontiguousarray(self.rigidities[name].factor)
            for k, name in enumerate(heads)
        }
        with replaced_file(path) as temporary:
            save_file(factors, temporary, metadata=metadata)
            make_readable(temporary)

    @classmethod
    def load(cls, path: PathLike, model: Potential) -> EnergyUncertainty:
        """Read a file that `lamm uncertainty` wrote for this model.

        Raises:
            CheckpointError: it is missing, damaged, of another version or of another model.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file. Make one with `lamm uncertainty CKPT STORE`."
            )
        try:
            with safe_open(path, framework="np") as file:
                metadata: dict[str, str] = file.metadata() or {}
                factors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: not a readable safetensors file ({error}). Fit the uncertainty again "
                "with `lamm uncertainty`."
            ) from error
        if "uncertainty" not in metadata:
            raise CheckpointError(f"{path}: this file holds no uncertainty of a LaMM model.")
        if metadata.get("format_version") != str(FORMAT_VERSION):
            raise CheckpointError(
                f"{path}: format_version is {metadata.get('format_version')}, expected "
                f"{FORMAT_VERSION}. Fit the uncertainty again with `lamm uncertainty`."
            )
        description = json.loads(metadata["uncertainty"])
        found = fingerprint(model)
        if description["model"] != found:
            raise CheckpointError(
                f"{path}: fitted for another model (hash {description['model'][:12]}, this one has "
                f"{found[:12]}).\n  Fit it again with `lamm uncertainty`, or remove the file."
            )
        uncertainty = cls(found)
        for k, entry in enumerate(description["heads"]):
            name = entry.pop("name")
            record = HeadRecord(**entry)
            uncertainty.records[name] = record
            uncertainty.rigidities[name] = Rigidity(
                factors[f"factor.{k}"], record.scale_ev_per_atom, record.regularisation
            )
        return uncertainty


def fingerprint(model: Potential) -> str:
    """A hash of architecture, weights and normalisation.

    Weights count in float32, so that a copy in float64 of a model in float32 is the same model.
    """
    digest = hashlib.sha256(json.dumps(model.describe(), sort_keys=True).encode())
    weights = {name for name, _ in model.named_parameters()}
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.detach().cpu()
        if name in weights or values.dtype in (torch.float16, torch.bfloat16):
            values = values.float()
        elif values.is_floating_point():
            values = values.double() if name.endswith(_EXACT) else values.float()
        digest.update(name.encode())
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()


_EXACT = ("reference_energies", "energy_scale", "force_scale", "energy_shift")
"""Buffers that are float64 in every copy of a model."""


def uncertainty_path(checkpoint: PathLike) -> Path:
    """Where a checkpoint's uncertainty lies: in its folder, or beside its file."""
    path = checkpoint_path(checkpoint)
    if path.is_dir():
        return path / FILE_NAME
    return path.with_name(f"{path.name.removesuffix('.safetensors')}.{FILE_NAME}")


def find_uncertainty(checkpoint: PathLike, model: Potential) -> EnergyUncertainty | None:
    """The uncertainty that was fitted for a checkpoint; None where there is none.

    Raises:
        CheckpointError: there is one, and it is damaged or of another model.
    """
    path = uncertainty_path(checkpoint)
    return EnergyUncertainty.load(path, model) if path.exists() else None


def fit_uncertainty(
    model: Potential,
    head: str,
    training: Iterable[Structure],
    held_out: Iterable[Structure],
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> tuple[Rigidity, HeadRecord, Calibration]:
    """The rigidity of one head, from its training structures, calibrated on others.

    Args:
        model: the potential.
        head: the output.
        training: structures that the head was trained on; those without an energy are left out.
        held_out: structures that it wasn't trained on, with energies.
        batch_size: structures per batch, fewer where they are large.
        progress: called with the number of structures done after each batch.

    Returns:
        The rigidity in eV per atom, its record, and how it fits the data that it was calibrated on.

    Raises:
        DataError: no training structure has an energy, or too few held-out ones.
    """
    column = model.column(head)
    gram: FeatureGram | None = None
    done = 0
    for item in predict_batches(model, training, column, batch_size=batch_size, last_layer=True):
        features = _labelled_features(item)
        gram = gram or FeatureGram(features.shape[1])
        gram.add(features)
        done += len(item.structures)
        if progress is not None:
            progress(done)
    if gram is None or gram.count == 0:
        raise DataError(f"no training structure of head '{head}' has an energy.")
    features_of, errors_of = [np.zeros((0, len(gram.matrix)))], [np.zeros(0)]
    for item in predict_batches(model, held_out, column, batch_size=batch_size, last_layer=True):
        has = item.batch.has_energy
        error = (item.prediction.energy[:, 0] - item.batch.energy) / item.batch.num_atoms
        features_of.append(_labelled_features(item))
        errors_of.append(error[has].double().cpu().numpy())
        done += len(item.structures)
        if progress is not None:
            progress(done)
    features, errors = np.concatenate(features_of), np.concatenate(errors_of)
    rigidity = fit_rigidity(gram.matrix, features, errors)
    record = HeadRecord(gram.count, len(errors), rigidity.scale, rigidity.regularisation)
    return rigidity, record, calibration(errors, rigidity.sigma(features))


def _labelled_features(item: EvaluatedBatch) -> Array:
    """(structures with an energy, F)."""
    if item.last_layer is None:
        raise ValueError("this batch was predicted without features of the last layer")
    features: Array = item.last_layer[item.batch.has_energy].cpu().numpy()
    return features


def errors_and_sigma(rows: Iterable[dict[str, Any]]) -> tuple[Array, Array]:
    """Errors and standard deviations of energies in meV/atom, of rows that have both."""
    both = [
        (row["energy_error_mev_per_atom"], 1000 * row["energy_uncertainty_ev"] / row["num_atoms"])
        for row in rows
        if row.get("energy_uncertainty_ev") is not None
        and row["energy_error_mev_per_atom"] is not None
    ]
    errors, sigma = np.array(both, dtype=np.float64).reshape(-1, 2).T
    return errors, sigma


def calibration_of(rows: Iterable[dict[str, Any]]) -> Calibration | None:
    """Calibration of energies per atom, of rows of an evaluation; None where there are none."""
    errors, sigma = errors_and_sigma(rows)
    return calibration(errors, sigma) if len(errors) else None
