"""Features, projections, measures and the map of Fig. 8 together, and the files that hold them."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lamm import __version__
from lamm.evaluate.chemiscope_page import write_chemiscope_page
from lamm.evaluate.feature_map import feature_map, map_rows
from lamm.evaluate.features import AtomFeatures
from lamm.evaluate.projection import (
    Separation,
    principal_axes,
    separation,
    subset_separation_within_elements,
    umap_projection,
)
from lamm.evaluate.style import save_figure
from lamm.files import replaced_file, write_json

ARRAYS, RESULTS, PAGE = "features.npz", "results.json", "index.html"


def embedding_files(projections: Sequence[str], with_page: bool) -> list[str]:
    """Names of the files that `write_embedding` leaves in its folder."""
    figures = [f"fig8_{name}.{suffix}" for name in projections for suffix in ("png", "svg", "csv")]
    return [ARRAYS, RESULTS, *figures, *([PAGE] if with_page else [])]


def project(
    atoms: AtomFeatures,
    names: Sequence[str],
    *,
    neighbors: int = 15,
    min_distance: float = 0.1,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Coordinates (n, 2) of every atom by name of the projection, ``umap`` or ``pca``.

    Raises:
        ConfigError: umap-learn is wanted and isn't installed.
    """
    projections: dict[str, np.ndarray] = {}
    for name in names:
        if name == "pca":
            projections[name] = principal_axes(atoms.features).projection
        else:
            projections[name] = umap_projection(
                atoms.features, neighbors=neighbors, min_distance=min_distance, seed=seed
            )
    return projections


def measures(atoms: AtomFeatures, neighbors: int = 10) -> dict[str, Any]:
    """What the features, not their picture, say of variance and separation; see `Separation`.

    Args:
        atoms: the sample.
        neighbors: how many nearest atoms count for the purity.
    """
    share = principal_axes(atoms.features).variance_share
    features, subset, element = atoms.features, atoms.subset, atoms.element

    def named(one: Separation) -> dict[str, float | None]:
        return {key: float(v) if np.isfinite(v) else None for key, v in one._asdict().items()}

    return {
        "pca_variance_share": share[:10].tolist(),
        "pca_axes_for_90_percent": int(np.searchsorted(np.cumsum(share), 0.9) + 1),
        "neighbors": neighbors,
        "subset": named(separation(features, subset, neighbors)),
        "element": named(separation(features, element, neighbors)),
        "subset_within_element": named(
            subset_separation_within_elements(features, subset, element, neighbors)
        ),
    }


def write_embedding(
    folder: Path,
    atoms: AtomFeatures,
    projections: Mapping[str, np.ndarray],
    numbers: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    title: str,
    colours: Mapping[str, str] | None = None,
    elements: Sequence[str] | None = None,
    with_page: bool = True,
) -> list[Path]:
    """Write `embedding_files`; each is whole or not there.

    Args:
        folder: where to; made where it isn't there.
        atoms: the sample and its features.
        projections: from `project`.
        numbers: from `measures`.
        settings: what the sample and the projections were made with, for ``results.json``.
        title: of the interactive page.
        colours: colour of each subset.
        elements: symbols that the last panel names.
        with_page: also write the interactive page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if with_page:  # first, since it is what can be refused
        about = f"{len(atoms):,} atoms of {len(atoms.subsets)} subsets."
        write_chemiscope_page(folder / PAGE, atoms, projections, title, about)
    rows = map_rows(atoms, projections)
    axes = axis_names(numbers)
    for name, points in projections.items():
        figure = feature_map(points, atoms, axes[name], colours=colours, elements=elements)
        save_figure(figure, folder / f"fig8_{name}", rows)
    ids = np.array([one.id or one.origin for one in atoms.structures], dtype=np.str_)
    with replaced_file(folder / ARRAYS) as temporary, temporary.open("wb") as file:
        arrays: dict[str, Any] = dict(
            features=atoms.features,
            subset=atoms.subset,
            subset_names=np.array(atoms.subsets, dtype=np.str_),
            structure=atoms.structure,
            structure_ids=ids,
            atom=atoms.atom,
            element=atoms.element,
            energy_error_mev_per_atom=atoms.energy_error,
            **projections,
        )
        np.savez_compressed(file, **arrays)
    write_json(
        folder / RESULTS,
        {
            "settings": dict(settings),
            "atoms": {name: int((atoms.subset == k).sum()) for k, name in enumerate(atoms.subsets)},
            "channels": int(atoms.features.shape[1]),
            "measures": dict(numbers),
            "versions": versions(),
        },
    )
    return [folder / name for name in embedding_files(list(projections), with_page)]


def versions() -> dict[str, str]:
    """Versions of all that the arrays depend on, where it is installed."""
    found = {"lamm": __version__, "python": platform.python_version()}
    for name in ("torch", "numpy", "umap-learn", "numba", "chemiscope"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def axis_names(numbers: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Names of the axes of each projection, from `measures`; those of PCA say their variance."""
    share = [*numbers["pca_variance_share"], 0.0]
    return {
        "umap": ("UMAP 1", "UMAP 2"),
        "pca": (
            f"PCA 1 ({100 * share[0]:.0f}% of the variance)",
            f"PCA 2 ({100 * share[1]:.0f}% of the variance)",
        ),
    }
