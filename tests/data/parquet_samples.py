"""Tables in ColabFit's layout, with the columns and types that its sets have on Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

_VECTORS = pa.list_(pa.list_(pa.float64()))
_STRINGS = pa.list_(pa.string())
COLABFIT = pa.schema(
    [
        ("property_id", pa.string()),
        ("property_hash", pa.string()),
        ("last_modified", pa.timestamp("us")),
        ("dataset_id", pa.string()),
        ("multiplicity", pa.int32()),
        ("software", pa.string()),
        ("method", pa.string()),
        ("energy", pa.float64()),
        ("atomic_forces", _VECTORS),
        ("cauchy_stress", _VECTORS),
        ("cauchy_stress_volume_normalized", pa.bool_()),
        ("electronic_band_gap", pa.float64()),
        ("electronic_band_gap_type", pa.string()),
        ("formation_energy", pa.float64()),
        ("adsorption_energy", pa.float64()),
        ("atomization_energy", pa.float64()),
        ("max_force_norm", pa.float64()),
        ("mean_force_norm", pa.float64()),
        ("energy_above_hull", pa.float64()),
        ("configuration_id", pa.string()),
        ("configuration_hash", pa.string()),
        ("structure_hash", pa.string()),
        ("cell", _VECTORS),
        ("positions", _VECTORS),
        ("pbc", pa.list_(pa.bool_())),
        ("chemical_formula_hill", pa.string()),
        ("chemical_formula_reduced", pa.string()),
        ("chemical_formula_anonymous", pa.string()),
        ("elements", _STRINGS),
        ("elements_ratios", pa.list_(pa.float64())),
        ("atomic_numbers", pa.list_(pa.int32())),
        ("nsites", pa.int32()),
        ("nelements", pa.int32()),
        ("nperiodic_dimensions", pa.int32()),
        ("dimension_types", pa.list_(pa.int32())),
        ("names", _STRINGS),
        ("labels", _STRINGS),
        ("property_metadata_path", pa.string()),
        ("configuration_metadata_path", pa.string()),
        ("hash", pa.string()),
        ("configuration_metadata", pa.string()),
        ("property_metadata", pa.string()),
    ]
)


def colabfit_row(number: int, rng: np.random.Generator, num_atoms: int) -> dict[str, Any]:
    """A row; what isn't here is null, as most of it is in the published sets."""
    stress = rng.normal(size=(3, 3))
    return {
        "property_id": f"PO_{number}",
        "configuration_id": f"CO_{number % 5}",
        "dataset_id": "DS_made_up_0",
        "method": "DFT-PBE",
        "software": "VASP",
        "energy": float(rng.normal() * 10 - 100),
        "atomic_forces": rng.normal(size=(num_atoms, 3)).tolist(),
        "cauchy_stress": (stress + stress.T).tolist(),
        "cauchy_stress_volume_normalized": False,
        "cell": (np.eye(3) * 5 + rng.normal(size=(3, 3)) * 0.1).tolist(),
        "positions": rng.normal(size=(num_atoms, 3)).tolist(),
        "pbc": [True, True, number % 2 == 0],
        "atomic_numbers": rng.integers(1, 80, num_atoms).tolist(),
        "nsites": num_atoms,
        "names": [f"made_up_{number}"],
    }


def colabfit_rows(count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Rows of one to twelve atoms."""
    return [colabfit_row(number, rng, 1 + number % 12) for number in range(count)]


def write_colabfit(path: Path, rows: list[dict[str, Any]], row_group_size: int = 10) -> Path:
    """Write rows as ColabFit does."""
    table = pa.Table.from_pylist(rows, schema=COLABFIT)
    parquet.write_table(table, path, row_group_size=row_group_size)
    return path
