"""Ranks: how they meet, and the few things that all of them do together.

Which rank a process is, `lamm.train.launch` reads; how gradients are summed is in
`lamm.train.gradients`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from lamm.errors import BadAnswerError, ConfigError, LaMMError
from lamm.train.launch import find_place, warn_of_unused_tasks

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
"""Longest wait of a rank for the others; validation and checkpoints of rank 0 are within it."""


@dataclass(frozen=True)
class World:
    """This process among the ranks of the run."""

    rank: int
    size: int
    device: torch.device
    local_size: int = 1
    """Ranks on this host."""

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and speaks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers; every rank gets the same answer, and waits for it."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor.item())

    def gather(self, mine: T) -> list[T]:
        """What every rank has to say, in the order of the ranks; small things, and seldom."""
        if self.size == 1:
            return [mine]
        said: list[Any] = [None] * self.size
        dist.all_gather_object(said, mine)
        return said

    def together(self, call: Callable[[], T]) -> T:
        """What a call gives on this rank, unless it fails on any: then all ranks raise its error.

        A rank that failed alone would leave the others waiting for it. The rank that failed raises
        its own error; the others the first one's, if a user can mend it, else one that names it.

        Raises:
            LaMMError: the call raised it, here or on another rank.
            BadAnswerError: the call failed on another rank in another way.
        """
        if self.size == 1:
            return call()
        result: T | None = None
        own: Exception | None = None
        try:
            result = call()
        except Exception as error:  # whatever it is: the other ranks wait for an answer
            own = error
        faults = self.gather(None if own is None else self._told(own))
        if own is not None:
            raise own
        if (fault := next((one for one in faults if one is not None), None)) is not None:
            raise fault
        return result  # type: ignore[return-value]

    def _told(self, error: Exception) -> Exception:
        """What the other ranks are told of an error; not the error itself, which may hold much."""
        if isinstance(error, LaMMError):
            return type(error)(str(error))
        return BadAnswerError(f"rank {self.rank} failed: {type(error).__name__}: {error}")

    def from_main(self, call: Callable[[], T]) -> T:
        """What a call gives on rank 0, the only one that makes it, on all ranks.

        Raises:
            LaMMError: the call raised it on rank 0; or another error, as `together` has it.
        """
        answer = self.together(lambda: call() if self.is_main else None)
        return self.gather(answer)[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


def restarted_store(size: int) -> Store | None:
    """Where processes that `torchrun` has started again find each other; None for the usual place.

    The usual place still holds the addresses of the processes that died: PyTorch keeps the
    launcher's store from one attempt to the next, and a rank would wait for an address of the dead.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if attempt == 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, size, is_master=False, timeout=TIMEOUT)
    return PrefixStore(f"attempt-{attempt}", store)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that a configuration's 'auto', 'cpu' or 'cuda' means for this process.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                "train.device is 'cuda', but PyTorch sees no GPU. Set `train.device=cpu`."
            )
        return torch.device("cuda", _gpu(local_rank, torch.cuda.device_count()))
    return torch.device(name)


def _gpu(local_rank: int, visible: int) -> int:
    """The GPU of a rank; a queue may show each rank no other than its own."""
    if visible == 1:
        return 0
    if local_rank >= visible:
        raise ConfigError(
            f"rank {local_rank} of this host has no GPU: PyTorch sees {visible}. "
            "Start as many ranks per host as it has GPUs."
        )
    return local_rank


def join(device_name: str = "auto") -> World:
    """Join the other ranks where the environment names any, else be alone.

    `lamm.train.launch` reads the environment. NCCL connects GPUs, gloo CPUs.

    Raises:
        ConfigError: the environment contradicts itself, or a GPU is asked for and there is none.
    """
    place = find_place(os.environ)
    warn_of_unused_tasks(place, os.environ)
    device = choose_device(device_name, place.local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if place.size > 1 and not dist.is_initialized():
        meet = None if place.address is None else f"tcp://{place.address}:{place.port}"
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=meet,
            rank=place.rank,
            world_size=place.size,
            timeout=TIMEOUT,
            store=restarted_store(place.size),
            device_id=device if device.type == "cuda" else None,
        )
    return World(place.rank, place.size, device, place.local_size)


def leave(world: World) -> None:
    """The end of a run on this rank, all ranks together unless this one is failing.

    A rank that closes its connections while another is still busy with them may end that one.

    NCCL's process group ends here. Gloo's ends with the process: to end it, this thread would wait
    for gloo's threads with Python's lock in hand, and they may be waiting for that lock to let go
    of a tensor. `lamm.train.ending` sees to the end of the process.
    """
    if world.size == 1 or not dist.is_initialized():
        return
    if sys.exc_info()[0] is None:
        world.wait()
    if dist.get_backend() == "nccl":
        dist.destroy_process_group()
