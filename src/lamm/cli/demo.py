"""``lamm demo``: the whole of LaMM in miniature, in minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lamm.cli import common
from lamm.cli.common import ForceFlag, JsonFlag
from lamm.errors import ConfigError


def demo(
    to: Annotated[Path, typer.Option("--to", help="Folder of the results.")] = Path("runs/demo"),
    model: Annotated[
        str | None, typer.Option("--model", help="Preset of the model; see `lamm models`.")
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option("--from", help="Checkpoint to start from, as lamm-xs, without pre-training."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", help="YAML with `data`, `downstream` or other entries to use instead."
        ),
    ] = None,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Pre-train on a joint data set, fine-tune with and without it, relax a structure, report.

    The data ships with the package. Results: report.html and results.json.
    """
    from lamm.demo.config import read_demo_config
    from lamm.demo.run import clear, run_demo

    common.start_logging(quiet=as_json)
    if base is not None and model is not None:
        raise ConfigError("both --from and --model are given: a checkpoint has its model.")
    config = read_demo_config(data, model, base)
    if force:
        clear(to)
    results = run_demo(config, to, quiet=as_json)
    if as_json:
        common.emit_json(results)
        return
    downstream = results["downstream"]
    common.say(f"{results['seconds']:.0f} s -> {to / 'report.html'}")
    for label in ("scratch", "pretrained"):
        errors = downstream[label]
        common.say(
            f"  {label:>10}: energy {errors['energy_mae_mev_per_atom']:.1f} meV/atom, "
            f"forces {errors['forces_mae_mev_per_ang']:.0f} meV/Å (test MAE)"
        )
