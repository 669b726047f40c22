"""A whole epoch planned window by window: how soon the first step is there, time and memory.

The structures are those of the paper's Table 2, as many as asked for; all of them make an epoch of
432 million uses. Nothing but the index is held, as in a run.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer

from lamm.balance.columns import Coarse, Computed, Joined, coarse, constant
from lamm.balance.cost import likely_edges, structure_cost
from lamm.balance.plan import PlanIndex, epoch_windows, join_windows
from lamm.balance.population import TABLE_2, SubsetCounts, atom_counts, atoms_key, subset_sizes
from lamm.balance.uses import Window
from lamm.balance.windows import EpochWindows
from lamm.bench.balance import COST_MODELS, CostModel
from lamm.bench.timing import provenance
from lamm.data.sampling import SamplingConfig

_AT_ONCE = 2**20
_WEIGHED = 64
_LOOK_SECONDS = 0.25
"""How often memory is looked at."""


def table_2_index(structures: int, model: CostModel, seed: int = 0) -> PlanIndex:
    """The plan index of Table 2's population, held as a run holds it: two bytes a structure.

    Args:
        structures: how many in all, about.
        model: what a structure costs.
        seed: of the numbers of atoms.
    """
    sizes = subset_sizes(structures)
    tables = [_costs_by_atoms(row, model) for row in TABLE_2]
    costs = (
        table[atom_counts(row, min(_AT_ONCE, size - first), atoms_key(row, seed), first)]
        for row, size, table in zip(TABLE_2, sizes, tables, strict=True)
        for first in range(0, size, _AT_ONCE)
    )

    def labels(values: Iterable[bool]) -> Joined:
        return Joined([constant(value, size) for value, size in zip(values, sizes, strict=True)])

    return PlanIndex(
        ids=Computed(sum(sizes), lambda places: places),
        subset=Joined([constant(np.uint8(d), size) for d, size in enumerate(sizes)]),
        cost=coarse(costs, sum(sizes), max(int(table.max()) for table in tables)),
        has_energy=labels(row.has_energy for row in TABLE_2),
        has_forces=labels(row.has_forces for row in TABLE_2),
    )


def _costs_by_atoms(row: SubsetCounts, model: CostModel) -> Integer[np.ndarray, " atoms"]:
    """Cost of a structure of a subset by its number of atoms."""
    atoms = np.arange(row.most_atoms + 1)
    periodic = np.full(len(atoms), row.periodic)
    edges = likely_edges(atoms, periodic, model.max_neighbors)
    return structure_cost(
        atoms, edges, max_neighbors=model.max_neighbors, edge_share=model.edge_share
    )


class MemoryWatch:
    """The most memory that this process and its children had together while it was open.

    Pages that processes share count once (the kernel's proportional set size).
    """

    def __init__(self) -> None:
        self.most_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.is_set():
            self.most_bytes = max(self.most_bytes, _shared_out_bytes())
            self._over.wait(_LOOK_SECONDS)


def _shared_out_bytes() -> int:
    """Bytes of this process and its children; 0 where the system doesn't say (not Linux)."""
    own = os.getpid()
    children = Path(f"/proc/{own}/task/{own}/children")
    if not children.exists():
        return 0
    processes = [own, *map(int, children.read_text().split())]
    return sum(_set_size(process) for process in processes)


def _set_size(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has ended meanwhile
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


class _Seen(NamedTuple):
    """What was found in the windows of an epoch."""

    uses: int
    steps: int
    imbalance: float
    """Largest over mean load of a rank, summed over the steps of some windows."""


def _go_through(windows: Iterable[Window], index: PlanIndex) -> _Seen:
    """Count what windows hold; loads are summed for one window in `_WEIGHED`, to save time."""
    uses, steps, slowest, mean = 0, 0, 0.0, 0.0
    for number, window in enumerate(windows):
        uses += len(window.entries)
        steps += len(window.counts)
        if number % _WEIGHED == 0:
            load = join_windows([window], index).rank_load(index.cost[window.entries])
            slowest += float(load.max(axis=1).sum())
            mean += float(load.mean(axis=1).sum())
    return _Seen(uses, steps, slowest / mean)


def bench_planning(
    structures: int,
    *,
    ranks: int,
    batch_size: int,
    planner: str = "balanced",
    processes: int = 2,
    seed: int = 0,
    temperature: float = 2.0,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Plan an epoch of Table 2's population from its first window to its last.

    Args:
        structures: how many in all, each counted once.
        ranks: W.
        batch_size: B.
        planner: a name in `lamm.balance.plan.PLANNERS`.
        processes: how many plan at once.
        seed: of the population and the plan.
        temperature: T.
        progress: told what happens next.

    Returns:
        ``settings``; ``index_seconds`` and ``index_bytes``; ``first_step_seconds`` until the first
        window is there; ``seconds`` for all; ``ms_per_step`` and ``us_per_use`` of wall time;
        ``most_bytes`` of all processes together while planning, ``None`` where the system doesn't
        say; ``uses`` and ``steps`` that came out, and the ``imbalance`` of one window in 64;
        versions, device and seed.
    """
    model = COST_MODELS["S"]
    begun = time.perf_counter()
    progress(f"index of {structures:,} structures")
    index = table_2_index(structures, model, seed)
    index_seconds = time.perf_counter() - begun

    def windows() -> EpochWindows:
        return epoch_windows(
            index,
            SamplingConfig(temperature=temperature),
            seed=seed,
            epoch=0,
            ranks=ranks,
            batch_size=batch_size,
            planner=planner,
        )

    begun = time.perf_counter()
    first_uses = len(windows()[0].entries)
    first_step_seconds = time.perf_counter() - begun
    progress("first window planned; the epoch")
    with MemoryWatch() as watch:
        begun = time.perf_counter()
        seen = _go_through(windows().in_parallel(processes), index)
        seconds = time.perf_counter() - begun
    return {
        "settings": {
            "structures": len(index),
            "ranks": ranks,
            "batch_size": batch_size,
            "planner": planner,
            "processes": processes,
            "temperature": temperature,
        },
        "index_seconds": index_seconds,
        "index_bytes": index.cost.codes.nbytes if isinstance(index.cost, Coarse) else None,
        "first_step_seconds": first_step_seconds,
        "first_window_uses": first_uses,
        "seconds": seconds,
        "ms_per_step": 1e3 * seconds / seen.steps,
        "us_per_use": 1e6 * seconds / seen.uses,
        "most_bytes": watch.most_bytes or None,
        "uses": seen.uses,
        "steps": seen.steps,
        "imbalance": seen.imbalance,
        **provenance(seed),
    }


def lines_of(result: dict[str, Any]) -> list[str]:
    """The result of `bench_planning` for a person."""
    settings, most = result["settings"], result["most_bytes"]
    memory = "" if most is None else f", {most / 2**30:.2f} GiB in all processes together"
    return [
        f"{settings['structures']:,} structures, {result['uses']:,} uses an epoch, "
        f"{result['steps']:,} steps of {settings['ranks']} x {settings['batch_size']}; planner "
        f"{settings['planner']}, {settings['processes']} processes",
        f"index made in {result['index_seconds']:.1f} s; the first step is planned after "
        f"{result['first_step_seconds']:.3f} s",
        f"the epoch is planned in {result['seconds']:.1f} s ({result['ms_per_step']:.3f} ms a "
        f"step, {result['us_per_use']:.3f} us a use){memory}",
        f"imbalance {result['imbalance']:.4f}",
    ]
