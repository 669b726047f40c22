"""``lamm evaluate``: errors of a potential on labelled structures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lamm.cli import common
from lamm.cli.common import ForceFlag, JsonFlag
from lamm.cli.labelled import (
    DEFAULT_VAL_FRACTION,
    Source,
    Split,
    ValFraction,
    labelled_source,
    run_val_fraction,
)
from lamm.cli.structures import (
    Checkpoint,
    Device,
    Precision,
    check_device,
    counting,
    load_calculator,
    say_table,
)
from lamm.errors import ConfigError

if TYPE_CHECKING:
    from lamm.evaluate.evaluation import Evaluation
    from lamm.evaluate.uncertainty import Uncertainty


def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[
        list[str],
        typer.Argument(metavar="STORE-or-FILE...", help="Stores, or files with labels."),
    ],
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            help="Output to use; where left out the only one, or the one named as the store.",
        ),
    ] = None,
    split: Annotated[
        Split | None, typer.Option(help="Of a store: val where left out; of a file: all.")
    ] = None,
    val_fraction: ValFraction = None,
    card: Annotated[
        Path | None, typer.Option(help="Units and keys (YAML) of an extended XYZ file.")
    ] = None,
    noise: Annotated[
        float, typer.Option(help="Standard deviation in Å for a store of the denoising task.")
    ] = 0.1,
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder for results.json, figures and a page.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch at most.")] = 32,
    device: Device = "cpu",
    dtype: Precision = "float32",
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Compare predictions with labels: MAE, RMSE and medians of energy, forces and stress.

    By subset, element and size, with the cosine between forces. A store of the denoising task is
    given fixed noise and both errors of Fig. 7. The exit status is 1 where an error isn't finite.
    """
    common.start_logging(quiet=as_json)
    share = val_fraction if val_fraction is not None else run_val_fraction(checkpoint)
    share = DEFAULT_VAL_FRACTION if share is None else share
    sources = [labelled_source(one, split, share, card, noise) for one in data]
    names = [source.name for source in sources]
    several = len(sources) > 1
    check_names(names)
    if to is not None:
        _check_folders(to, names if several else [], force)
    heads = chosen_heads(checkpoint, head, names)
    check_device(device)
    from lamm.evaluate.evaluation import evaluate_structures
    from lamm.evaluate.evaluation_page import write_evaluation, write_summary
    from lamm.evaluate.uncertainty import find_uncertainty

    model = load_calculator(checkpoint, heads[0], device, dtype).model
    uncertainty = find_uncertainty(checkpoint, model)
    results: dict[str, dict[str, Any]] = {}
    is_finite = True
    for where, source, chosen in zip(data, sources, heads, strict=True):
        title = f"evaluating {source.name}" if several else "evaluating"
        with counting(title, source.count, "structures", visible=not as_json) as show:
            evaluation = evaluate_structures(
                model,
                source.structures,
                model.column(chosen),
                denoising=source.denoising,
                uncertainty=_known(uncertainty, chosen, source),
                batch_size=batch_size,
                progress=show,
            )
        result = _result(checkpoint, where, chosen, source, evaluation)
        results[source.name] = result
        if evaluation.warning and not as_json:
            typer.echo(f"note: {source.name}: {evaluation.warning}", err=True)
        is_finite &= evaluation.is_finite
        if to is not None:
            folder = to / source.name if several else to
            write_evaluation(folder, common.finite(result), evaluation)
    answer: dict[str, Any] = result
    if several:
        answer = {"checkpoint": str(checkpoint), "subsets": results}
        if to is not None:
            write_summary(to, common.finite(answer))
    if as_json:
        common.emit_json(answer)
    else:
        _say(results, to)
    if not is_finite:
        typer.echo("some errors are not finite numbers: this model is broken.", err=True)
        raise typer.Exit(common.BAD_ANSWER)


def _result(
    checkpoint: Path, data: str, head: str, source: Source, evaluation: Evaluation
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "checkpoint": str(checkpoint),
        "data": data,
        "head": head,
        "split": source.split.value,
        "errors": evaluation.errors,
        "unknown_elements": evaluation.unknown_elements,
    }
    if evaluation.calibration is not None:
        result["energy_uncertainty"] = evaluation.calibration.summary()
    if evaluation.force_calibration is not None:
        result["forces_uncertainty"] = evaluation.force_calibration.summary("atoms")
    if evaluation.by_size:
        result |= {"by_element": evaluation.by_element, "by_size": evaluation.by_size}
    return result


def _known(uncertainty: Uncertainty | None, head: str, source: Source) -> Uncertainty | None:
    """The uncertainty, if it knows the head and there are energies."""
    if uncertainty is None or source.denoising or head not in uncertainty.heads:
        return None
    return uncertainty


def chosen_heads(checkpoint: Path, head: str | None, names: Sequence[str]) -> list[str]:
    """The output for each set: the one named, the only one, or the one that is named as the set.

    Raises:
        ConfigError: there are several outputs, none was named, and none is named as the set.
    """
    from lamm.train.checkpoint import read_description, weights_file

    subsets = read_description(weights_file(checkpoint))["subsets"]
    if head is None and len(subsets) == 1:
        head = subsets[0]
    unknown = [name for name in names if head is None and name not in subsets]
    if unknown:
        raise ConfigError(
            f"this model has {len(subsets)} outputs, none was named, and none is called "
            f"'{unknown[0]}' as the data are.\n  Choose one as --head: {', '.join(subsets)}."
        )
    return [head or name for name in names]


def check_names(names: Sequence[str]) -> None:
    """Refuse sets of one name.

    Raises:
        ConfigError: there are such.
    """
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ConfigError(
            f"several sets are called {', '.join(map(repr, repeated))}: results go by the name of "
            "the store's card or of the file. Evaluate them one by one."
        )


def _check_folders(to: Path, names: Sequence[str], force: bool) -> None:
    from lamm.evaluate.evaluation_page import FILES

    if to.is_file():
        raise ConfigError(f"--to {to}: this is a file; expected the name of a folder.")
    folders = [to, *(to / name for name in names)]
    present = [
        str((folder / name).relative_to(to))
        for folder in folders
        for name in FILES
        if (folder / name).exists()
    ]
    if present and not force:
        raise ConfigError(
            f"--to {to}: holds {', '.join(present)} already. Add --force to replace them."
        )


def calibration_words(numbers: Mapping[str, Any]) -> str:
    """How well uncertainties of energies, or of atoms' forces, tell their errors, in a line."""
    of = (
        f"the forces on {numbers['atoms']:,} atoms"
        if "atoms" in numbers
        else f"{numbers['structures']:,} energies"
    )
    return (
        f"uncertainty of {of}: Spearman {numbers['spearman']:.2f}, "
        f"miscalibration area {numbers['miscalibration_area']:.3f}, "
        f"{numbers['within_one_sigma']:.0%} of errors within one sigma (normal: 68%), "
        f"{numbers['within_two_sigma']:.0%} within two (95%)"
    )


def _say(results: Mapping[str, dict[str, Any]], to: Path | None) -> None:
    """A table of one set's errors, or a line for each of several."""
    from lamm.evaluate.evaluation_page import NAMES, error_table, split_words, summary_columns

    if len(results) == 1:
        (result,) = results.values()
        count = result["errors"]["structures"]
        common.say(
            f"{count:,} structures ({split_words(result['split'])}), head '{result['head']}'"
        )
        table = error_table(result["errors"])
        say_table(("error", "value", "unit"), [(name, f"{v:.4g}", unit) for name, unit, v in table])
        for key in ("energy_uncertainty", "forces_uncertainty"):
            if key in result:
                common.say(calibration_words(result[key]))
    else:
        present = [key for _, keys in summary_columns(results) for key in keys]
        keys = [key for key in present if "_mae_" in key or key == "force_cosine"]
        rows = []
        for name, result in results.items():
            errors = result["errors"]
            cells = [f"{errors[key]:.4g}" if key in errors else "-" for key in keys]
            rows.append((name, f"{errors['structures']:,}", *cells))
        titles = [" ".join(NAMES[key]).strip() for key in keys]
        say_table(("subset", "structures", *titles), rows)
    if to is not None:
        common.say(f"-> {to / 'report.html'}")
