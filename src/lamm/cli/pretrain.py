"""``lamm pretrain``: train one potential on a joint data set."""

from __future__ import annotations

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
    resume: ResumeFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Pre-train a potential on every subset of a joint data set.

    Alone: lamm pretrain CONFIG. On several GPUs or processes: torchrun --nproc-per-node N -m lamm
    pretrain CONFIG.
    """
    from lamm.config import read_run_config
    from lamm.train.run import pretrain as run

    settings = read_run_config(config, overrides or [])
    finish(lambda: run(settings, resume=resume, quiet=as_json), settings.to, as_json)
