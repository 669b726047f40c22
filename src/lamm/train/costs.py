"""What a step costs: time and memory by atoms and edges, fitted to a few real steps (Sec. 3.4).

Steps of several sizes and kinds of structures are done with the model at hand on the device at
hand, and thrown away. The fit is kept in the run folder: a run that is resumed, or goes on with
another number of ranks, plans with the same costs.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import NonNegativeFloat
from scipy.optimize import nnls
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lamm.data.joint import JointDataset
from lamm.data.loader import PlannedBatches
from lamm.errors import BadAnswerError, ConfigError
from lamm.files import write_json
from lamm.graph.batch import GraphBatch
from lamm.keyed import key_of, shuffled
from lamm.models.potential import Potential
from lamm.schema import Frozen, parse
from lamm.train.memory import is_out_of_memory, release_memory

logger = logging.getLogger(__name__)

COSTS = "costs.json"
LOADS = (2, 8, 32)
"""Structures of the batches that are measured, of each kind."""
REPEATS = 3
"""Timed steps of each batch, after one that warms up."""
MIN_BATCHES = 6
"""Batches that are measured however long they take."""


class LinearCost(Frozen):
    """base + per_atom * atoms + per_edge * edges."""

    base: NonNegativeFloat
    per_atom: NonNegativeFloat
    per_edge: NonNegativeFloat
    error: NonNegativeFloat
    """Median relative error over the measured batches."""

    def of(self, atoms: ArrayLike, edges: ArrayLike) -> NDArray[np.float64]:
        """The cost of a batch, or of each of several."""
        atoms, edges = np.asarray(atoms, dtype=np.float64), np.asarray(edges, dtype=np.float64)
        return self.base + self.per_atom * atoms + self.per_edge * edges


class StepCosts(Frozen):
    """Fitted time in seconds and memory in bytes of forward and backward on one rank."""

    format_version: Literal[1] = 1
    model: dict[str, Any]
    """What was measured; costs of another model are refused."""
    device: str
    threads: int
    precision: str
    seconds: LinearCost
    bytes: LinearCost
    """Of what a step allocates, beside `resident`."""
    resident: NonNegativeFloat
    """Bytes that are there before and after a step: weights, averages, optimizer, the process."""
    batches: list[dict[str, float]]
    """atoms, edges, seconds and bytes of each measured batch."""

    def edge_share(self, max_neighbors: int) -> float:
        """Share of a fully connected atom's time that its edges cause, as planning wants it."""
        edges = self.seconds.per_edge * max_neighbors
        total = self.seconds.per_atom + edges
        return round(edges / total, 4) if total > 0 else 0.0

    def r_squared(self, what: Literal["seconds", "bytes"]) -> float:
        """Share of the variance of the measured batches that the fit explains."""
        atoms, edges, values = np.array(
            [[one["atoms"], one["edges"], one[what]] for one in self.batches]
        ).T
        fitted = (self.seconds if what == "seconds" else self.bytes).of(atoms, edges)
        return float(1 - ((values - fitted) ** 2).sum() / ((values - values.mean()) ** 2).sum())


class Prior(NamedTuple):
    """What is expected of the share of edges where the measured batches can't tell."""

    edge_share: float
    """Of the cost of an atom with all neighbours."""
    max_neighbors: int
    """How many those are."""
    width: float = 0.25
    """Standard deviation of the share."""


def fit(batches: Sequence[dict[str, float]], what: str, prior: Prior | None = None) -> LinearCost:
    """Non-negative least squares, errors weighted by 1 / sqrt(value).

    Between relative errors, by which the small batches would decide, and absolute ones, by which
    the largest alone would. Atoms and edges often go together, and noise alone would then decide
    which of them costs; a prior counts as much as the scatter of the measurements leaves open.

    Args:
        batches: atoms, edges, seconds and bytes of each.
        what: ``seconds`` or ``bytes``.
        prior: the expected share of edges; none where the values have no noise.

    Raises:
        BadAnswerError: too few batches, or nothing that grows with them.
    """
    columns = np.array([[1.0, one["atoms"], one["edges"]] for one in batches])
    values = np.array([one[what] for one in batches])
    if len(batches) < 3 or not (values > 0).all():
        raise BadAnswerError(
            f"{len(batches)} steps were measured ({what}: {values.tolist()}); expected at least "
            "three that cost something. Give `balance.batch_size` instead of a budget."
        )
    weight = 1 / np.sqrt(values)
    rows, right = columns * weight[:, None], values * weight
    found = _non_negative(rows, right)
    if prior is not None:
        left = right - rows @ found
        scatter = float(np.sqrt(np.square(left).sum() / max(len(values) - 3, 1)))
        full = found[1] + found[2] * prior.max_neighbors  # an atom with all neighbours
        if full > 0:
            share = prior.edge_share
            row = np.array([0.0, -share, (1 - share) * prior.max_neighbors])
            row *= scatter / (prior.width * full)
            found = _non_negative(np.vstack([rows, row]), np.append(right, 0.0))
    error = np.median(np.abs(columns @ found / values - 1))
    return LinearCost(base=found[0], per_atom=found[1], per_edge=found[2], error=error)


def _non_negative(rows: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Non-negative least squares of columns that may differ by orders of magnitude."""
    scale = np.abs(rows).max(axis=0).clip(min=1e-300)
    found: NDArray[np.float64] = nnls(rows / scale, right)[0] / scale
    return found


def sample_parts(joint: JointDataset, seed: int) -> Iterator[NDArray[np.int64]]:
    """Joint ids of the batches to be measured, small ones first.

    Of each load there is one batch of structures whose atoms have few neighbours, one of such with
    many, and one of any: so atoms and edges differ as much as the data allow.
    """
    ids = joint.ids("train")
    ids = ids[shuffled(len(ids), key_of("costs", seed))]
    degree = joint.num_edges[ids] / joint.num_atoms[ids]
    by_degree = ids[np.argsort(degree, kind="stable")]
    third = max(len(ids) // 3, 1)
    kinds = (by_degree[:third], by_degree[-third:], ids)
    taken = [0] * len(kinds)
    for load in LOADS:
        for number, kind in enumerate(kinds):
            start = taken[number]
            step = max(len(kind) // sum(LOADS), 1)
            places = (start + np.arange(load) * step) % len(kind)
            taken[number] += 1
            yield kind[places]


def measure(
    model: Potential,
    joint: JointDataset,
    step: Callable[[GraphBatch], None],
    device: torch.device,
    precision: str,
    prior: Prior,
    *,
    seed: int,
    seconds: float = 60.0,
) -> StepCosts:
    """Do some steps and fit their costs.

    Args:
        model: the potential, on its device, in training mode.
        joint: where the structures come from.
        step: forward and backward of a batch, whose gradients are thrown away.
        device: where the model is.
        precision: of the run.
        prior: the share of edges in the time, where the measurements leave it open.
        seed: of the choice of structures.
        seconds: a batch that would probably take longer than what is left of these is not begun,
            once there are six.

    Raises:
        BadAnswerError: not enough of them fit into the memory.
    """
    end = time.perf_counter() + seconds
    parts = [(part, np.zeros(len(part), dtype=np.int32)) for part in sample_parts(joint, seed)]
    dtype = next(model.parameters()).dtype
    prepared = PlannedBatches(joint, model.graph_config, dtype)
    batches: list[dict[str, float]] = []
    for part in parts:
        batch = prepared[part].to(device)
        if len(batches) >= MIN_BATCHES and _time_of(batch, batches[-1]) > end - time.perf_counter():
            break
        try:
            batches.append(_measure_batch(batch, step, device))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            break
        finally:
            model.zero_grad(set_to_none=True)
    release_memory(device)
    return StepCosts(
        model=model.describe(),
        device=_device_name(device),
        threads=torch.get_num_threads(),
        precision=precision,
        seconds=fit(batches, "seconds", prior),
        bytes=fit(batches, "bytes"),
        resident=float(resident_bytes(model, device)),
        batches=batches,
    )


def _time_of(batch: GraphBatch, before: dict[str, float]) -> float:
    """Seconds that a batch will probably take, all of its steps, by those of the one before."""
    larger = batch.num_edges / max(before["edges"], 1.0)
    return (REPEATS + 1) * before["seconds"] * max(larger, 1.0)


def _measure_batch(
    batch: GraphBatch, step: Callable[[GraphBatch], None], device: torch.device
) -> dict[str, float]:
    def call() -> None:
        step(batch)

    return {
        "atoms": float(len(batch.atomic_numbers)),
        "edges": float(batch.num_edges),
        "bytes": float(peak_bytes(call, device)),  # which also warms up
        "seconds": _seconds(call, device),
    }


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    """Shortest time of a few calls: what else the machine does can only lengthen it."""
    spent = []
    for _ in range(REPEATS):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        spent.append(time.perf_counter() - start)
    return min(spent)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(call: Callable[[], None], device: torch.device) -> int:
    """The most that a call has allocated at once, beyond what was there before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _peak_of_allocations(call)


def _peak_of_allocations(call: Callable[[], None]) -> int:
    """Largest sum of the tensors that a call has made and not yet freed, on a CPU.

    The peak of the process says nothing of a call, since the allocator keeps what was freed.
    """
    allocations = _Allocations()
    with allocations:
        call()
    return allocations.peak


class _Allocations(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it is active."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Do the operation, then count what is new of its results."""
        given = {one.untyped_storage()._cdata for one in _tensors((args, kwargs))}
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._alive and storage._cdata not in given:
                self._alive.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, place: int, size: int) -> None:
        self._alive.discard(place)
        self.now -= size


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def resident_bytes(model: Potential, device: torch.device) -> int:
    """What is there between steps: weights, gradients, two moments, averages; the process."""
    weights = sum(one.numel() * one.element_size() for one in model.parameters())
    return 5 * weights + (0 if device.type == "cuda" else _process_bytes())


def _process_bytes() -> int:
    """Memory that this process holds now, where the system tells, else the most it ever held."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return pages * os.sysconf("SC_PAGE_SIZE")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def free_bytes(device: torch.device) -> int:
    """Memory that the device could give to this process.

    Raises:
        ConfigError: the system doesn't say.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = next(line for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        raise ConfigError(
            "balance.memory is 'auto', and this system doesn't say how much memory is free. "
            "Write the amount, as `balance.memory=8GiB`."
        ) from None
    return int(found.split()[1]) * 1024


def save_costs(costs: StepCosts, run_dir: Path) -> None:
    """Keep the costs in a run folder."""
    write_json(run_dir / COSTS, costs.model_dump(mode="json"))


def read_costs(run_dir: Path, model: Potential) -> StepCosts | None:
    """The costs that a run folder keeps; None where it has none.

    Raises:
        ConfigError: the file isn't readable, or its costs are another model's.
    """
    path = run_dir / COSTS
    if not path.exists():
        return None
    try:
        costs = parse(StepCosts, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable ({error}). Remove it to measure again.") from None
    if costs.model != model.describe():
        raise ConfigError(
            f"{path}: these costs were measured with another model than the run's. "
            "Remove the file to measure again."
        )
    return costs


def hold_here(
    costs: StepCosts, device: torch.device, precision: str, *, speaks: bool = True
) -> bool:
    """Whether costs are this device's in this precision; if not, a rank that speaks says so."""
    here = _device_name(device), precision
    if (costs.device, costs.precision) == here:
        return True
    if speaks:
        logger.warning(
            "the costs in the run folder were measured on %s in %s, and this is %s in %s: they "
            "don't hold here",
            costs.device,
            costs.precision,
            *here,
        )
    return False
