"""``lamm finetune``: make a pre-trained potential good at one's own data."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lamm.cli.common import JsonFlag
from lamm.cli.pretrain import Overrides, ResumeFlag
from lamm.cli.training import finish
from lamm.errors import ConfigError

if TYPE_CHECKING:
    from lamm.config import FinetuneConfig


def finetune(
    config: Annotated[
        Path | None, typer.Argument(help="Configuration (YAML); or use the options instead.")
    ] = None,
    overrides: Overrides = None,
    base: Annotated[Path | None, typer.Option("--from", help="Checkpoint to start from.")] = None,
    preset: Annotated[
        str | None,
        typer.Option("--from-scratch", metavar="PRESET", help="Train a new model instead."),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="File that ASE reads, or store.")] = None,
    val: Annotated[Path | None, typer.Option(help="Validation structures, likewise.")] = None,
    test: Annotated[Path | None, typer.Option(help="Test structures, likewise.")] = None,
    card: Annotated[
        Path | None,
        typer.Option(help="What is known of these files (YAML): units, keys, functional, ..."),
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="Run folder.")] = None,
    head: Annotated[
        str | None,
        typer.Option(help="Start of the output: reset, best, or the name of a head of the base."),
    ] = None,
    frozen: Annotated[
        bool, typer.Option("--frozen-encoder", help="Train the heads alone.")
    ] = False,
    lora: Annotated[
        int | None,
        typer.Option(
            metavar="RANK", min=1, help="Train low-rank adapters of the encoder and the heads."
        ),
    ] = None,
    layer_decay: Annotated[
        float, typer.Option(help="What the rate falls by with each layer below the heads, as 0.7.")
    ] = 1.0,
    replay: Annotated[
        list[str] | None,
        typer.Option(help="Pre-training subset to train on too; several times, or all."),
    ] = None,
    unlabelled: Annotated[
        Path | None, typer.Option(help="Structures for denoising beside the labelled ones.")
    ] = None,
    max_time: Annotated[
        str | None,
        typer.Option(help="All of it in this time, as 10m; the learning rate falls with it."),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes on this machine that share each mini-batch; where left out, one for "
            "each core up to 4 if a CPU does the work and there is enough of it.",
        ),
    ] = None,
    accept_data: Annotated[
        bool, typer.Option("--accept-data", help="Go on in spite of the doctor's errors.")
    ] = False,
    resume: ResumeFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Fine-tune a checkpoint on one's own structures, or train on them from scratch.

    Either lamm finetune --from CHECKPOINT --data FILE-or-STORE --to DIR [KEY=VALUE]..., or
    lamm finetune CONFIG [KEY=VALUE]...
    """
    begun = time.monotonic()
    from lamm.cli.common import start_logging
    from lamm.config import read_finetune_config
    from lamm.finetune import Request
    from lamm.finetune import finetune as run
    from lamm.finetune.request import config_on_every_rank, parse_time, ranks_by_rule
    from lamm.finetune.run import ranks_of_run, resumed_config
    from lamm.train.local_ranks import local_ranks

    start_logging(quiet=as_json)
    words = list(overrides or [])
    if config is not None and "=" in str(config):  # with options there is no configuration file
        words.insert(0, str(config))
        config = None
    options = {
        "--from": base,
        "--from-scratch": preset,
        "--data": data,
        "--val": val,
        "--test": test,
        "--card": card,
        "--head": head,
        "--frozen-encoder": frozen or None,
        "--lora": lora,
        "--layer-decay": None if layer_decay == 1 else layer_decay,
        "--replay": replay,
        "--unlabelled": unlabelled,
        "--max-time": max_time,
        "--accept-data": accept_data or None,
    }
    given = [name for name, value in options.items() if value is not None]
    prepare: Callable[[], FinetuneConfig]
    if config is not None:
        if given:
            raise ConfigError(
                "both a configuration and options such as --from/--data are given. Leave one out; "
                "single entries of a configuration are changed by KEY=VALUE."
            )
        given_settings = read_finetune_config(config, [*words, *([f"to={to}"] if to else [])])
        count, prepare = ranks or 1, lambda: given_settings
    elif resume and to is not None:
        if given or words:
            raise ConfigError(
                f"a run that goes on keeps its settings; leave out {' '.join([*given, *words])}."
            )
        given_settings = resumed_config(to)
        count, prepare = ranks or ranks_of_run(given_settings), lambda: given_settings
    else:
        if (base is None and preset is None) or data is None or to is None:
            raise ConfigError(
                "nothing to fine-tune. Name a configuration file, or --from CHECKPOINT (or "
                "--from-scratch PRESET), --data FILE-or-STORE and --to DIR."
            )
        request = Request(
            data=data,
            to=to,
            base=base,
            preset=preset,
            val=val,
            test=test,
            card=card,
            head=head,
            frozen=frozen,
            lora=lora,
            layer_decay=layer_decay,
            replay=tuple(replay or ()),
            unlabelled=unlabelled,
            max_seconds=None if max_time is None else parse_time(max_time),
            accept_data=accept_data,
            words=words,
            begun=begun,
        )
        count, prepare = ranks or ranks_by_rule(request), lambda: config_on_every_rank(request)
    with local_ranks(count, sys.argv[1:]):
        settings = prepare()
        finish(lambda: run(settings, resume=resume, quiet=as_json), settings.to, as_json)
