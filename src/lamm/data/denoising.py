"""Denoising without labels: noise on the positions, its negative as forces (Sec. 3.3, Fig. 3).

The noise of a structure is a function of the run's seed, of the pass over the data, and of the
structure's id. So any number of workers, ranks and resumed runs sees the same noise.
"""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from pydantic import PositiveFloat
from torch import Tensor

from lamm.data.elastic import elastic_labels
from lamm.keyed import key_of
from lamm.schema import Frozen
from lamm.structure import Structure


class DenoisingConfig(Frozen):
    """Noise of a subset that is trained without labels."""

    std: PositiveFloat = 0.1
    """Å; standard deviation of the noise on each coordinate."""
    centred: bool = True
    """Whether each structure's mean displacement is removed (Fig. 3b); false is the baseline of
    Fig. 3(a)."""
    labels: Literal["displacement", "elastic"] = "displacement"
    """``displacement``: the way back, in Å, in place of forces (Sec. 3.3). ``elastic``: energy and
    forces of an elastic network that is at rest in the structure as it is
    (`lamm.data.elastic`)."""

    @property
    def is_elastic(self) -> bool:
        """Whether the labels are energies and forces, in eV and Å."""
        return self.labels == "elastic"


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
    (Sec. 3.3); or energy and forces of an elastic network. Labels of the structure itself are left
    out; all atoms move, so none is fixed.

    Args:
        structure: where the noise is put on.
        id_hash: `lamm.data.splits.hash_id` of the structure.
        config: size of the noise, and whether it is centred.
        seed: seed of the run.
        epoch: which draw.

    Returns:
        A structure with float64 positions and forces.
    """
    noise = draw_noise(id_hash, structure.num_atoms, config.std, seed, epoch)
    if config.centred:
        one_structure = torch.zeros(structure.num_atoms, dtype=torch.int64)
        noise = center_noise(torch.from_numpy(noise), one_structure, 1).numpy()
    energy, forces = None, -noise
    if config.is_elastic:
        energy, forces = elastic_labels(structure, noise)
    return replace(
        structure,
        positions=structure.positions.astype(np.float64) + noise,
        energy=energy,
        forces=forces,
        stress=None,
        fixed=None,
    )
