"""SchNetPack's PaiNN on one split for a wall time: python rival_schnetpack.py FOLDER SECONDS TO.

Its own data module, model, task and trainer, with the settings of its tutorials (64 channels, three
interactions, cutoff 5 Å, batches of 10, AdamW at 1e-3, squared errors weighed 0.01 to 0.99). Linear
reference energies by least squares are taken off. Prints test errors as JSON.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import typing
from importlib.metadata import version
from pathlib import Path

BEGIN = time.monotonic()

import torch.utils.data.dataloader  # noqa: E402

if not hasattr(torch.utils.data.dataloader, "T_co"):  # SchNetPack 2.0.4 wants it of older PyTorch
    torch.utils.data.dataloader.T_co = typing.TypeVar("T_co", covariant=True)

import ase.io  # noqa: E402
import numpy as np  # noqa: E402
import pytorch_lightning as lightning  # noqa: E402
import schnetpack as spk  # noqa: E402
import schnetpack.transform as transform  # noqa: E402
import torch  # noqa: E402
import torchmetrics  # noqa: E402
from ase import Atoms  # noqa: E402

CUTOFF, CHANNELS, BATCH = 5.0, 64, 10


def references(parts: dict[str, list[Atoms]]) -> tuple[list[int], np.ndarray]:
    """Energy of each element by least squares on the training energies."""
    elements = sorted({int(z) for atoms in parts.values() for one in atoms for z in one.numbers})
    counts = composition(parts["train"], elements)
    energies = np.array([one.get_potential_energy() for one in parts["train"]])
    return elements, np.linalg.lstsq(counts, energies, rcond=1e-10)[0]


def composition(atoms: list[Atoms], elements: list[int]) -> np.ndarray:
    """How often each structure has each element."""
    return np.array([[np.sum(one.numbers == z) for z in elements] for one in atoms], float)


def data_module(parts: dict[str, list[Atoms]], to: Path) -> spk.data.AtomsDataModule:
    """The split as SchNetPack's own database."""
    elements, energies = references(parts)
    everything = [one for atoms in parts.values() for one in atoms]
    properties = [
        {
            "energy": np.array(
                [one.get_potential_energy() - (counts @ energies)], dtype=np.float32
            ),
            "forces": one.get_forces().astype(np.float32),
        }
        for one, counts in zip(everything, composition(everything, elements), strict=True)
    ]
    database = spk.data.ASEAtomsData.create(
        str(to / "data.db"),
        distance_unit="Ang",
        property_unit_dict={"energy": "eV", "forces": "eV/Ang"},
    )
    plain = [Atoms(one.numbers, one.positions, cell=one.cell, pbc=one.pbc) for one in everything]
    database.add_systems(properties, plain)
    sizes = [len(parts[name]) for name in ("train", "val", "test")]
    first, second, third = np.cumsum(sizes)
    np.savez(
        to / "split.npz",
        train_idx=np.arange(first),
        val_idx=np.arange(first, second),
        test_idx=np.arange(second, third),
    )
    neighbours = transform.CachedNeighborList(
        str(to / "cache"), transform.MatScipyNeighborList(cutoff=CUTOFF), keep_cache=False
    )
    module = spk.data.AtomsDataModule(
        str(to / "data.db"),
        batch_size=BATCH,
        val_batch_size=32,
        test_batch_size=32,
        split_file=str(to / "split.npz"),
        num_train=sizes[0],
        num_val=sizes[1],
        num_test=sizes[2],
        transforms=[neighbours, transform.CastTo32()],
        num_workers=0,
        num_val_workers=0,
        num_test_workers=0,
        pin_memory=False,
    )
    module.setup()
    return module


def task() -> spk.task.AtomisticTask:
    """PaiNN with its losses and optimizer."""
    painn = spk.representation.PaiNN(
        n_atom_basis=CHANNELS,
        n_interactions=3,
        radial_basis=spk.nn.GaussianRBF(n_rbf=20, cutoff=CUTOFF),
        cutoff_fn=spk.nn.CosineCutoff(CUTOFF),
    )
    model = spk.model.NeuralNetworkPotential(
        representation=painn,
        input_modules=[spk.atomistic.PairwiseDistances()],
        output_modules=[
            spk.atomistic.Atomwise(n_in=CHANNELS, output_key="energy"),
            spk.atomistic.Forces(energy_key="energy", force_key="forces"),
        ],
    )
    outputs = [
        spk.task.ModelOutput(
            name=name,
            loss_fn=torch.nn.MSELoss(),
            loss_weight=weight,
            metrics={"MAE": torchmetrics.MeanAbsoluteError()},
        )
        for name, weight in (("energy", 0.01), ("forces", 0.99))
    ]
    return spk.task.AtomisticTask(
        model=model,
        outputs=outputs,
        optimizer_cls=torch.optim.AdamW,
        optimizer_args={"lr": 1e-3},
        scheduler_cls=torch.optim.lr_scheduler.ReduceLROnPlateau,
        scheduler_args={"mode": "min", "factor": 0.5, "patience": 10},
        scheduler_monitor="val_loss",
    )


def main() -> None:
    """Train for the time, then test the best model."""
    logging.disable(logging.INFO)
    folder, seconds, to = Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
    to.mkdir(parents=True)
    lightning.seed_everything(0)
    parts = {name: ase.io.read(folder / f"{name}.extxyz", ":") for name in ("train", "val", "test")}
    data, training = data_module(parts, to), task()
    best = to / "best_model"
    trainer = lightning.Trainer(
        callbacks=[
            spk.train.ModelCheckpoint(
                model_path=str(best), save_top_k=1, monitor="val_loss", dirpath=str(to)
            )
        ],
        max_time={"seconds": seconds * 0.97 - 3 - (time.monotonic() - BEGIN)},
        max_epochs=10**6,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        accelerator="cpu",
        gradient_clip_val=10.0,
        inference_mode=False,
    )
    trainer.fit(training, datamodule=data)
    model = torch.load(best, weights_only=False) if best.exists() else training.model
    model.eval()
    energy_errors, force_errors = [], []
    for batch in data.test_dataloader():
        energies, forces, sizes = (batch[key].clone() for key in ("energy", "forces", "_n_atoms"))
        result = model(batch)
        energy_errors.append((result["energy"].detach().reshape(-1) - energies).abs() / sizes)
        force_errors.append((result["forces"].detach() - forces).abs().reshape(-1))
    answer = {
        "seconds": time.monotonic() - BEGIN,
        "steps": trainer.global_step,
        "version": version("schnetpack"),
        "energy_mae_mev_per_atom": 1000 * float(torch.cat(energy_errors).mean()),
        "forces_mae_mev_per_ang": 1000 * float(torch.cat(force_errors).mean()),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
