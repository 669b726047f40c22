"""What a structure costs in a training step, as an integer (Sec. 3.4: load balancing).

A step spends time on atoms and on edges. Both kinds of work are counted in units of 1/256 of an
atom that has all the neighbours it can have, so that sums are exact and the same on any machine.
"""

import math

import numpy as np
from jaxtyping import Bool, Int64, Integer

from lamm.errors import ConfigError

COST_UNIT = 256
"""Cost of one atom with `max_neighbors` edges."""
PEAK_MARGIN = 1.03
"""Largest load of a rank in a `balanced` plan, over the mean load, where B is 6 or more."""
FAST_SHARE = 0.9
"""Of the speed that endless batches would have, what a batch size that is found reaches."""


def structure_cost(
    num_atoms: Integer[np.ndarray, " structures"],
    num_edges: Integer[np.ndarray, " structures"],
    *,
    max_neighbors: int,
    edge_share: float,
) -> Int64[np.ndarray, " structures"]:
    r"""Cost of each structure: work per atom plus work per edge.

    .. math:: c = n \left( (1 - f) + f \frac{E}{n k} \right)

    Args:
        num_atoms: n.
        num_edges: E, directed edges within the cutoff; counted as k n where there are more.
        max_neighbors: k, the most neighbours that the model gives an atom.
        edge_share: f, the share of a fully connected atom's cost that its edges cause.

    Returns:
        c in units of 1 / `COST_UNIT`, at least 1.

    Raises:
        ConfigError: a limit of neighbours below 1, or a share outside of 0 to 1.
    """
    if max_neighbors < 1 or not 0 <= edge_share <= 1:
        raise ConfigError(
            f"cost model with max_neighbors={max_neighbors} and edge_share={edge_share}; "
            "expected at least 1 neighbour and a share from 0 to 1."
        )
    atoms = np.asarray(num_atoms, dtype=np.int64)
    edges = np.minimum(np.asarray(num_edges, dtype=np.int64), max_neighbors * atoms)
    share = round(edge_share * 2**16)
    work = atoms * ((2**16 - share) * max_neighbors) + edges * share
    unit = max_neighbors * 2**16 // COST_UNIT
    cost: Int64[np.ndarray, " structures"] = np.maximum((work + unit // 2) // unit, 1)
    return cost


def likely_edges(
    num_atoms: Integer[np.ndarray, " structures"],
    periodic: Bool[np.ndarray, " structures"],
    max_neighbors: int,
) -> Int64[np.ndarray, " structures"]:
    """Edge counts where none were stored: all neighbours allowed, or all other atoms if fewer.

    Args:
        num_atoms: atoms of each structure.
        periodic: whether it repeats, so that every atom has neighbours enough.
        max_neighbors: the most neighbours that the model gives an atom.

    Returns:
        Directed edges of each structure.
    """
    atoms = np.asarray(num_atoms, dtype=np.int64)
    neighbors = np.where(periodic, max_neighbors, np.minimum(atoms - 1, max_neighbors))
    return atoms * neighbors


def largest_batch_size(load_budget: float, mean_cost: float) -> int:
    """Structures per rank whose peak load stays within a budget, if it is `PEAK_MARGIN` means.

    Args:
        load_budget: cost that a rank may have, in the unit of `mean_cost`.
        mean_cost: mean cost of the structures that an epoch uses.

    Returns:
        B; 0 where not even one structure of mean cost fits.
    """
    return max(math.floor(load_budget / (PEAK_MARGIN * mean_cost)), 0)


def fast_batch_size(fixed: float, each: float) -> int:
    r"""The structures from which more of them in a step make it hardly faster per structure.

    The smallest power of two B with

    .. math:: B t \ge \eta (t_0 + B t)

    Args:
        fixed: t_0, seconds of a step without structures.
        each: t, seconds that a structure of mean size adds.

    Returns:
        B, for which the step has the share eta, `FAST_SHARE`, of the speed of an endless one.
    """
    needed = fixed / max(each, 1e-12) * FAST_SHARE / (1 - FAST_SHARE)
    return int(2 ** math.ceil(math.log2(max(needed, 1.0))))
