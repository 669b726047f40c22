r"""Numbers of a structure that no turning, shifting, wrapping or reordering of its atoms changes.

Three lengths (Å) each. Of a molecule they are weighted spreads about the weighted centre,

.. math:: q_k = (\sum_i w_k(Z_i) |r_i - c_k|^{p_k} / \sum_i w_k(Z_i))^{1/p_k},

and of a crystal sums of structure factors :math:`|\sum_j w_k(Z_j) \exp(2 \pi i\, h \cdot f_j)|`
times a length of its cell. Atoms that move by at most t change them by about t at most, so copies
of a structure lie next to each other when structures are sorted by one of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lamm.data.doctor.blocks import Block

_RANDOM = np.random.default_rng(2506)
_ELEMENT_WORDS = _RANDOM.integers(1, 2**63, 256, dtype=np.uint64) | np.uint64(1)
_WEIGHTS = _RANDOM.uniform(0.5, 1.5, (3, 256))
_POWERS = (2, 4, 1)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WAVES = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [2, 1, 1], [1, -1, 2]]
)
_WAVE_WEIGHTS = _RANDOM.uniform(0.5, 1.0, (3, len(_WAVES)))
_LEAST_FORCE = 1e-3
"""eV/Å; structures whose forces are all smaller agree by rounding."""
_FORCE_GRID = 1e-5
"""eV/Å; forces are compared after rounding to it. Files have 5 to 8 decimals."""


class Fingerprints(NamedTuple):
    """Of the structures of a block."""

    composition: NDArray[np.uint64]
    """(S,) the same for structures of the same atoms, in any order."""
    order: NDArray[np.uint64]
    """(S,) the same for structures of the same atoms in the same order."""
    lengths: NDArray[np.float64]
    """(S, 3) Å."""
    forces: NDArray[np.uint64]
    """(S,) of the forces' values, 0 without forces or with very small ones."""


def fingerprints(block: Block) -> Fingerprints:
    """Fingerprints of the structures of a block."""
    words = _ELEMENT_WORDS[block.numbers]
    mixed = _mix(block.place.astype(np.uint64))
    salt = _mix(block.pbc @ np.array([1, 2, 4], dtype=np.uint64) + np.uint64(1))
    return Fingerprints(
        composition=block.sum(words) + salt,
        order=block.sum(words * mixed) + salt,
        lengths=_lengths(block),
        forces=_force_hash(block, mixed),
    )


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Well-spread 64-bit numbers of small ones."""
    mixed = (numbers + np.uint64(1)) * _GOLDEN
    mixed ^= mixed >> np.uint64(29)
    return mixed | np.uint64(1)


def _force_hash(block: Block, mixed: NDArray[np.uint64]) -> NDArray[np.uint64]:
    bounded = np.clip(np.nan_to_num(block.forces), -1e9, 1e9)
    rounded = np.rint(bounded / _FORCE_GRID).astype(np.int64).view(np.uint64)
    along = rounded * np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D], dtype=np.uint64)
    words = block.sum(along.sum(axis=1, dtype=np.uint64) * mixed)
    return np.where(block.max(np.abs(bounded).max(axis=1)) > _LEAST_FORCE, words, np.uint64(0))


def _lengths(block: Block) -> NDArray[np.float64]:
    lengths = np.zeros((len(block.sizes), 3))
    periodic = block.periodic
    for k, power in enumerate(_POWERS):
        weights = _WEIGHTS[k][block.numbers]
        total = block.sum(weights)
        centre = block.sum(weights[:, None] * block.positions) / total[:, None]
        distance = np.linalg.norm(block.positions - centre[block.owner], axis=1)
        lengths[:, k] = (block.sum(weights * distance**power) / total) ** (1 / power)
    if periodic.any():
        lengths[periodic] = _crystal_lengths(block)[periodic]
    return lengths


def _crystal_lengths(block: Block) -> NDArray[np.float64]:
    """(S, 3); of structures that aren't periodic, without a meaning."""
    cell = completed_cells(block.cell, block.pbc)
    fractional = np.einsum("ni,nij->nj", block.positions, np.linalg.inv(cell)[block.owner])
    # Along a direction that doesn't repeat, a slow wave about the middle: nothing wraps there.
    middle = block.sum(fractional) / block.sizes[:, None]
    open_axis = ~block.pbc[block.owner]
    span = np.abs(np.linalg.det(cell)) ** (1 / 3)
    waves = np.exp(2j * np.pi * np.where(open_axis, 0.0, fractional))
    lengths = np.zeros((len(block.sizes), 3))
    for k in range(3):
        weights = _WEIGHTS[k][block.numbers]
        total = block.sum(weights)
        for wave, share in zip(_WAVES, _WAVE_WEIGHTS[k], strict=True):
            phase = np.prod(waves ** wave[None, :], axis=1)
            lengths[:, k] += share * np.abs(block.sum(weights * phase)) / total
        lengths[:, k] *= span / (2 * np.pi)
        edges = np.linalg.norm(np.where(block.pbc[:, :, None], block.cell, 0.0), axis=2)
        lengths[:, k] += edges @ _WAVE_WEIGHTS[k][:3]
        away = np.where(open_axis, fractional - middle[block.owner], 0.0)
        lengths[:, k] += np.sqrt(block.sum(weights[:, None] * away**2).sum(axis=1) / total)
    return lengths


def completed_cells(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(S, 3, 3) cells whose vectors along open directions are of unit length and perpendicular.

    So fractional coordinates along them are lengths, and periodic ones don't depend on what a
    source wrote for a vector that doesn't repeat. Cells that don't span space become unit cells.
    """
    done = np.where(pbc[:, :, None], cell, 0.0)
    done[~pbc.any(axis=1)] = np.eye(3)
    for row in np.flatnonzero(pbc.any(axis=1) & ~pbc.all(axis=1)):
        held = done[row][pbc[row]]
        _, _, directions = np.linalg.svd(held)
        done[row][~pbc[row]] = directions[len(held) :]
    determinant = np.linalg.det(np.nan_to_num(done))
    done[~np.isfinite(done).all(axis=(1, 2)) | (np.abs(determinant) < 1e-9)] = np.eye(3)
    return done
