"""``lamm convert``: checkpoints of other codes as ours."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from lamm.cli import common
from lamm.cli.common import ForceFlag, JsonFlag
from lamm.errors import ConfigError

logger = logging.getLogger(__name__)
app = typer.Typer(help="Take over checkpoints of other codes.", no_args_is_help=True)


@app.callback()
def convert() -> None:
    """Take over checkpoints of other codes."""


@app.command("fairchem")
def fairchem(
    checkpoint: Annotated[Path, typer.Argument(help="A .pt file of a FAIR-Chem 1.x training.")],
    to: Annotated[Path, typer.Option(help="Folder for the converted checkpoint.")],
    config: Annotated[
        Path | None, typer.Option(help="The training's YAML, for files that lack it.")
    ] = None,
    subset: Annotated[str, typer.Option(help="Name of the one output.")] = "fairchem",
    ema: Annotated[
        bool, typer.Option("--ema/--no-ema", help="Take averaged weights where there are any.")
    ] = True,
    force: ForceFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Convert a FAIR-Chem 1.x checkpoint of PaiNN or EquiformerV2.

    The result predicts the same energies and forces on the same edges, and is a CKPT for every verb
    that takes one. No code from the file is run.
    """
    from lamm.files import replaced_folder, write_json
    from lamm.models.fairchem.checkpoint import potential_of, read_checkpoint
    from lamm.schema import load_yaml
    from lamm.train.checkpoint import WEIGHTS, save_potential

    common.start_logging(quiet=as_json)
    if to.exists() and not force:
        raise ConfigError(f"--to {to}: it exists. Add --force to replace it.")
    section: dict[str, Any] | None = None
    if config is not None:
        whole = load_yaml(config)
        section = whole.get("model", whole)
        if not isinstance(section, dict):
            section = {"name": section, **(whole.get("model_attributes") or {})}
    found = read_checkpoint(checkpoint, averaged=ema, config=section)
    model = potential_of(found, subset)
    card: dict[str, Any] = {
        "source": checkpoint.name,
        "encoder": model.config.encoder.name,
        "forces": model.config.forces,
        "parameters": model.num_parameters,
        "highest_element": model.config.encoder.highest_element,
        "subset": subset,
        "averaged_weights": found.averaged,
        "energy_shift": found.energy_mean,
        "energy_scale": found.energy_scale,
        "force_scale": found.force_scale,
        "reference_energies": bool(found.reference_energies.any()),
        "config": model.config.model_dump(mode="json"),
    }
    with replaced_folder(to) as folder:
        save_potential(model, folder / WEIGHTS)
        write_json(folder / "source.json", card)
    if as_json:
        common.emit_json({"to": str(to), **card})
        return
    common.say(f"{to}: {card['encoder']}, {card['parameters']:,} parameters, output '{subset}'")
    common.say(f"  forces      {card['forces']}")
    common.say(f"  elements    1 to {card['highest_element']}")
    common.say(f"  weights     {'averaged' if found.averaged else 'as saved'}")
    common.say(f"  energy      {found.energy_scale:g} eV x output + {found.energy_mean:g} eV")
    common.say(f"  references  {'per element' if card['reference_energies'] else 'none'}")
