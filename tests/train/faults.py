"""A run of a few steps in which one rank has a fault; started alone or by torchrun.

``faults.py FOLDER TO KIND``: forward, backward and optimizer run out of memory once, ``optimizer
twice`` in two steps; ``later`` does so in forward with steps looked at late, as on a GPU; ``alone``
and ``stop`` meet a structure that never fits; ``nan`` has labels that aren't numbers.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from lamm.cli.common import start_logging
from lamm.errors import BadAnswerError, LaMMError
from lamm.graph.batch import GraphBatch
from lamm.train import engine
from lamm.train.ending import run_to_the_end
from lamm.train.parts import graph_size
from lamm.train.run import pretrain
from lamm.train.step import Step
from small import SMALL_MODELS, small_config, without_dropout

RANK = 1
STEP = 2
SIZE = 60
"""Atoms and edges of a GPU batch for which the faulty rank has no memory at `STEP`."""


class NoMemory(torch.autograd.Function):
    """The identity, until its gradient is asked for."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory in backward")


def inject(kind: str, world_rank: int) -> None:
    """Make the steps of this rank fail."""
    loss, compute, change = Step.loss, Step.compute, Step._change_weights
    now = {"step": -1}
    armed = {"optimizer": {STEP}, "optimizer twice": {STEP, STEP + 1}}.get(kind, set())

    def noted_compute(self: Step, step: int, *rest: Any, **named: Any) -> Any:
        now["step"] = step
        return compute(self, step, *rest, **named)

    def faulty_loss(self: Step, batch: GraphBatch, counts: Any) -> Any:
        here = world_rank == RANK and now["step"] == STEP
        if kind in ("forward", "later") and here and graph_size(batch) > SIZE:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        if kind in ("alone", "stop") and int(CHOSEN[0]) in batch.ids.tolist():
            raise torch.OutOfMemoryError("one structure is too large")
        terms = loss(self, batch, counts)
        if kind == "backward" and here and graph_size(batch) > SIZE:
            return terms._replace(total=NoMemory.apply(terms.total))
        if kind == "nan" and here:
            return terms._replace(total=terms.total * float("nan"))
        if kind == "always nan":
            return terms._replace(total=terms.total * float("nan"))
        return terms

    def faulty_change(self: Step, skip: torch.Tensor) -> None:
        if world_rank == RANK and now["step"] in armed:
            armed.remove(now["step"])
            real = self.optimizer.step

            def once() -> None:
                self.optimizer.step = real  # type: ignore[method-assign]
                raise MemoryError

            self.optimizer.step = once  # type: ignore[method-assign]
        change(self, skip)

    Step.loss, Step.compute, Step._change_weights = faulty_loss, noted_compute, faulty_change


CHOSEN: list[int] = []


def main(folder: Path, to: Path, kind: str) -> int:
    import os

    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    steps = 14 if kind == "always nan" else 5
    config = small_config(
        folder,
        to=to,
        model=without_dropout(SMALL_MODELS["painn"]),
        balance={
            "batch_size": 8 // size,
            "oversized": "set_aside" if kind == "alone" else "stop",
        },
        train={"steps": steps, "log_every": 1, "validate_every": steps, "max_skipped": 3},
    )
    start_logging(quiet=False)
    if kind == "later":
        init = engine.Recovery.__init__

        def late(self: Any, *words: Any, **named: Any) -> None:
            init(self, *words, **{**named, "look_later": True})

        engine.Recovery.__init__ = late  # type: ignore[method-assign]
    if kind in ("alone", "stop"):
        from lamm.data.joint import JointDataset

        CHOSEN.append(int(JointDataset(config.data, config.seed).ids("train")[0]))
    inject(kind, rank)
    try:
        pretrain(config, quiet=True)
    except LaMMError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except BadAnswerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    folder, to = Path(sys.argv[1]), Path(sys.argv[2])
    run_to_the_end(lambda: sys.exit(main(folder, to, sys.argv[3])))
