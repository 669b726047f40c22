"""``lamm pretrain``: train one potential on a joint data set."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lamm.cli.common import JsonFlag
from lamm.cli.training import finish

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes, as train.steps=100.")
]
ResumeFlag = Annotated[
    bool, typer.Option("--resume", help="Go on from the run folder's last checkpoint.")
]


def pretrain(
    config: Annotated[Path, typer.Argument(help="Configuration (YAML).")],
    overrides: Overrides = None,
    ranks: Annotated[
        int,
        typer.Option(
            min=1, help="Processes to start on this machine; balance.batch_size is each's."
        ),
    ] = 1,
    resume: ResumeFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Pre-train a potential on every subset of a joint data set.

    Alone: lamm pretrain CONFIG. On the cores of this machine: lamm pretrain CONFIG --ranks N. On
    several GPUs or hosts: torchrun --nproc-per-node N -m lamm pretrain CONFIG.
    """
    from lamm.config import read_run_config
    from lamm.train.local_ranks import local_ranks
    from lamm.train.run import pretrain as run

    settings = read_run_config(config, overrides or [])
    with local_ranks(ranks, sys.argv[1:]):
        finish(lambda: run(settings, resume=resume, quiet=as_json), settings.to, as_json)
