"""``lamm finetune``: make a pre-trained potential good at one's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lamm.cli.common import JsonFlag
from lamm.cli.pretrain import Overrides, ResumeFlag
from lamm.cli.training import finish
from lamm.errors import ConfigError


def finetune(
    config: Annotated[
        Path | None, typer.Argument(help="Configuration (YAML); or use the options instead.")
    ] = None,
    overrides: Overrides = None,
    base: Annotated[Path | None, typer.Option("--from", help="Checkpoint to start from.")] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Store, or a file that can be ingested.")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Run folder.")] = None,
    resume: ResumeFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune a checkpoint: its encoder is kept, heads and references are made anew.

    Either lamm finetune CONFIG [KEY=VALUE]..., or
    lamm finetune --from CHECKPOINT --data FILE-or-STORE --to DIR [KEY=VALUE]...
    """
    from lamm.config import read_finetune_config
    from lamm.finetune import config_for
    from lamm.finetune import finetune as run

    words = list(overrides or [])
    if config is not None and "=" in str(config):  # with options there is no configuration file
        words.insert(0, str(config))
        config = None
    if config is not None:
        if base is not None or data is not None:
            raise ConfigError(
                "both a configuration and --from/--data are given. Leave one out; single entries "
                "of a configuration are changed by KEY=VALUE."
            )
        settings = read_finetune_config(config, [*words, *([f"to={to}"] if to else [])])
    else:
        if base is None or data is None or to is None:
            raise ConfigError(
                "nothing to fine-tune. Name a configuration file, or --from CHECKPOINT, "
                "--data FILE-or-STORE and --to DIR."
            )
        settings = config_for(base, data, to, words)
    finish(lambda: run(settings, resume=resume, quiet=as_json), settings.to, as_json)
