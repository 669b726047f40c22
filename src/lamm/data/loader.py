"""Plan and stores to batches on the device: the only place where the three meet.

Each rank reads its own part of each mini-batch. Graphs are built in worker processes, ahead of the
model; the batch that they hand over needs one copy to the device and nothing else.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from lamm.balance.plan import Plan
from lamm.data.joint import FIXED_NOISE, JointDataset
from lamm.errors import DataError, LaMMError
from lamm.graph.batch import GraphBatch
from lamm.graph.neighbors import GraphConfig
from lamm.graph.packing import PackedBatch, pack
from lamm.idle import wait_for_idle_threads

S = TypeVar("S")
T = TypeVar("T")
NICENESS = 10
"""By how much the processes that prepare batches stand behind the one that trains."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """What a process that prepares batches hands over in place of one that it couldn't make."""

    message: str


Part: TypeAlias = tuple[NDArray[np.int64], NDArray[np.int32]]
"""Joint ids and noise draws of the structures of a batch."""


class PlannedBatches(Dataset[GraphBatch]):
    """Batches of the structures that are asked for."""

    def __init__(
        self,
        joint: JointDataset,
        graph_config: GraphConfig,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.joint = joint
        self.graph_config = graph_config
        self.dtype = dtype

    def __getitem__(self, part: Part) -> GraphBatch:
        """Read the structures, draw their noise, build their graphs."""
        ids, draws = part
        structures = [
            self.joint.structure(int(joint_id), int(draw))
            for joint_id, draw in zip(ids, draws, strict=True)
        ]
        batch = GraphBatch.from_structures(
            structures,
            self.graph_config,
            dtype=self.dtype,
            subset_index=torch.from_numpy(self.joint.subset_of(ids)),
            ids=torch.from_numpy(np.asarray(ids, dtype=np.int64)),
        )
        # A subset may train on fewer labels than its store has.
        batch.has_energy &= torch.from_numpy(self.joint.has_energy[ids])
        batch.has_forces &= torch.from_numpy(self.joint.has_forces[ids])
        return batch


class _Handed(Dataset["PackedBatch | Unreadable"]):
    """The batches in the form in which processes hand them over, a fault of the data included."""

    def __init__(self, batches: PlannedBatches) -> None:
        self.batches = batches

    def __getitem__(self, part: Part) -> PackedBatch | Unreadable:
        """A batch as one block, or why it can't be had."""
        try:
            return pack(self.batches[part])
        except (LaMMError, OSError) as error:
            return Unreadable(str(error))


def _as_it_is(item: T) -> T:
    return item


def plan_parts(plan: Plan, rank: int) -> list[Part]:
    """Joint ids and noise draws of one rank for each step of a plan."""
    parts = []
    for step in range(plan.num_steps):
        where = plan.part(step, rank)
        parts.append((plan.ids[where], plan.passes[where]))
    return parts


def split_parts(
    joint: JointDataset, ids: NDArray[np.int64], atoms_per_batch: int, rank: int, ranks: int
) -> list[Part]:
    """Cut structures into batches of like sizes for validation, every `ranks`-th one for this rank.

    Args:
        joint: where the structures' sizes are known.
        ids: joint ids.
        atoms_per_batch: a batch is full at this many atoms; a larger structure is one alone.
        rank: this rank.
        ranks: how many there are.
    """
    order = ids[np.argsort(-joint.num_atoms[ids], kind="stable")]
    batches: list[list[int]] = []
    atoms = 0
    for joint_id, size in zip(order.tolist(), joint.num_atoms[order].tolist(), strict=True):
        if not batches or atoms + size > atoms_per_batch:
            batches.append([])
            atoms = 0
        batches[-1].append(joint_id)
        atoms += size
    return [
        (np.array(batch, dtype=np.int64), np.full(len(batch), FIXED_NOISE, dtype=np.int32))
        for batch in batches[rank::ranks]
    ]


def _stand_back(_worker: int) -> None:
    """Make way for the rank: it alone decides when to end, and it comes first where cores are few.

    Ctrl-C and a queue's SIGTERM reach every process. Objects that were there before the worker are
    not looked at for garbage: that would copy nearly all memory it shares with the rank, at one
    moment, for which the rank would wait.
    """
    os.nice(NICENESS)
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


_with_workers: weakref.WeakSet[Any] = weakref.WeakSet()


@atexit.register
def _end_workers() -> None:
    """End the workers of batches that nobody took to the end.

    Python itself would send them SIGTERM, which they leave to the rank, and wait for ever.
    """
    for iterator in list(_with_workers):
        iterator._shutdown_workers()


def load_batches(
    batches: PlannedBatches, parts: Iterable[Part], *, workers: int, device: torch.device
) -> Iterator[GraphBatch]:
    """The batches in order, on the device, prepared ahead by worker processes.

    The same processes prepare all of them, however many plans they come from.

    Args:
        batches: how to prepare them.
        parts: the structures of each; asked for as the workers need them, by this process and, with
            workers, not before these were started.
        workers: processes that prepare batches; with 0 this process does.
        device: where the batches go; from pinned memory, without waiting, where that is a GPU.

    Raises:
        DataError: a structure can't be read, in the words of where that was found.
    """
    on_gpu = device.type == "cuda"
    loader: DataLoader[Any] = DataLoader(
        _Handed(batches),
        batch_size=None,
        collate_fn=_as_it_is,
        sampler=parts,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=on_gpu,
        worker_init_fn=_stand_back,
    )

    def arrive(packed: PackedBatch | Unreadable) -> GraphBatch:
        if isinstance(packed, Unreadable):
            raise DataError(packed.message)
        return packed.to(device, non_blocking=on_gpu).unpack()

    if not workers:
        yield from map(arrive, loader)
        return
    wait_for_idle_threads()
    ready = iter(loader)  # starts the workers
    _with_workers.add(ready)
    yield from one_ahead(ready, arrive)


def one_ahead(items: Iterator[S], arrive: Callable[[S], T]) -> Iterator[T]:
    """What `arrive` makes of each item, the next item always being taken while one is in use.

    An item arrives before the thread that takes items is told to go on: the two would otherwise
    contend for Python's lock while the model waits.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as taker:
        following = taker.submit(next, items, None)
        while (item := following.result()) is not None:
            arrived = arrive(item)
            following = taker.submit(next, items, None)
            yield arrived
