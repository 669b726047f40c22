"""Rounds in which every contender runs in turn, so that a busy machine slows them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Cost(NamedTuple):
    """Seconds that one call took."""

    wall: float
    cpu: float
    """Of all threads of this process."""


def timed(call: Callable[[], object]) -> Cost:
    """What one call costs."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def alternate(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Cost]]:
    """Cost of each call in each round, after one round that only warms up.

    Every other round runs backwards: what grows along a round meets each of them early and late.
    """
    costs: dict[str, list[Cost]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        names = list(calls) if number % 2 else list(calls)[::-1]
        for name in names:
            cost = timed(calls[name])
            if number:
                costs[name].append(cost)
    return costs


def spread(values: Sequence[float] | NDArray[np.float64]) -> dict[str, float]:
    """Median, 95th percentile and extremes of some measurements."""
    array = np.asarray(values, dtype=np.float64)
    return {
        "median": float(np.median(array)),
        "p95": float(np.percentile(array, 95)),
        "min": float(array.min()),
        "max": float(array.max()),
    }


def provenance(seed: int, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Versions, device, commit, date and seed of a measurement.

    Args:
        seed: what the data was drawn from.
        packages: distributions to name besides LaMM's own; those that aren't there are left out.
    """
    import torch

    from lamm.train.distributed import World
    from lamm.train.run import environment

    found = environment(World(rank=0, size=1, device=torch.device("cpu")), seed, {})
    for name in packages:
        try:
            found["packages"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    for name in ("ranks", "cpu_settings"):
        del found[name]
    found["command"] = " ".join(Path(word).name or word for word in found["command"].split())
    found["processor"] = _processor()
    found["date"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return found


def _processor() -> str | None:
    """Name of the processor, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, None)
