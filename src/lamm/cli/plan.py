"""``lamm plan``: what a run would be, before it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lamm.cli import common
from lamm.cli.common import JsonFlag
from lamm.cli.pretrain import Overrides
from lamm.cli.structures import check_output


def plan(
    config: Annotated[Path, typer.Argument(help="Configuration of a pre-training (YAML).")],
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option(min=1, help="Ranks, W.")] = 1,
    ranks_per_host: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of those, how many share this host's memory on a CPU; all without it."
        ),
    ] = None,
    to: Annotated[Path | None, typer.Option(help="npz file for the plan of an epoch.")] = None,
    measure: Annotated[
        bool, typer.Option(help="Do some steps and keep their costs in the run folder.")
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Look at a run before it starts: data, batch size, steps, balance, memory, time.

    A few steps are done on this device to fit time and memory by atoms and edges; the fit stays in
    the run folder as costs.json, and the run plans with it. Nothing is trained.
    """
    from lamm.config import read_run_config
    from lamm.train.distributed import choose_device
    from lamm.train.preflight import look_ahead

    common.start_logging(quiet=as_json)
    check_output(to, force=True)
    settings = read_run_config(config, overrides or [])
    device = choose_device(settings.train.device)
    result = look_ahead(
        settings,
        ranks=ranks,
        ranks_per_host=ranks_per_host,
        device=device,
        measures=measure,
        to=to,
    )
    if as_json:
        common.emit_json(result)
        return
    for line in table(result):
        common.say(line)


def table(result: dict[str, Any]) -> list[str]:
    """The result of `lamm.train.preflight.look_ahead` for a person."""
    lines = [f"{'subset':28}{'structures':>14}{'uses an epoch':>15}"]
    for name, one in result["subsets"].items():
        lines.append(f"{name:28}{one['structures']:>14,}{one['uses']:>15,}")
    balance = result["balance"]
    lines += [
        f"{result['parameters']:,} parameters",
        f"{result['ranks']} ranks, {result['structures_per_rank']} structures on each, "
        f"{result['mini_batch']} in a mini-batch; planner {result['planner']}",
        f"{result['steps_per_epoch']:,} steps an epoch, {result['steps']:,} in all",
        f"planned imbalance {balance['imbalance']:.4f} (slowest rank over the mean), "
        f"largest load {balance['peak_over_mean']:.3f} of the mean",
    ]
    costs = result["costs"]
    if costs is None:
        lines.append("costs weren't measured: no time and no memory (leave out --no-measure)")
    else:
        fits = result["r_squared"]
        budget = ""
        if "budget_gib" in result:
            budget = f"; budget {result['budget_gib']:.2f} GiB"
            budget += f" with {result['ranks_per_host']} of them on a host"
        lines += [
            f"measured on {costs['device']} in {costs['precision']}: a step takes "
            f"{_linear(costs['seconds'], 1e3, 'ms', fits['seconds'])}",
            f"and allocates {_linear(costs['bytes'], 1 / 2**20, 'MiB', fits['bytes'])}",
            f"edges cause {100 * result['edge_share']:.0f}% of the time of an atom that has all",
            f"{result['seconds_per_step']:.3f} s a step, {result['hours_per_epoch']:.2f} h an "
            f"epoch, {result['hours']:.2f} h in all; ranks wait {result['waiting_share']:.1%}",
            f"memory of a rank: {result['peak_memory_gib']:.2f} GiB at most, "
            f"{result['mean_memory_gib']:.2f} GiB on average{budget}",
        ]
    if result["advice"]:
        lines.append(result["advice"])
    return lines


def _linear(cost: dict[str, float], unit: float, name: str, r_squared: float) -> str:
    return (
        f"{cost['base'] * unit:.3g} + {cost['per_atom'] * unit:.3g} an atom + "
        f"{cost['per_edge'] * unit:.3g} an edge ({name}; median error "
        f"{cost['error']:.0%}, R^2 {r_squared:.3f})"
    )
