"""What fails on one rank of two, and what each rank makes of it; run by torchrun.

``one_rank_fails.py FOLDER CASE``: each rank writes its errors, kind and words, to FOLDER/RANK.json.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from lamm.data import joint
from lamm.errors import DataError
from lamm.train import engine, preflight, recovery, run, session, validation
from lamm.train.distributed import join, leave
from lamm.train.ending import run_to_the_end
from small import small_config


def data_error() -> None:
    raise DataError("store.arrow: damaged")


def fault_of_ours() -> None:
    raise KeyError("lost")


def said_of(call: Callable[[], object]) -> list[str]:
    try:
        return ["gives", str(call())]
    except Exception as error:
        return [type(error).__name__, str(error)]


def direct() -> dict[str, list[str]]:
    """`World.together` and `World.from_main` themselves."""
    world = join("cpu")
    calls: dict[str, Callable[[], object]] = {
        "together": lambda: world.together(data_error if world.rank else lambda: 7),
        "together, ours": lambda: world.together(fault_of_ours if world.rank else lambda: 7),
        "together, well": lambda: world.together(lambda: 7 + world.rank),
        "from main": lambda: world.from_main(data_error),
        "from main, well": lambda: world.from_main(lambda: f"of rank {world.rank}"),
    }
    said = {name: said_of(call) for name, call in calls.items()}
    leave(world)
    return said


def recovery_of(*words: Any, look_later: bool, **named: Any) -> recovery.Recovery:
    """The recovery that looks at a step when it is told to."""
    return recovery.Recovery(*words, **{**named, "look_later": look_later})


def of_a_run(folder: Path, case: str, rank: int) -> list[str]:
    """A pre-training in which something fails on one rank alone."""
    config = small_config(folder / f"data-{rank}", balance={"batch_size": 4})
    config = config.model_copy(update={"to": folder / "run"})

    def on_rank(wanted: int, real: Callable[..., object]) -> Callable[..., object]:
        return real if rank != wanted else lambda *_, **__: data_error()

    if case == "validation":
        validation.if_memory_suffices = (  # type: ignore[assignment]
            validation.if_memory_suffices if rank != 0 else lambda *_: None
        )
    elif case == "costs":
        balance = {"memory": "100GB"}
        config = config.model_copy(update={"balance": config.balance.__class__(**balance)})
        preflight.with_costs = on_rank(1, preflight.with_costs)  # type: ignore[assignment]
    elif case.startswith("reading"):
        read, times = joint.JointDataset.structure, iter(range(10))

        def structure(self: joint.JointDataset, joint_id: int, draw: int = joint.FIXED_NOISE):
            if rank == 1 and draw != joint.FIXED_NOISE and next(times, None) is None:
                data_error()
            return read(self, joint_id, draw)

        joint.JointDataset.structure = structure  # type: ignore[method-assign]
        workers = 1 if case == "reading by workers" else 0
        train = config.train.model_copy(update={"workers": workers})
        config = config.model_copy(update={"train": train})
        if case == "reading, seen late":
            engine.Recovery = partial(recovery_of, look_later=True)  # type: ignore[misc]
    elif case == "save":
        session.save_checkpoint = on_rank(0, session.save_checkpoint)  # type: ignore[assignment]
    return said_of(lambda: run.pretrain(config, quiet=True))


def main() -> None:
    folder, case = Path(sys.argv[1]), sys.argv[2]
    rank = int(os.environ["RANK"])
    said = direct() if case == "direct" else of_a_run(folder, case, rank)
    (folder / f"{rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    run_to_the_end(main)
