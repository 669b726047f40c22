"""``lamm uncertainty``: fit how sure a model is of energies and forces, and keep it beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lamm.cli import common
from lamm.cli.common import JsonFlag
from lamm.cli.evaluate import calibration_words, check_names, chosen_heads
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
    Head,
    check_device,
    counting,
    own_configuration,
)
from lamm.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from lamm.evaluate.uncertainty import Calibrations, HeadUncertainty, Uncertainty
    from lamm.models.potential import Potential


def uncertainty(
    checkpoint: Checkpoint,
    data: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STORE-or-FILE]...",
            help="What the model was trained on: stores, or a file whose structures name splits; "
            "the run's own labelled subsets where left out.",
        ),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option("--val", help="Held-out structures, where the first data are all training."),
    ] = None,
    head: Head = None,
    val_fraction: ValFraction = None,
    most: Annotated[
        int, typer.Option(min=1, help="Structures of each split at most, drawn at random.")
    ] = 100_000,
    batch_size: Annotated[int, typer.Option(min=1, help="Structures per batch at most.")] = 32,
    device: Device = "cpu",
    as_json: JsonFlag = False,
) -> None:
    """Fit the uncertainty of energies and forces by last-layer prediction rigidity (LLPR).

    Training structures give the covariance of the last layer's features, held-out ones scale and
    regularisation; for forces, their atoms do. The file lies beside the model, where evaluate,
    predict and the calculator find it.
    """
    from lamm.evaluate.uncertainty import fit_uncertainty, uncertainty_path
    from lamm.train.checkpoint import load

    common.start_logging(quiet=as_json)
    _refuse_shipped(checkpoint)
    data = data or _data_of_run(checkpoint)
    if val is not None and len(data) > 1:
        raise ConfigError("--val goes with one training set. Fit the heads one by one.")
    check_device(device)
    share = _val_fraction(checkpoint, val_fraction)
    pairs = [_sources(one, val, share, most) for one in data]
    names = [training.name for training, _ in pairs]
    check_names(names)
    heads = chosen_heads(checkpoint, head, names)
    if len(set(heads)) < len(heads):
        raise ConfigError(f"several sets for head '{heads[0]}': expected one for each head.")
    model = load(checkpoint, device=device)
    path = uncertainty_path(checkpoint)
    fitted = _present(path, model)
    results: dict[str, Any] = {}
    for name, (training, held_out) in zip(heads, pairs, strict=True):
        total = training.count + held_out.count
        with counting(f"fitting '{name}'", total, "structures", visible=not as_json) as show:
            found, calibrations = fit_uncertainty(
                model,
                name,
                training.structures,
                held_out.structures,
                batch_size=batch_size,
                progress=show,
            )
        fitted.heads[name] = found
        results[name] = _as_json(found, calibrations)
    fitted.save(path)
    if as_json:
        common.emit_json({"to": path, "heads": results})
        return
    for name, result in results.items():
        common.say(
            f"head '{name}': {result['training_structures']:,} training and "
            f"{result['calibration_structures']:,} held-out structures"
        )
        common.say(f"  on the held-out ones, {calibration_words(result['calibration'])}")
        if result["forces"] is None:
            common.say("  no uncertainty of forces: labels are missing in training or held out")
        else:
            common.say(f"  and {calibration_words(result['forces']['calibration'])}")
    common.say(f"-> {path}")


def _as_json(found: HeadUncertainty, calibrations: Calibrations) -> dict[str, Any]:
    """What was fitted for one head and how well it fits, as JSON can hold it."""
    energy, forces = found
    result: dict[str, Any] = {
        "training_structures": energy.training,
        "calibration_structures": energy.calibration,
        "scale_ev_per_atom": energy.rigidity.scale,
        "regularisation": energy.rigidity.regularisation,
        "calibration": calibrations.energy.summary(),
        "forces": None,
    }
    if forces is not None and calibrations.forces is not None:
        result["forces"] = {
            "training_atoms": forces.training,
            "calibration_atoms": forces.calibration,
            "scale_ev_per_ang": forces.rigidity.scale,
            "regularisation": forces.rigidity.regularisation,
            "calibration": calibrations.forces.summary("atoms"),
        }
    return result


def _refuse_shipped(checkpoint: Path) -> None:
    """Refuse a model that the package ships: the file would lie in the installation.

    Raises:
        ConfigError: it is one.
    """
    from lamm.evaluate.uncertainty import uncertainty_path
    from lamm.shipped import FOLDER, shipped_models

    path = uncertainty_path(checkpoint).resolve()
    name = next(
        (name for name, folder in shipped_models().items() if folder.resolve() in path.parents),
        None,
    )
    if name is not None:
        raise ConfigError(
            f"{checkpoint}: a model of the package, and the uncertainty would lie beside it in "
            f"{FOLDER}/{name}. Expected a run of your own.\n"
            f"  Fine-tune first: `lamm finetune --from {name} --data FILE --to DIR`, then "
            "`lamm uncertainty DIR`."
        )


def _data_of_run(checkpoint: Path) -> list[str]:
    """Stores of the labelled subsets of the run that a checkpoint belongs to.

    Raises:
        ConfigError: no configuration is beside it.
    """
    from lamm.cli.figures import read_data_config

    file = own_configuration(checkpoint, "its stores, or a file whose structures name splits,")
    subsets = read_data_config(file).subsets.values()
    return [str(subset.store) for subset in subsets if subset.denoising is None]


def _val_fraction(checkpoint: Path, given: float | None) -> float:
    """The run's share of validation structures, or another if that holds out no more.

    Raises:
        ConfigError: the model was trained on some of what would count as held out.
    """
    of_run = run_val_fraction(checkpoint)
    if given is not None and of_run is not None and given > of_run:
        raise ConfigError(
            f"--val-fraction {given}: the run held out a share of {of_run}, so that structures "
            "that it was trained on would count as held out. Leave the option out."
        )
    known = of_run if given is None else given
    return DEFAULT_VAL_FRACTION if known is None else known


def _sources(data: str, val: str | None, val_fraction: float, most: int) -> tuple[Source, Source]:
    """Training structures and held-out ones.

    Raises:
        ConfigError: both are the same.
    """
    if val is None:
        return (
            labelled_source(data, Split.train, val_fraction, most=most),
            labelled_source(data, Split.val, val_fraction, most=most),
        )
    from lamm.data.joint import store_path

    held_out = _held_out(val)
    if held_out is Split.all and store_path(val).resolve() == store_path(data).resolve():
        raise ConfigError(
            f"--val {val}: the training structures themselves, on which errors are too small to "
            "calibrate by. Expected structures that the model wasn't trained on; leave the option "
            "out where the data names its splits."
        )
    split = Split.all if store_path(data).is_file() else Split.train
    return (
        labelled_source(data, split, val_fraction, most=most),
        labelled_source(val, held_out, most=most),
    )


def _held_out(val: str) -> Split:
    """The validation split of a store that names one; else all that there is, for it was given."""
    from lamm.data.joint import store_path
    from lamm.data.splits import SPLIT_CODES
    from lamm.data.store import Store

    path = store_path(val)
    named = not path.is_file() and bool((Store.open(path).index.split == SPLIT_CODES["val"]).any())
    return Split.val if named else Split.all


def _present(path: Path, model: Potential) -> Uncertainty:
    """What was fitted for other heads of this model; nothing where it was for another model."""
    from lamm.evaluate.uncertainty import Uncertainty, fingerprint

    if path.exists():
        try:
            return Uncertainty.load(path, model)
        except CheckpointError as error:
            typer.echo(f"note: {error}\n  It is replaced.", err=True)
    return Uncertainty(fingerprint(model))
