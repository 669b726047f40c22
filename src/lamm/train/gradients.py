"""Gradients summed over the ranks, a piece at a time while backward is still running.

The gradients of all parameters lie one after the other in one buffer, the last layer's first, and
are cut into pieces of about 25 MiB. As soon as backward has filled a piece, its all-reduce starts;
so all but the last piece travel while the layers below are still being computed. A piece has to be
large enough that latency doesn't count and small enough that the first one starts early: the 80 MB
of the paper's small model make four.

This is what DistributedDataParallel does, with two differences that a run needs which survives a
rank without memory. A rank whose backward failed can still take part in the rest of the mini-batch
(`finish` sends whatever is left, in the order that all ranks know), where DDP would leave the
others waiting in a collective for ever. And a few numbers of the step's own, the notes, travel at
the end of the last piece: whether any rank failed costs no message of its own. No parameter is
searched for that got no gradient: its share of the buffer is zero and travels with the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lamm.train.distributed import World

PIECE_BYTES = 25 * 2**20
"""Size at which a piece is full."""
_ALIGNED = 64
"""Bytes; a gradient starts at a multiple of it, so that fused kernels load whole vectors."""


class SharedGradients:
    """The gradients of a model, summed over the ranks by `finish`; a rank alone keeps its own.

    Args:
        parameters: of the model, in the order of its layers, all of one precision.
        world: the ranks.
        num_notes: how many numbers travel beside the gradients.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        world: World,
        num_notes: int,
    ) -> None:
        self.world = world
        self.parameters = [one for one in parameters if one.requires_grad]
        first = self.parameters[0]
        self.notes = first.new_zeros(num_notes, requires_grad=False)
        """Summed over the ranks by `finish`."""
        if world.size > 1:
            self._lay_out(first.dtype, first.device, num_notes)

    def _lay_out(self, dtype: torch.dtype, device: torch.device, num_notes: int) -> None:
        assert all(one.dtype == dtype for one in self.parameters), "one buffer, one precision"
        step = _ALIGNED // dtype.itemsize
        starts, edges, position = [], [0], 0
        for parameter in reversed(self.parameters):
            if (position - edges[-1]) * dtype.itemsize >= PIECE_BYTES:
                edges.append(position)
            starts.append(position)
            position += -(-parameter.numel() // step) * step
        self._buffer = torch.zeros(position + num_notes, dtype=dtype, device=device)
        self.notes = self._buffer[position:]
        edges.append(len(self._buffer))
        self._pieces = [self._buffer[start:stop] for start, stop in pairwise(edges)]
        self._sizes = [0] * len(self._pieces)
        for parameter, start in zip(reversed(self.parameters), starts, strict=True):
            piece = next(n for n, stop in enumerate(edges[1:]) if start < stop)
            self._sizes[piece] += 1
            parameter.grad = self._buffer[start : start + parameter.numel()].view_as(parameter)
            parameter.register_post_accumulate_grad_hook(partial(self._filled, piece))
            dist.broadcast(parameter.detach(), 0)
        self._missing = list(self._sizes)
        self._works: list[dist.Work] = []
        self._sending = False

    def zero(self) -> None:
        """Forget the gradients and the notes of the step before."""
        if self.world.size == 1:
            for parameter in self.parameters:
                parameter.grad = None
            self.notes.zero_()
            return
        self._buffer.zero_()
        self._missing, self._works, self._sending = list(self._sizes), [], False

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradients of a loss; in the last one of a step, send every piece that is filled.

        Args:
            loss: this rank's share of Eq. (5), or a part of it.
            is_last: whether nothing will be added afterwards.
        """
        self._sending = is_last
        loss.backward()

    def _filled(self, piece: int, _parameter: Tensor) -> None:
        if not self._sending:
            return
        self._missing[piece] -= 1
        # In one order on every rank, and the last piece only with the notes in it.
        while len(self._works) < len(self._pieces) - 1 and not self._missing[len(self._works)]:
            self._send()

    def _send(self) -> None:
        work = dist.all_reduce(self._pieces[len(self._works)], async_op=True)
        assert work is not None
        self._works.append(work)

    def finish(self) -> None:
        """Send what backward hasn't sent, and let what follows on the device wait for all of it."""
        if self.world.size == 1:
            return
        while len(self._works) < len(self._pieces):
            self._send()
        for work in self._works:
            work.wait()
