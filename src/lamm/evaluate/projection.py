"""Two axes for features of many dimensions, and numbers that say what a picture of them can't.

A map by UMAP shows neighbourhoods and distorts everything else, so that the measures are taken in
the space of the features themselves.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from lamm.errors import ConfigError
from lamm.evaluate.extras import UMAP, require_extras

_BLOCK = 1024
"""Rows of the matrix of distances that are there at once."""


class PrincipalAxes(NamedTuple):
    """Principal component analysis of features."""

    projection: np.ndarray
    """(n, 2) coordinates on the two axes of largest variance, in the features' own scale."""
    variance_share: np.ndarray
    """(C,) share of the variance of each axis, falling; they add up to 1."""


class Separation(NamedTuple):
    """How well a labelling shows in the features."""

    purity: float
    """Mean share of an atom's nearest neighbours that have its label, 0 to 1."""
    chance: float
    """What labels dealt out at random would give."""
    silhouette: float
    """Mean silhouette (Rousseeuw 1987), -1 to 1; 0 where there is one label."""


def principal_axes(features: Float[np.ndarray, "n channels"]) -> PrincipalAxes:
    """Project on the two axes of largest variance.

    The covariance is summed and diagonalised in float64. An axis points to where its largest
    component is positive, so that the same features always give the same picture.

    Args:
        features: of at least two atoms.
    """
    centred = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    variance, axes = np.linalg.eigh(centred.T @ centred / max(len(features) - 1, 1))
    variance, axes = np.maximum(variance[::-1], 0), axes[:, ::-1]
    if axes.shape[1] < 2:  # a single channel has a single axis
        axes = np.pad(axes, ((0, 0), (0, 1)))
    two = axes[:, :2]
    largest = np.take_along_axis(two, np.abs(two).argmax(axis=0)[None], axis=0)
    two = two * np.where(largest < 0, -1.0, 1.0)
    total = variance.sum()
    share = variance / total if total > 0 else np.full(len(variance), 1 / len(variance))
    return PrincipalAxes(centred @ two, share)


def require_umap() -> None:
    """Stop where UMAP isn't installed.

    Raises:
        ConfigError: it isn't.
    """
    require_extras(UMAP)


def umap_projection(
    features: Float[np.ndarray, "n channels"],
    *,
    neighbors: int = 15,
    min_distance: float = 0.1,
    seed: int = 0,
) -> Float[np.ndarray, "n 2"]:
    """Map features to two dimensions by UMAP (McInnes et al. 2018), as Fig. 8 does.

    With a seed UMAP uses one thread and gives the same map each time on the same machine and
    versions.

    Args:
        features: of at least four atoms.
        neighbors: how many neighbours of an atom the map keeps together.
        min_distance: how close points may come in the map.
        seed: of the optimisation.

    Raises:
        ConfigError: umap-learn isn't installed, or there are too few atoms.
    """
    require_umap()
    import umap

    if len(features) < 4:
        raise ConfigError(f"{len(features)} atoms are too few for UMAP. Take --projection pca.")
    reducer = umap.UMAP(
        n_neighbors=min(neighbors, len(features) - 1),
        min_dist=min_distance,
        random_state=seed,
        n_jobs=1,
        init="spectral" if len(features) > 20 else "random",
    )
    result: np.ndarray = np.asarray(reducer.fit_transform(features), dtype=np.float64)
    return result


def separation(
    features: Float[np.ndarray, "n channels"], labels: Int[np.ndarray, " n"], neighbors: int = 10
) -> Separation:
    """How far atoms of one label lie together, by Euclidean distance of their features.

    Args:
        features: of n atoms.
        labels: of the same atoms, any integers.
        neighbors: how many nearest other atoms count for the purity.
    """
    n = len(features)
    _, code, count = np.unique(labels, return_inverse=True, return_counts=True)
    if n < 2:
        return Separation(1.0, 1.0, 0.0)
    k = min(neighbors, n - 1)
    is_of = np.eye(len(count))[code]  # (n, L)
    purity, silhouette = np.zeros(n), np.zeros(n)
    for start in range(0, n, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, n))
        distance = _distances(features, rows)  # (rows, n), zero to itself
        sums = distance @ is_of
        silhouette[rows] = _silhouettes(sums, code[rows], count)
        distance[np.arange(len(rows)), rows] = np.inf
        nearest = np.argpartition(distance, k - 1, axis=1)[:, :k]
        purity[rows] = (code[nearest] == code[rows][:, None]).mean(axis=1)
    chance = float((count * (count - 1)).sum() / (n * (n - 1)))
    return Separation(float(purity.mean()), chance, float(silhouette.mean()))


def subset_separation_within_elements(
    features: Float[np.ndarray, "n channels"],
    subset: Int[np.ndarray, " n"],
    element: Int[np.ndarray, " n"],
    neighbors: int = 10,
) -> Separation:
    """How well subsets separate among atoms of the same element, the mean over atoms.

    The element alone tells many subsets apart; this is what the surroundings add. Elements that
    only one subset has are left out; NaN where that leaves none.
    """
    parts: list[tuple[int, Separation]] = []
    for number in np.unique(element):
        chosen: Bool[np.ndarray, " n"] = element == number
        if len(np.unique(subset[chosen])) > 1:
            one = separation(features[chosen], subset[chosen], neighbors)
            parts.append((int(chosen.sum()), one))
    if not parts:
        return Separation(float("nan"), float("nan"), float("nan"))
    weights = [size for size, _ in parts]
    return Separation(*(np.average([one for _, one in parts], axis=0, weights=weights).tolist()))


def _distances(
    features: Float[np.ndarray, "n channels"], rows: Int[np.ndarray, " rows"]
) -> Float[np.ndarray, "rows n"]:
    """Euclidean distances of some atoms to all."""
    values = features.astype(np.float64)
    values -= values.mean(axis=0)  # products of small numbers lose less
    squares = (values**2).sum(axis=1)
    result = squares[rows, None] + squares[None] - 2 * values[rows] @ values.T
    result[np.arange(len(rows)), rows] = 0
    distances: np.ndarray = np.sqrt(np.maximum(result, 0))
    return distances


def _silhouettes(
    sums: Float[np.ndarray, "rows labels"],
    code: Int[np.ndarray, " rows"],
    count: Int[np.ndarray, " labels"],
) -> Float[np.ndarray, " rows"]:
    """(b - a) / max(a, b) of mean distances to the own label (a) and the nearest other (b)."""
    rows = np.arange(len(code))
    if len(count) < 2:
        return np.zeros(len(code))
    own = sums[rows, code] / np.maximum(count[code] - 1, 1)
    means = sums / count
    means[rows, code] = np.inf
    other = means.min(axis=1)
    larger = np.maximum(own, other)
    valid = (count[code] > 1) & (larger > 0)
    return np.where(valid, (other - own) / np.where(larger > 0, larger, 1), 0.0)
