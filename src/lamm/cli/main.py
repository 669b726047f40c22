"""The ``lamm`` command: the verbs, and how every run ends.

Exit status: 0 done; 1 the work was done and the answer is bad; 2 the request is wrong; 130 and 143
after Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from lamm import __version__
from lamm.cli import (
    bench,
    common,
    convert,
    data,
    demo,
    embed,
    evaluate,
    figures,
    finetune,
    md,
    models,
    plan,
    predict,
    pretrain,
    relax,
    report,
    reproduce,
    uncertainty,
)
from lamm.errors import BadAnswerError, InterruptedRunError, LaMMError
from lamm.train.ending import run_to_the_end

app = typer.Typer(
    name="lamm",
    help="Pre-train one neural network potential on every data set there is, then fine-tune it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.add_typer(data.app, name="data")
app.add_typer(bench.app, name="bench")
app.command("plan")(plan.plan)
app.command("pretrain")(pretrain.pretrain)
app.command("finetune")(finetune.finetune)
app.command("evaluate")(evaluate.evaluate)
app.command("uncertainty")(uncertainty.uncertainty)
app.command("embed")(embed.embed)
app.command("predict")(predict.predict)
app.command("relax")(relax.relax)
app.command("md")(md.md)
app.add_typer(convert.app, name="convert")
app.command("models")(models.models)
app.command("report")(report.report)
app.command("figures")(figures.figures)
app.command("reproduce")(reproduce.reproduce)


def _show_version(wanted: bool) -> None:
    if wanted:
        common.say(f"lamm {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Pre-train one neural network potential on every data set there is, then fine-tune it."""


def run() -> None:
    """Entry point of the ``lamm`` command."""
    # How long a waiting thread spins before it sleeps, read by GNU OpenMP when PyTorch is imported,
    # which no verb has done yet. Its own default makes a step 20 times slower beside another busy
    # process; with this a step alone is a quarter slower, and sharing costs no more than a share.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    run_to_the_end(_run_verb)


def _run_verb() -> None:
    try:
        app()
    except LaMMError as error:
        _end(f"{type(error).__name__}: {error}", common.BAD_REQUEST)
    except BadAnswerError as error:
        _end(str(error), common.BAD_ANSWER)
    except InterruptedRunError as error:
        _end(str(error), 128 + error.signal_number)
    except KeyboardInterrupt:
        _end("interrupted", common.INTERRUPTED)


def _end(message: str, status: int) -> NoReturn:
    sys.stderr.write(f"{message}\n")
    sys.exit(status)
