"""Denoising without labels: noise on the positions, its negative as forces (Sec. 3.3, Fig. 3).

The noise of a structure is a function of the run's seed, of the pass over the data, and of the
structure's id. So any number of workers, ranks and resumed runs sees the same noise.
"""

import math
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from pydantic import field_validator, model_validator
from torch import Tensor

from lamm.data.elastic import elastic_labels
from lamm.keyed import key_of
from lamm.schema import Frozen
from lamm.structure import Structure

_SINGULAR = 1e-8
"""Of the largest moment of inertia; a smaller one is that of a line's own axis."""


class DenoisingConfig(Frozen):
    """Noise of a subset that is trained without labels."""

    std: float | tuple[float, float] = 0.1
    """Å; standard deviation of the noise on each coordinate. Of two, least and largest, each
    structure draws its own in each pass, uniformly in the logarithm."""
    centred: bool = True
    """Whether each structure's mean displacement is removed (Fig. 3b); false is the baseline of
    Fig. 3(a)."""
    turned: bool = True
    """Whether the noise may also turn a structure, which can't be seen either; false removes that
    from the noise of structures that aren't periodic (`without_rotation`)."""
    labels: Literal["displacement", "elastic", "displacement_and_energy"] = "displacement"
    """``displacement``: the way back, in Å, in place of forces (Sec. 3.3). ``elastic``: energy and
    forces of an elastic network that is at rest in the structure as it is (`lamm.data.elastic`).
    ``displacement_and_energy``: the way back in place of forces, and the energy of that network;
    for models with a head of their own for forces."""

    @field_validator("std", mode="before")
    @classmethod
    def _one_size_or_two(cls, found: Any) -> float | tuple[float, float]:
        try:
            least, largest = found if isinstance(found, (list, tuple)) else (found, found)
            sizes = float(least), float(largest)
        except (TypeError, ValueError):
            sizes = (math.nan, math.nan)
        if not 0 < sizes[0] <= sizes[1] < math.inf:
            raise ValueError(
                f"found {found!r}, expected a number greater than 0, in Å, or two such numbers, "
                "the least first"
            )
        return sizes if isinstance(found, (list, tuple)) else sizes[0]

    @model_validator(mode="after")
    def _turns_what_is_centred(self) -> "DenoisingConfig":
        if not self.turned and not self.centred:
            raise ValueError(
                "`turned: false` needs `centred: true`: a rotation is about the centre"
            )
        return self

    @property
    def std_range(self) -> tuple[float, float]:
        """Least and largest standard deviation in Å, the same where there is one."""
        return self.std if isinstance(self.std, tuple) else (self.std, self.std)

    @property
    def rms_std(self) -> float:
        r"""Root mean square of the noise on a coordinate over many structures, in Å.

        Of standard deviations from a to b, uniform in their logarithm,
        :math:`\sqrt{(b^2 - a^2) / (2 \ln(b / a))}`.
        """
        least, largest = self.std_range
        if least == largest:
            return least
        return math.sqrt((largest**2 - least**2) / (2 * math.log(largest / least)))

    @property
    def gives_energy(self) -> bool:
        """Whether there is an energy label, in eV."""
        return self.labels != "displacement"

    @property
    def gives_displacement(self) -> bool:
        """Whether displacements, in Å, are in place of forces."""
        return self.labels != "elastic"


def center_noise(
    noise: Float[Tensor, "atoms 3"], structure_index: Int[Tensor, " atoms"], num_structures: int
) -> Float[Tensor, "atoms 3"]:
    r"""Remove each structure's mean displacement from its noise (Sec. 3.3, Fig. 3b).

    A model that sees only relative positions cannot tell a shifted structure from the original, so
    the mean is a label that it could never predict:

    .. math:: \Delta x_i \leftarrow \Delta x_i - \frac{1}{N} \sum_j \Delta x_j

    Args:
        noise: displacement of each atom, in Å.
        structure_index: the structure that each atom belongs to, ascending from 0.
        num_structures: how many structures there are, empty ones included.

    Returns:
        Displacements in Å that sum to zero in every structure.
    """
    total = noise.new_zeros(num_structures, 3).index_add_(0, structure_index, noise)  # (B, 3)
    num_atoms = torch.bincount(structure_index, minlength=num_structures)  # (B,)
    mean = total / num_atoms.clamp(min=1)[:, None].to(noise)
    return noise - mean[structure_index]  # (N, 3)


def without_rotation(
    noise: Float64[np.ndarray, "atoms 3"], positions: Float64[np.ndarray, "atoms 3"]
) -> Float64[np.ndarray, "atoms 3"]:
    r"""Remove what turns a structure as a whole from its noise, to first order.

    As with the mean, a model that is equivariant cannot tell a turned structure from the original.
    With :math:`r_i` from the centre of the atoms and I their tensor of inertia at unit masses,

    .. math::

        \Delta x_i \leftarrow \Delta x_i - \omega \times r_i, \quad
        \omega = I^{-1} \sum_j r_j \times \Delta x_j

    Args:
        noise: displacement of each atom in Å, their mean removed.
        positions: where the atoms were, in Å.

    Returns:
        Displacements in Å without angular momentum; the noise of a linear molecule still bends it.
    """
    arms = positions - positions.mean(axis=0)
    squares = np.square(arms).sum()
    inertia = squares * np.eye(3) - arms.T @ arms  # (3, 3)
    angular = np.cross(arms, noise).sum(axis=0)
    turn = np.linalg.pinv(inertia, rcond=_SINGULAR, hermitian=True) @ angular
    return noise - np.cross(turn, arms)


def draw_std(id_hash: int, config: DenoisingConfig, seed: int, epoch: int) -> float:
    """Standard deviation of a structure's noise, in Å.

    Args:
        id_hash: `lamm.data.splits.hash_id` of the structure.
        config: the range to draw from.
        seed: seed of the run.
        epoch: which draw.
    """
    least, largest = config.std_range
    if least == largest:
        return least
    uniform = (key_of("std", seed, epoch, id_hash) >> 11) * 2.0**-53  # in [0, 1)
    return float(least * (largest / least) ** uniform)


def draw_noise(
    id_hash: int, num_atoms: int, std: float, seed: int, epoch: int
) -> Float64[np.ndarray, "atoms 3"]:
    """Gaussian noise of one structure, before centring.

    The bits are those of the Philox counter generator (Salmon et al. 2011), which are fixed; the
    step to Gaussian numbers (Box and Muller 1958) is written out, as a library may change its own.

    Args:
        id_hash: `lamm.data.splits.hash_id` of the structure.
        num_atoms: N.
        std: standard deviation in Å.
        seed: seed of the run.
        epoch: which draw: the pass over the subset, or the fixed one of validation.

    Returns:
        (N, 3) in Å.
    """
    key = np.array([key_of("noise", seed, epoch, id_hash), id_hash], dtype=np.uint64)
    count = 3 * num_atoms
    bits = np.random.Philox(key=key).random_raw(2 * ((count + 1) // 2)).reshape(2, -1)
    uniform = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53  # in [0, 1)
    radius = np.sqrt(-2.0 * np.log1p(-uniform[0]))
    angle = 2.0 * np.pi * uniform[1]
    normal = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:count]
    return std * normal.reshape(num_atoms, 3)


def denoising_structure(
    structure: Structure, id_hash: int, config: DenoisingConfig, seed: int, epoch: int
) -> Structure:
    """The structure with noise on its positions and the way back as its forces.

    The label is the negative of the displacement, in Å, and takes the place of forces in the loss
    (Sec. 3.3); there may be energy, or energy and forces, of an elastic network. Labels of the
    structure itself are left out; all atoms move, so none is fixed.

    Args:
        structure: where the noise is put on.
        id_hash: `lamm.data.splits.hash_id` of the structure.
        config: size of the noise, and whether it is centred.
        seed: seed of the run.
        epoch: which draw.

    Returns:
        A structure with float64 positions and forces.
    """
    std = draw_std(id_hash, config, seed, epoch)
    noise = draw_noise(id_hash, structure.num_atoms, std, seed, epoch)
    if config.centred:
        one_structure = torch.zeros(structure.num_atoms, dtype=torch.int64)
        noise = center_noise(torch.from_numpy(noise), one_structure, 1).numpy()
    if not config.turned and not structure.pbc.any():
        noise = without_rotation(noise, structure.positions.astype(np.float64))
    energy, forces = None, -noise
    if config.gives_energy:
        energy, elastic_forces = elastic_labels(structure, noise)
        forces = forces if config.gives_displacement else elastic_forces
    return replace(
        structure,
        positions=structure.positions.astype(np.float64) + noise,
        energy=energy,
        forces=forces,
        stress=None,
        fixed=None,
    )
