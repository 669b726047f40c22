"""``lamm reproduce``: the paper's tables and figures at the scale of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lamm.cli import common
from lamm.cli.common import JsonFlag
from lamm.cli.pretrain import Overrides
from lamm.errors import ConfigError

LIST, ALL = "list", "all"


def reproduce(
    name: Annotated[
        str, typer.Argument(help="table1, table2, table3, fig2, fig4, fig6 to fig9; all; or list.")
    ],
    overrides: Overrides = None,
    to: Annotated[Path | None, typer.Option("--to", help="Folder of the results.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML with entries to change.")
    ] = None,
    shared: Annotated[
        Path | None,
        typer.Option(help="Stores of configs/shared_mini.sh, in place of the shipped data."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write results anew; finished trainings are kept.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run an experiment of the paper in small and put its numbers beside the paper's.

    The shipped configuration says in words how the scale differs. Trainings that a folder holds
    already are used, stopped ones go on.
    """
    from lamm.reproduce.experiments import reproduce as run

    common.start_logging(quiet=as_json)
    if name == LIST:
        _list(as_json)
        return
    if to is None:
        raise ConfigError(f"no folder for the results. Add --to DIR, as --to runs/{name}.")
    if name == ALL:
        if overrides or config is not None:
            raise ConfigError(
                "entries differ from experiment to experiment: change them one by one."
            )
        _all(to, shared, force, as_json)
        return
    results = run(
        name,
        to,
        file=config,
        shared=shared,
        words=overrides or (),
        quiet=as_json,
        force=force,
    )
    if as_json:
        common.emit_json(results)
        return
    from lamm.reproduce.outcome import PAGE

    common.say((to / PAGE).read_text(encoding="utf-8"))
    common.say(f"{results['seconds']:.0f} s -> {to / 'page.html'}")


def _all(to: Path, shared: Path | None, force: bool, as_json: bool) -> None:
    from lamm.reproduce.experiments import reproduce_all

    folders = {}
    for name, folder in reproduce_all(to, shared=shared, quiet=as_json, force=force):
        folders[name] = str(folder)
        if not as_json:
            common.say(f"{name:8}{folder / 'page.html'}")
    if as_json:
        common.emit_json({"results": folders})


def _list(as_json: bool) -> None:
    from lamm.reproduce.experiments import REPRODUCTIONS, shipped_scale

    if as_json:
        common.emit_json(
            {
                name: {"title": one.title, "trains": one.trains, "scale": shipped_scale(name)}
                for name, one in REPRODUCTIONS.items()
            }
        )
        return
    for name, one in REPRODUCTIONS.items():
        common.say(f"{name:8}{one.title}{' (trains)' if one.trains else ''}")
        for line in shipped_scale(name):
            common.say(f"{'':8}  {line}")
