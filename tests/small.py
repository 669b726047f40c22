"""Small data sets with a physics of their own, for tests of everything that needs a store."""

from pathlib import Path
from typing import Any

import numpy as np

from lamm.config import RunConfig
from lamm.data.cards import CardHeader
from lamm.data.store import StoreWriter
from lamm.structure import Structure

ATOMIC = {1: -13.0, 6: -1030.0, 8: -2040.0}


def morse(numbers: np.ndarray, positions: np.ndarray) -> tuple[float, np.ndarray]:
    """Energy and forces of pairwise Morse bonds on top of large atomic energies, in eV and Å."""
    vectors = positions[:, None] - positions[None]
    distance = np.linalg.norm(vectors, axis=-1) + np.eye(len(positions)) * 10
    radius = 0.5 + 0.05 * np.sqrt(numbers)
    x = np.exp(-1.5 * (distance - radius[:, None] - radius[None]))
    pair = x**2 - 2 * x
    np.fill_diagonal(pair, 0)
    slope = -3.0 * (x**2 - x)
    np.fill_diagonal(slope, 0)
    forces = -(slope / distance)[..., None] * vectors
    energy = sum(ATOMIC[int(z)] for z in numbers) + pair.sum() / 2
    return float(energy), forces.sum(axis=1)


def small_structure(
    rng: np.random.Generator, name: str, labels: str = "EF", periodic: bool = False
) -> Structure:
    """Three to seven atoms of H, C and O on a distorted grid."""
    size = int(rng.integers(3, 8))
    numbers = rng.choice([1, 6, 8], size=size).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[np.arange(2) * 1.3] * 3), axis=-1).reshape(-1, 3)
    positions = grid[:size] + rng.normal(0, 0.1, (size, 3))
    energy, forces = morse(numbers, positions)
    return Structure(
        atomic_numbers=numbers,
        positions=positions,
        cell=np.eye(3) * 9.0 if periodic else np.zeros((3, 3)),
        pbc=np.full(3, periodic),
        energy=energy if "E" in labels else None,
        forces=forces if "F" in labels else None,
        id=name,
    )


def small_store(
    path: Path, count: int = 40, labels: str = "EF", seed: int = 0, **header: Any
) -> Path:
    """A store of small structures; without labels it carries the denoising task."""
    rng = np.random.default_rng([seed, 7])
    task = "S2EF-Total" if labels else "denoising"
    card = CardHeader(**{"name": path.name, "task": task, **header})
    with StoreWriter(path, card) as writer:
        for number in range(count):
            writer.add(small_structure(rng, f"{path.name}/{number}", labels))
    return path


SMALL_MODELS: dict[str, dict[str, Any]] = {
    "painn": {
        "encoder": {
            "name": "painn",
            "channels": 16,
            "num_layers": 2,
            "num_radial": 8,
            "cutoff": 4.0,
            "max_neighbors": 12,
        }
    },
    "equiformer_v2": {
        "encoder": {
            "name": "equiformer_v2",
            "channels": 8,
            "num_layers": 2,
            "l_max": 2,
            "m_max": 1,
            "num_heads": 2,
            "attention_hidden": 6,
            "alpha_channels": 4,
            "value_channels": 4,
            "feed_forward_hidden": 8,
            "edge_channels": 8,
            "num_radial": 16,
            "cutoff": 4.0,
            "max_neighbors": 8,
            "grid_resolution": 6,
            "alpha_dropout": 0.2,
            "drop_path": 0.2,
            "projection_dropout": 0.1,
            "edge_block": 64,
        }
    },
}
"""A model of every encoder, with all that it may draw at random."""


def without_dropout(model: dict[str, Any]) -> dict[str, Any]:
    """The same model, which gives one loss however its structures are shared out."""
    encoder = {
        key: 0.0 if key.endswith(("dropout", "drop_path")) else value
        for key, value in model["encoder"].items()
    }
    return {**model, "encoder": encoder}


def small_config(folder: Path, **changes: Any) -> RunConfig:
    """A run of a few seconds on three small stores: both labels, energies alone, none."""
    stores = {"both": "EF", "energies": "E", "none": ""}
    for name, labels in stores.items():
        if not (folder / name).exists():
            small_store(folder / name, labels=labels, seed=len(name))
    mapping = {
        "to": folder / "run",
        "data": {
            "subsets": {name: {"store": str(folder / name)} for name in stores},
            "val_fraction": 0.2,
        },
        "model": SMALL_MODELS["painn"],
        "optim": {"lr": 5e-3, "warmup_steps": 2, "ema_decay": 0.9},
        "balance": {"batch_size": 8},
        "train": {"steps": 12, "workers": 0, "log_every": 2, "validate_every": 4},
    }
    return RunConfig.model_validate(mapping | changes)
