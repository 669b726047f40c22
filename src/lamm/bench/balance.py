"""All planners side by side: idle time, throughput, peak load, composition, planning time (Fig. 6).

A step's time is simulated, in units of an atom with all the neighbours it can have:

    T = fixed + (largest load of a rank) + growth * (largest rise of a load since the step before)

`fixed` stands for what doesn't depend on the structures (kernel launches, optimizer, all-reduce);
the last term for memory that is allocated anew where a load is larger than the one before it. Loads
are those of the cost model of `lamm.balance.cost`.
"""

from __future__ import annotations

import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lamm.balance.cost import COST_UNIT, likely_edges, structure_cost
from lamm.balance.metrics import plan_metrics
from lamm.balance.plan import PLANNERS, Plan, PlanIndex, plan_epoch
from lamm.balance.population import Counts, population
from lamm.balance.uses import uses_of
from lamm.bench.timing import provenance
from lamm.data.sampling import SamplingConfig
from lamm.errors import ConfigError, DataError, nearest_names

SERIES_STEPS = 200
"""Steps of each planner that the result keeps for a figure."""
MOST_ATOMS = 10**9
"""Of a structure in a counts file."""
_NOT_READABLE = (
    *(ValueError, OSError, TypeError, AttributeError, EOFError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What numpy raises where a file isn't an npz file, or is one that was cut or changed."""
_LARGEST = 8
"""Times the batch size of `random` that equal memory may allow; far above what it does."""


class CostModel(NamedTuple):
    """What a step is taken to cost; the defaults are a fit to the paper's LaMM-S (Sec. 4.1)."""

    max_neighbors: int = 50
    edge_share: float = 0.65
    fixed: float = 210.0
    """Per step, in atoms."""
    growth: float = 1.40
    """Per atom that some rank's load rises by."""
    kib_per_atom: float | None = None
    """Memory of a load of one atom; where given, peak memory per rank is reported."""


COST_MODELS = {"S": CostModel(), "L": CostModel(20, 0.80, 10.0, 0.90)}
"""LaMM-S and LaMM-L: neighbours, share of the edges, fixed time, growth penalty."""


def read_counts(path: Path) -> Counts:
    """Read a counts file: `natoms`, `subset`, `periodic`, `has_e`, `has_f`, one per structure.

    The ids of subsets may be any whole numbers; in the result they count from 0.

    Raises:
        DataError: no such file, one that is damaged, arrays that are missing or empty, of unequal
            length or of the wrong kind, or an atom count below 1.
    """
    if not path.is_file():
        raise DataError(f"counts file {path}: no such file.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in Counts._fields if name in file}
    except _NOT_READABLE as error:
        raise DataError(f"counts file {path}: not an npz file of arrays ({error}).") from error
    missing = [name for name in Counts._fields if name not in arrays]
    if missing:
        raise DataError(
            f"counts file {path}: no array {', '.join(missing)}; expected "
            f"{', '.join(Counts._fields)}, one entry per structure."
        )
    shapes = {name: array.shape for name, array in arrays.items()}
    if len(set(shapes.values())) > 1 or arrays["natoms"].ndim != 1 or not arrays["natoms"].size:
        raise DataError(
            f"counts file {path}: arrays of shapes {shapes}; expected one entry per structure."
        )
    _check_values(path, arrays["natoms"], "natoms", 1, MOST_ATOMS)
    _check_values(path, arrays["subset"], "subset", -(2**31), 2**31 - 1)
    for name in ("periodic", "has_e", "has_f"):
        _check_values(path, arrays[name], name, 0, 1)
    return Counts(
        arrays["natoms"].astype(np.int64),
        np.unique(arrays["subset"], return_inverse=True)[1].astype(np.int64),
        *(arrays[name].astype(bool) for name in ("periodic", "has_e", "has_f")),
    )


def _check_values(path: Path, array: NDArray[Any], name: str, least: int, most: int) -> None:
    """Refuse an array that has other values than whole numbers from `least` to `most`."""
    where, expected = f"counts file {path}: {name}", f"expected whole numbers, {least} to {most}"
    if array.dtype.kind not in "biuf":
        raise DataError(f"{where} is of type {array.dtype}; {expected}.")
    wrong = ~((array >= least) & (array <= most) & (array == np.floor(array)))  # NaN is wrong too
    if wrong.any():
        first = int(wrong.argmax())
        raise DataError(f"{where} is {array[first]} at structure {first}; {expected}.")


def index_of(counts: Counts, model: CostModel) -> PlanIndex:
    """A plan index of a counts file; ids count through the file, whatever its subsets' order."""
    order = np.argsort(counts.subset, kind="stable")
    natoms = counts.natoms[order].astype(np.int64)
    edges = likely_edges(natoms, counts.periodic[order], model.max_neighbors)
    cost = structure_cost(
        natoms, edges, max_neighbors=model.max_neighbors, edge_share=model.edge_share
    )
    return PlanIndex(
        ids=order,
        subset=counts.subset[order],
        cost=cost,
        has_energy=counts.has_e[order],
        has_forces=counts.has_f[order],
        num_atoms=natoms,
    )


class Chosen(NamedTuple):
    """The structures to plan, how often they are used, and what they cost."""

    plan_index: PlanIndex
    sampling: SamplingConfig
    model: CostModel
    source: str
    batch_size: int | None = None
    """Structures per rank that a run's configuration asks for, if it says how many."""


def structures_of_run(path: Path) -> Chosen:
    """Structures, sampling, cost model and batch size of a run configuration."""
    from lamm.config import read_run_config
    from lamm.data.joint import JointDataset
    from lamm.models.potential import build
    from lamm.train.batches import most_neighbors

    config = read_run_config(path)
    joint = JointDataset(config.data, config.seed)
    graph = build(config.model, joint.names, seed=config.seed).graph_config
    limit = most_neighbors(joint, graph)
    share, size = config.balance.edge_share, config.balance.batch_size
    preset = min(COST_MODELS.values(), key=lambda model: abs(model.edge_share - share))
    return Chosen(
        joint.plan_index(limit, share),
        joint.config.sampling,
        preset._replace(max_neighbors=limit, edge_share=share),
        str(path),
        size if isinstance(size, int) else None,
    )


def chosen_structures(
    config: Path | None,
    counts: Path | None,
    *,
    structures: int,
    seed: int,
    temperature: float | None,
    model: str,
) -> Chosen:
    """Structures of a run, of a counts file, or of Table 2.

    Args:
        config: a run configuration.
        counts: a counts file; each of its structures is used once, unless a temperature is given.
        structures: how many of Table 2's population, where neither file is given.
        seed: of that population.
        temperature: in place of the run's, or of Table 2's.
        model: 'S' or 'L'; a run has a cost model of its own.

    Raises:
        ConfigError: both files are given, or an unknown cost model.
    """
    if config is not None and counts is not None:
        raise ConfigError(f"both --config {config} and --counts {counts}; expected one of them.")
    if model not in COST_MODELS:
        raise ConfigError(f"unknown cost model '{model}'; expected S or L.")
    if config is not None:
        chosen = structures_of_run(config)
    else:
        cost_model = COST_MODELS[model]
        some = population(structures, seed) if counts is None else read_counts(counts)
        chosen = Chosen(
            index_of(some, cost_model),
            SamplingConfig(temperature=2.0 if counts is None else 1.0),
            cost_model,
            "Table 2, scaled down" if counts is None else str(counts),
        )
    if temperature is not None:
        chosen = chosen._replace(sampling=SamplingConfig(temperature=temperature))
    return chosen


def step_times(load: NDArray[np.float64], model: CostModel) -> NDArray[np.float64]:
    """Simulated time of each step, in atoms, from the load (steps, ranks) in atoms."""
    rise = np.diff(load, axis=0, prepend=load[:1]).max(axis=1).clip(min=0)
    time_of_steps: NDArray[np.float64] = model.fixed + load.max(axis=1) + model.growth * rise
    return time_of_steps


def measure(plan: Plan, index: PlanIndex, model: CostModel, seconds: float) -> dict[str, Any]:
    """`plan_metrics`, simulated times, peak load and peak memory of a plan."""
    result = plan_metrics(plan, index, seconds)
    load = plan.rank_load(index.cost[index.find(plan.ids)]) / COST_UNIT
    times = step_times(load, model)
    ideal = model.fixed * len(load) + load.mean(axis=1).sum()
    shown = slice(0, SERIES_STEPS)
    result |= {
        "structures_per_time": len(plan.ids) / float(times.sum()),
        "beside_ideal": float(ideal / times.sum()),
        "idle_share_simulated": float(
            (times - load.mean(axis=1) - model.fixed).sum() / times.sum()
        ),
        "ideal_step_time": float(ideal / len(load)),
        "peak_load": float(load.max()),
        "mean_load": float(load.mean()),
        "step_time": {
            "min": float(times.min()),
            "p5": float(np.percentile(times, 5)),
            "median": float(np.median(times)),
            "mean": float(times.mean()),
            "p95": float(np.percentile(times, 95)),
            "max": float(times.max()),
        },
        "series": {
            "time": times[shown].tolist(),
            "slowest": load.max(axis=1)[shown].tolist(),
            "mean": load.mean(axis=1)[shown].tolist(),
        },
    }
    if model.kib_per_atom is not None:
        result["peak_memory_gib"] = float(load.max()) * model.kib_per_atom / 2**20
    return result


def at_equal_memory(
    index: PlanIndex,
    sampling: SamplingConfig,
    planner: str,
    *,
    ranks: int,
    batch_size: int,
    peak_load: float,
    seed: int = 0,
    model: CostModel = COST_MODELS["S"],
    segments: int | None = None,
) -> dict[str, Any] | None:
    """The largest mini-batches of a planner whose peak load stays within one that is given.

    Found by bisection, from `batch_size` structures per rank to eight times as many, but no more
    than an epoch uses.

    Args:
        index: the structures.
        sampling: how often each subset is used.
        planner: its name.
        ranks: W.
        batch_size: B to start from.
        peak_load: the largest load that a rank may have, in atoms.
        seed: of the plans.
        model: what a step costs.
        segments: S of the `paper` planners.

    Returns:
        ``mini_batch``, G; ``structures_per_rank``, G / W; ``structures_per_time``, ``imbalance``
        and ``peak_load`` of that plan; None where even `batch_size` has a larger peak.
    """

    def of(size: int) -> dict[str, Any]:
        plan = plan_epoch(
            index,
            sampling,
            seed=seed,
            epoch=0,
            ranks=ranks,
            mini_batch_size=size,
            planner=planner,
            segments=segments,
        )
        result = measure(plan, index, model, 0.0)
        kept = ("structures_per_time", "imbalance", "peak_load")
        return {
            "mini_batch": size,
            "structures_per_rank": size / ranks,
            **{name: result[name] for name in kept},
        }

    uses = int(uses_of(index, sampling).sum())
    low, high = (min(times * ranks * batch_size, uses) for times in (1, _LARGEST))
    found = of(low)
    if found["peak_load"] > peak_load:
        return None
    while low < high:
        middle = (low + high + 1) // 2
        one = of(middle)
        if one["peak_load"] <= peak_load:
            low, found = middle, one
        else:
            high = middle - 1
    return found


def bench_balance(
    index: PlanIndex,
    sampling: SamplingConfig,
    *,
    ranks: int,
    batch_size: int,
    seed: int = 0,
    planners: Sequence[str] | None = None,
    model: CostModel = COST_MODELS["S"],
    segments: int | None = None,
    equal_memory: bool = False,
    source: str = "",
    keep: Callable[[str, Plan], None] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Plan an epoch with each planner and measure the plans.

    Args:
        index: the structures.
        sampling: how often each subset is used.
        ranks: W.
        batch_size: B.
        seed: of the plans.
        planners: which; all where left out. `random` is always planned, to compare with.
        model: what a step costs.
        segments: S of the `paper` planners.
        equal_memory: also find the largest mini-batches of each whose peak load is no higher than
            that of `random`.
        source: what the structures are, for the reader of the result.
        keep: called with the name and plan of each planner asked for.
        progress: told what happens next.

    Returns:
        ``settings``; ``planners``: of each what `measure` gives, ``beside_random``, its simulated
        throughput over that of `random`, and if wanted ``equal_memory``, what `at_equal_memory`
        gives with ``beside_random`` (None where a plan of the same batches has a higher peak);
        versions, device and seed.
    """
    wanted = list(PLANNERS) if planners is None else list(dict.fromkeys(planners))
    for name in wanted:
        if name not in PLANNERS:
            raise ConfigError(f"unknown planner '{name}'. {nearest_names(name, PLANNERS)}")
    shape: dict[str, Any] = {"ranks": ranks, "batch_size": batch_size, "seed": seed}
    shape["segments"] = segments
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(["random", *wanted]):
        progress(f"planner {name}")
        begun, cpu_begun = time.perf_counter(), time.process_time()
        plan = plan_epoch(index, sampling, epoch=0, planner=name, **shape)
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu_begun
        found[name] = measure(plan, index, model, seconds)
        found[name]["planning_cpu_ms_per_step"] = 1e3 * cpu_seconds / plan.num_steps
        if keep is not None and name in wanted:
            keep(name, plan)
    baseline = found["random"]
    for name, one in found.items():
        one["beside_random"] = one["structures_per_time"] / baseline["structures_per_time"]
        if not equal_memory:
            continue
        progress(f"planner {name} in equal memory")
        larger = at_equal_memory(
            index, sampling, name, peak_load=baseline["peak_load"], model=model, **shape
        )
        if larger is not None:
            larger["beside_random"] = (
                larger["structures_per_time"] / baseline["structures_per_time"]
            )
        one["equal_memory"] = larger
    return {
        "settings": {
            "source": source,
            "structures": len(index),
            "ranks": ranks,
            "batch_size": batch_size,
            "temperature": sampling.temperature,
            "cost_model": model._asdict(),
        },
        "planners": found,
        **provenance(seed),
    }


def table(result: dict[str, Any]) -> list[str]:
    """The result of `bench_balance` for a person."""
    settings = result["settings"]
    model = settings["cost_model"]
    lines = [
        f"{settings['source']}: {settings['structures']:,} structures, {settings['ranks']} ranks "
        f"of {settings['batch_size']} on average; step = {model['fixed']:g} + slowest rank + "
        f"{model['growth']:g} x growth, in atoms with all neighbours",
        f"{'':16}{'imbalance':>10}{'idle':>8}{'x random':>10}{'of ideal':>10}{'peak load':>11}"
        f"{'/ mean':>8}{'chi2/dof':>10}{'plan s':>9}{'ms/step':>9}{'CPU':>7}",
    ]
    for name, one in result["planners"].items():
        lines.append(
            f"{name:16}{one['imbalance']:>10.4f}{one['idle_share_simulated']:>8.1%}"
            f"{one['beside_random']:>10.3f}{one['beside_ideal']:>10.3f}{one['peak_load']:>11.1f}"
            f"{one['peak_over_mean']:>8.3f}{one['chi2_per_dof']:>10.3f}"
            f"{one['planning_seconds']:>9.2f}{one['planning_ms_per_step']:>9.3f}"
            f"{one['planning_cpu_ms_per_step']:>7.3f}"
        )
        if "peak_memory_gib" in one:
            lines[-1] += f"  {one['peak_memory_gib']:.2f} GiB"
    lines += _equal_memory_lines(result["planners"])
    if model["kib_per_atom"] is None:
        lines.append("Peak memory per rank: give --kib-per-atom, what a load of one atom takes.")
    return lines


def _equal_memory_lines(planners: dict[str, Any]) -> list[str]:
    """What equal memory allows, where it was asked for."""
    if "equal_memory" not in planners["random"]:
        return []
    limit = planners["random"]["peak_load"]
    lines = [
        f"in equal memory: the largest mini-batches with no load above {limit:.1f}, random's peak",
        f"{'':16}{'mini-batch':>11}{'per rank':>10}{'x random':>10}{'imbalance':>11}",
    ]
    for name, one in planners.items():
        larger = one["equal_memory"]
        lines.append(
            f"{name:16}"
            + (
                "   its peak is higher with the same batches"
                if larger is None
                else f"{larger['mini_batch']:>11}{larger['structures_per_rank']:>10.2f}"
                f"{larger['beside_random']:>10.3f}{larger['imbalance']:>11.4f}"
            )
        )
    return lines
