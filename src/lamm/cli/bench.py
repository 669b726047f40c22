"""``lamm bench``: LaMM's parts beside their peers, with numbers that a reader can check."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lamm.cli import common
from lamm.cli.common import JsonFlag
from lamm.cli.structures import check_output

if TYPE_CHECKING:
    from lamm.balance.plan import Plan

logger = logging.getLogger(__name__)
app = typer.Typer(help="Measure LaMM's parts beside their peers.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure LaMM's parts beside their peers."""


def _names(given: list[str] | None) -> list[str] | None:
    """Names from options that may be repeated, and may hold several with commas between."""
    return [name for text in given for name in text.split(",")] if given else None


def _answer(result: dict[str, Any], lines: list[str], to: Path | None, as_json: bool) -> None:
    """Write a result to a file, where one is named, and to stdout."""
    from lamm.files import write_json

    if to is not None:
        write_json(to, common.finite(result))
    if as_json:
        common.emit_json(result)
        return
    for line in lines:
        common.say(line)


@app.command("store")
def store_command(
    structures: Annotated[
        int, typer.Option(min=1, help="Structures to write; with --source at most so many.")
    ] = 5000,
    reads: Annotated[int, typer.Option(min=1, help="Shuffled reads of a round.")] = 20_000,
    rounds: Annotated[int, typer.Option(min=1, help="How often everybody's turn comes.")] = 9,
    seed: Annotated[int, typer.Option(help="Of the structures and of the order.")] = 0,
    peers: Annotated[
        list[str] | None,
        typer.Option(
            "--peers",
            help="ase-lmdb, pickle-lmdb, numpy-lmdb, pyg-lmdb, atompack; may be repeated.",
        ),
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="Store to take the structures from; made up without it.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Read single structures in random order from LaMM's store and from other formats.

    All hold the same structures, and give the same six arrays back, which is checked first. The
    files are in the page cache: the cost of decoding is measured, not that of the disk.
    """
    from lamm.bench.store import bench_store

    common.start_logging(quiet=as_json)
    check_output(to, force=True)
    names = _names(peers)
    result = bench_store(
        structures=structures,
        reads=reads,
        rounds=rounds,
        seed=seed,
        peers=names,
        source=source,
        progress=lambda text: logger.info("%s ...", text),
    )
    _answer(result, store_table(result), to, as_json)


def store_table(result: dict[str, Any]) -> list[str]:
    """The result of `lamm.bench.store.bench_store` for a person."""
    atoms = result["settings"]["atoms"]
    lines = [
        f"{result['settings']['structures']:,} structures of {atoms['min']} to {atoms['max']} "
        "atoms, files in the page cache; medians over rounds, CPU time beside wall time",
        f"{'':14}{'reads/s':>12}{'µs':>10}{'CPU µs':>10}{'bytes/atom':>12}   LaMM is faster by",
    ]
    for name, one in result["single_reads"].items():
        lines.append(
            f"{name:14}{one['per_second']:>12,.0f}{one['microseconds']['median']:>10.2f}"
            f"{one['cpu_microseconds']['median']:>10.2f}{one['bytes_per_atom']:>12.1f}"
            f"   {_ratio(name, one)}"
        )
    lines.append(f"batches of {result['settings']['batch']} as flat arrays, per structure")
    for name, one in result["batch_reads"].items():
        lines.append(
            f"{name:14}{one['per_second']:>12,.0f}{one['microseconds']['median']:>10.2f}"
            f"{one['cpu_microseconds']['median']:>10.2f}{'':12}   {_ratio(name, one)}"
        )
    lines += [f"{name:14}{hint}" for name, hint in result["not_installed"].items()]
    return lines


def _ratio(name: str, one: dict[str, Any]) -> str:
    if name == "lamm":
        return ""
    ratio = one["lamm_is_faster_by_cpu"]
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}; CPU time)"


@app.command("model")
def model_command(
    batch: Annotated[Path, typer.Option(help="Structures that make one batch (any ASE format).")],
    preset: Annotated[str, typer.Argument(help="lamm-s or lamm-l.")] = "lamm-l",
    threads: Annotated[int, typer.Option(min=1, help="Threads of every process.")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="How often everybody's turn comes.")] = 3,
    calls: Annotated[int, typer.Option(min=1, help="Timed calls in a turn.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the weights.")] = 0,
    peers: Annotated[
        list[str] | None,
        typer.Option("--peers", help="fairchem, fairchem-tuned; may be repeated."),
    ] = None,
    phases: Annotated[
        list[str] | None, typer.Option("--phases", help="inference, step; may be repeated.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Time and memory of a model beside FAIR-Chem's: same weights, same edges, same threads.

    Every turn is a process of its own, since allocator settings and peak memory belong to one. The
    numbers of all are compared first.
    """
    from lamm.bench.model import PHASES, bench_model, table

    common.start_logging(quiet=as_json)
    check_output(to, force=True)
    result = bench_model(
        preset,
        batch,
        peers=_names(peers),
        phases=_names(phases) or PHASES,
        threads=threads,
        rounds=rounds,
        calls=calls,
        seed=seed,
        progress=lambda text: logger.info("%s ...", text),
    )
    _answer(result, table(result), to, as_json)


@app.command("balance")
def balance_command(
    config: Annotated[
        Path | None, typer.Option(help="Run configuration whose structures are planned.")
    ] = None,
    counts: Annotated[
        Path | None,
        typer.Option(help="npz file: natoms, subset, periodic, has_e, has_f of each structure."),
    ] = None,
    planner: Annotated[
        list[str] | None,
        typer.Option(help="Planner beside `random`; may be repeated; all without it."),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks, W.")] = 64,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Structures per rank and step, B; without it the run's own, or 8."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the plans and of a made-up population.")] = 0,
    structures: Annotated[
        int, typer.Option(min=10, help="Structures of the made-up population (Table 2).")
    ] = 280_000,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=1e-3,
            help="Of sampling: 2 for Table 2, the run's own, 1 for a counts file "
            "(each structure once).",
        ),
    ] = None,
    segments: Annotated[
        int | None, typer.Option(min=1, help="Segments of the `paper` planners.")
    ] = None,
    model: Annotated[str, typer.Option(help="Cost model: S or L (of a run: its own).")] = "S",
    fixed: Annotated[
        float | None, typer.Option(min=0, help="Fixed time of a step, in atoms.")
    ] = None,
    growth: Annotated[
        float | None, typer.Option(min=0, help="Time per atom that a rank's load rises by.")
    ] = None,
    kib_per_atom: Annotated[
        float | None, typer.Option(min=0, help="Memory of a load of one atom, in KiB.")
    ] = None,
    equal_memory: Annotated[
        bool, typer.Option(help="Also the largest batches within the peak load of `random`.")
    ] = True,
    to: Annotated[Path | None, typer.Option(help="npz file for the plan of one planner.")] = None,
    to_json: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Plan an epoch with every planner: idle time, throughput, peak load, composition (Sec. 3.4).

    The structures are those of the paper's Table 2, made up from its averages and scaled down; or
    of a run configuration; or of a file of counts.
    """
    from lamm.balance.settings import DEFAULT_BATCH_SIZE
    from lamm.bench.balance import bench_balance, chosen_structures, table
    from lamm.errors import ConfigError
    from lamm.files import replaced_file

    common.start_logging(quiet=as_json)
    check_output(to, force=True)
    check_output(to_json, force=True, option="--to-json")
    names = _names(planner)
    if to is not None and (names is None or len(names) != 1):
        raise ConfigError(
            f"--to {to} with {len(names) if names else 'all'} planners; expected one plan to write."
            " Name it with --planner."
        )
    chosen = chosen_structures(
        config, counts, structures=structures, seed=seed, temperature=temperature, model=model
    )
    changes = {"fixed": fixed, "growth": growth, "kib_per_atom": kib_per_atom}
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}

    def keep(_: str, plan: Plan) -> None:
        if to is not None:
            with replaced_file(to) as temporary:
                plan.save(temporary)

    result = bench_balance(
        chosen.plan_index,
        chosen.sampling,
        ranks=ranks,
        batch_size=batch_size or chosen.batch_size or DEFAULT_BATCH_SIZE,
        seed=seed,
        planners=names,
        model=chosen.model._replace(**given),
        segments=segments,
        equal_memory=equal_memory,
        source=chosen.source,
        keep=keep,
        progress=lambda text: logger.info("%s ...", text),
    )
    _answer(result, table(result), to_json, as_json)


@app.command("planning")
def planning_command(
    structures: Annotated[
        int | None,
        typer.Option(min=10, help="Structures of Table 2's population; all without it."),
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks, W.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per rank, B.")] = 8,
    planner: Annotated[str, typer.Option(help="Which planner.")] = "balanced",
    processes: Annotated[int, typer.Option(min=1, help="How many plan at once.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the population and of the plan.")] = 0,
    to: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Plan a whole epoch of the paper's joint data set: first step, time, memory (Sec. 3.4).

    The structures are made up from the averages of Table 2; an epoch uses 432 million.
    """
    from lamm.balance.population import TOTAL
    from lamm.bench.planning import bench_planning, lines_of

    common.start_logging(quiet=as_json)
    check_output(to, force=True)
    result = bench_planning(
        structures or TOTAL,
        ranks=ranks,
        batch_size=batch_size,
        planner=planner,
        processes=processes,
        seed=seed,
        progress=lambda text: logger.info("%s ...", text),
    )
    _answer(result, lines_of(result), to, as_json)


@app.command("step")
def step_command(
    config: Annotated[
        Path | None, typer.Argument(help="Run configuration; the demonstration's without it.")
    ] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes, W.")] = 2,
    steps: Annotated[int, typer.Option(min=2, help="Steps of a turn that count.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="How often everybody's turn comes.")] = 3,
    workers: Annotated[int, typer.Option(min=0, help="Data processes of each rank.")] = 2,
    planner: Annotated[
        list[str] | None, typer.Option(help="May be repeated; four of them without it.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Do real steps on several processes with every planner: how long ranks wait.

    Measured imbalance beside the planned one, and the time that ranks wait for each other and for
    their data.
    """
    from lamm.bench.step import DEFAULT_PLANNERS, bench_step, table
    from lamm.config import read_run_config
    from lamm.demo.config import read_demo_config

    common.start_logging(quiet=as_json)
    check_output(to, force=True)
    if config is None:
        settings = read_demo_config().pretraining(Path("unused"))
    else:
        settings = read_run_config(config)
    train = settings.train.model_copy(update={"workers": workers})
    result = bench_step(
        settings.model_copy(update={"train": train}),
        ranks=ranks,
        steps=steps,
        rounds=rounds,
        planners=_names(planner) or DEFAULT_PLANNERS,
        progress=lambda text: logger.info("%s ...", text),
    )
    _answer(result, table(result), to, as_json)
