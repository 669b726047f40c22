r"""How uncertain a potential's energies and forces are, by its last-layer prediction rigidity.

For energies the features are the mean over a structure's atoms of what the energy head's last layer
is given, and a one for its bias, so that errors per atom of small and large structures count alike;
the standard deviation of a total energy is N times that of the energy per atom. Heads share these
features; the training structures, and so the variances, are each head's own.

A force isn't linear in the last layer: a direct one goes through gates, and for the energy's
gradient the features' derivatives by all positions would be needed, as many backward passes as
there are features. Instead each atom's features are held against those of the training atoms: the
further its surroundings are from theirs, the less certain is its force. That costs nothing and does
for both kinds.

Example::

    model = lamm.load("runs/mine")
    uncertainty = Uncertainty.load("runs/mine/uncertainty.safetensors", model)
    for result in predict(model, structures, uncertainty=uncertainty):
        print(result.energy, result.energy_uncertainty)  # eV
        print(result.forces, result.forces_uncertainty)  # (N, 3), (N,) eV/Å
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
from lamm.evaluate.breakdown import labelled_atoms
from lamm.evaluate.predict import EvaluatedBatch, predict_batches
from lamm.evaluate.rigidity import (
    MIN_CALIBRATION,
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

FORMAT_VERSION = 2
FILE_NAME = "uncertainty.safetensors"
MOST_ATOMS = 20_000
"""Held-out atoms that the calibration of forces looks at; of more, evenly chosen ones."""


class Fitted(NamedTuple):
    """A rigidity, and how many structures or atoms it came from."""

    rigidity: Rigidity
    """In eV per atom, or for forces in eV/Å."""
    training: int
    calibration: int


class HeadUncertainty(NamedTuple):
    """What is known of one head."""

    energy: Fitted
    forces: Fitted | None
    """None where there were no force labels, in training or held out."""


@dataclass
class Uncertainty:
    """Standard deviations of energies and forces, for some heads of one model."""

    model_hash: str
    """`fingerprint` of the model that this belongs to."""
    heads: dict[str, HeadUncertainty] = field(default_factory=dict)

    def energy_sigma(self, head: str, batch: EvaluatedBatch) -> Array:
        """Standard deviations (B,) in eV of the total energies of a batch.

        Args:
            head: the output that was predicted.
            batch: with features of the last layer.

        Raises:
            ConfigError: nothing is known of this head.
        """
        self.require(head)
        features = batch.structure_features.cpu().numpy()
        per_atom = self.heads[head].energy.rigidity.sigma(features)
        total: Array = per_atom * batch.batch.num_atoms.cpu().numpy()
        return total

    def forces_sigma(self, head: str, batch: EvaluatedBatch) -> Array | None:
        """Standard deviations (N,) in eV/Å of the components of each atom's force.

        None where no forces were fitted.

        Args:
            head: the output that was predicted.
            batch: with features of the last layer.

        Raises:
            ConfigError: nothing is known of this head.
        """
        self.require(head)
        forces = self.heads[head].forces
        return None if forces is None else forces.rigidity.sigma(batch.atom_features.cpu().numpy())

    def require(self, head: str) -> None:
        """Make sure that a head's uncertainty is known.

        Raises:
            ConfigError: it isn't.
        """
        if head not in self.heads:
            raise ConfigError(
                f"no uncertainty was fitted for head '{head}'. "
                f"{nearest_names(head, self.heads)}\n"
                f"  Fit it: `lamm uncertainty CKPT STORE --head {head}`."
            )

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all."""
        entries: list[dict[str, Any]] = []
        factors = {}
        for name, head in self.heads.items():
            entry: dict[str, Any] = {"name": name}
            for kind, fitted in head._asdict().items():
                if fitted is None:
                    continue
                numbers = fitted.rigidity
                entry[kind] = {
                    "training": fitted.training,
                    "calibration": fitted.calibration,
                    "scale": numbers.scale,
                    "regularisation": numbers.regularisation,
                }
                factors[f"{kind}.{len(entries)}"] = np.ascontiguousarray(numbers.factor)
            entries.append(entry)
        metadata = {
            "format_version": str(FORMAT_VERSION),
            "uncertainty": json.dumps(
                {"model": self.model_hash, "heads": entries}, ensure_ascii=False
            ),
        }
        with replaced_file(path) as temporary:
            save_file(factors, temporary, metadata=metadata)
            make_readable(temporary)

    @classmethod
    def load(cls, path: PathLike, model: Potential) -> Uncertainty:
        """Read a file that `lamm uncertainty` wrote for this model.

        Raises:
            CheckpointError: it is missing, damaged, of another version or of another model.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file. Make one with `lamm uncertainty CKPT`.")
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
            parts = [_restored(entry.get(kind), factors.get(f"{kind}.{k}")) for kind in _KINDS]
            energy, forces = parts
            assert energy is not None, "every head has energies"
            uncertainty.heads[entry["name"]] = HeadUncertainty(energy, forces)
        return uncertainty


_KINDS = HeadUncertainty._fields


def _restored(numbers: dict[str, Any] | None, factor: Array | None) -> Fitted | None:
    if numbers is None or factor is None:
        return None
    rigidity = Rigidity(factor, numbers["scale"], numbers["regularisation"])
    return Fitted(rigidity, numbers["training"], numbers["calibration"])


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


def find_uncertainty(checkpoint: PathLike, model: Potential) -> Uncertainty | None:
    """The uncertainty that was fitted for a checkpoint; None where there is none.

    Raises:
        CheckpointError: there is one, and it is damaged or of another model.
    """
    path = uncertainty_path(checkpoint)
    return Uncertainty.load(path, model) if path.exists() else None


class Calibrations(NamedTuple):
    """How a head's uncertainty fits the data that it was calibrated on."""

    energy: Calibration
    forces: Calibration | None


def fit_uncertainty(
    model: Potential,
    head: str,
    training: Iterable[Structure],
    held_out: Iterable[Structure],
    *,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> tuple[HeadUncertainty, Calibrations]:
    """The rigidities of one head, from its training structures, calibrated on others.

    Args:
        model: the potential.
        head: the output.
        training: structures that the head was trained on; those without an energy don't count for
            energies, and atoms without a force label don't for forces.
        held_out: structures that it wasn't trained on, with energies.
        batch_size: structures per batch, fewer where they are large.
        progress: called with the number of structures done after each batch.

    Raises:
        DataError: no training structure has an energy, or too few held-out ones.
    """
    column, size = model.column(head), 0
    grams: tuple[FeatureGram, FeatureGram] | None = None
    done = 0
    for item in predict_batches(model, training, column, batch_size=batch_size, last_layer=True):
        of_structures, of_atoms = _labelled_features(item), _free_features(item)
        size = of_structures.shape[1]
        grams = grams or (FeatureGram(size), FeatureGram(size))
        grams[0].add(of_structures)
        grams[1].add(of_atoms)
        done += len(item.structures)
        if progress is not None:
            progress(done)
    if grams is None or grams[0].count == 0:
        raise DataError(f"no training structure of head '{head}' has an energy.")
    energies, forces = _Errors(size, ()), _Errors(size, (3,), most=MOST_ATOMS)
    for item in predict_batches(model, held_out, column, batch_size=batch_size, last_layer=True):
        has = item.batch.has_energy
        error = (item.prediction.energy[:, 0] - item.batch.energy) / item.batch.num_atoms
        energies.add(_labelled_features(item), error[has])
        difference = item.prediction.forces[:, 0] - item.batch.forces
        forces.add(_free_features(item), difference[labelled_atoms(item.batch)])
        done += len(item.structures)
        if progress is not None:
            progress(done)
    energy, energy_calibration = _fit(grams[0], energies)
    if not grams[1].count or len(forces) < MIN_CALIBRATION:
        return HeadUncertainty(energy, None), Calibrations(energy_calibration, None)
    of_forces, forces_calibration = _fit(grams[1], forces)
    return HeadUncertainty(energy, of_forces), Calibrations(energy_calibration, forces_calibration)


class _Errors:
    """Features and errors of what is held out; evenly chosen ones where there are too many."""

    def __init__(self, num_features: int, shape: tuple[int, ...], most: int | None = None) -> None:
        self._features = [np.zeros((0, num_features))]
        self._errors = [np.zeros((0, *shape))]
        self._most, self._every, self._seen, self._kept = most, 1, 0, 0

    def __len__(self) -> int:
        return self._kept

    def add(self, features: Array, errors: torch.Tensor) -> None:
        """Add (n, F) features and as many errors."""
        chosen = np.arange(self._seen, self._seen + len(features)) % self._every == 0
        self._seen += len(features)
        self._features.append(features[chosen])
        self._errors.append(errors.double().cpu().numpy()[chosen])
        self._kept += int(chosen.sum())
        while self._most is not None and self._kept > self._most:
            both = self.joined()
            self._features, self._errors = [both[0][::2]], [both[1][::2]]
            self._every, self._kept = 2 * self._every, len(self._errors[0])

    def joined(self) -> tuple[Array, Array]:
        """(n, F) features and as many errors."""
        return np.concatenate(self._features), np.concatenate(self._errors)


def _fit(gram: FeatureGram, held_out: _Errors) -> tuple[Fitted, Calibration]:
    features, errors = held_out.joined()
    rigidity = fit_rigidity(gram.matrix, features, errors)
    fitted = Fitted(rigidity, gram.count, len(errors))
    return fitted, calibration(errors, rigidity.sigma(features))


def _labelled_features(item: EvaluatedBatch) -> Array:
    """(structures with an energy, F)."""
    features: Array = item.structure_features[item.batch.has_energy].cpu().numpy()
    return features


def _free_features(item: EvaluatedBatch) -> Array:
    """(free atoms with a force label, F)."""
    features: Array = item.atom_features[labelled_atoms(item.batch)].cpu().numpy()
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
