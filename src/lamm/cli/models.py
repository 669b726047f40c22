"""``lamm models``: the presets with their parameter counts, and what a checkpoint is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from lamm.cli import common
from lamm.cli.common import JsonFlag
from lamm.cli.structures import say_table
from lamm.errors import CheckpointError, nearest_names

NUM_SUBSETS = 10
"""D of the paper, at which it counts parameters."""


def models(
    name: Annotated[
        str | None, typer.Argument(help="A preset, or a run folder, saved step or file.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the presets, or describe one of them, or a checkpoint."""
    from lamm.models.presets import PRESETS
    from lamm.shipped import shipped_models

    if name is None:
        _list(as_json)
        return
    if name in PRESETS:
        card = _preset_card(name)
        if name in shipped_models():
            card["pre_trained"] = _checkpoint_card(shipped_models()[name])
    elif Path(name).expanduser().exists():
        card = _checkpoint_card(Path(name).expanduser())
    else:
        raise CheckpointError(
            f"'{name}' is neither a preset nor a path. {nearest_names(name, PRESETS)}"
        )
    if as_json:
        common.emit_json(card)
        return
    for line in _lines(card):
        common.say(line)


def _list(as_json: bool) -> None:
    from lamm.models.presets import PRESETS
    from lamm.shipped import shipped_models

    cards = [_preset_card(name) for name in PRESETS]
    for card in cards:
        if card["name"] in shipped_models():
            card["pre_trained"] = _checkpoint_card(shipped_models()[card["name"]])
    if as_json:
        common.emit_json({"num_subsets": NUM_SUBSETS, "presets": cards})
        return
    rows = []
    for card in cards:
        encoder = card["config"]["encoder"]
        limit = encoder.get("max_neighbors")
        rows.append(
            (
                card["name"],
                encoder["name"],
                str(encoder.get("num_layers", "-")),
                str(encoder.get("channels", "-")),
                f"{encoder.get('cutoff', float('nan')):g}",
                "all" if limit is None else str(limit),
                card["config"]["forces"],
                f"{card['parameters']:,}",
                f"{card.get('parameters_with_constants', card['parameters']):,}",
            )
        )
    say_table(
        (
            "preset",
            "encoder",
            "layers",
            "channels",
            "cutoff (Å)",
            "neighbours",
            "forces",
            f"parameters (D = {NUM_SUBSETS})",
            "as the paper counts",
        ),
        rows,
    )
    common.say("")
    say_table(
        ("pre-trained, in the package", "outputs", "forces", "parameters"),
        [
            (
                card["name"],
                str(card["pre_trained"]["num_subsets"]),
                card["pre_trained"]["config"]["forces"],
                f"{card['pre_trained']['parameters']:,}",
            )
            for card in cards
            if "pre_trained" in card
        ],
    )
    common.say(
        "Start from it by its name: `lamm finetune --from NAME`; the others have no weights."
    )


def _preset_card(name: str) -> dict[str, Any]:
    from lamm.models.counting import parameter_counts
    from lamm.models.presets import PRESETS

    return {
        "name": name,
        "num_subsets": NUM_SUBSETS,
        **parameter_counts(name, NUM_SUBSETS),
        "config": PRESETS[name].model_dump(mode="json"),
    }


def _checkpoint_card(path: Path) -> dict[str, Any]:
    """What the header of the weights and the state beside them say; no weight is read."""
    from lamm.models.counting import parameter_counts
    from lamm.train.checkpoint import STATE, read_description, read_state, weights_file

    weights = weights_file(path)
    description = read_description(weights)
    card: dict[str, Any] = {
        "name": str(path),
        "weights": str(weights.resolve()),
        "bytes": weights.stat().st_size,
        "subsets": description["subsets"],
        "num_subsets": len(description["subsets"]),
        **parameter_counts(description["config"], len(description["subsets"])),
        "config": description["config"],
    }
    folder = weights.resolve().parent
    if (folder / STATE).is_file():
        card["state"] = asdict(read_state(folder))
    return card


def _lines(card: dict[str, Any]) -> list[str]:
    lines = [card["name"]]
    if "weights" in card:
        lines.append(f"  weights     {card['weights']} ({card['bytes'] / 1e6:.1f} MB)")
        lines.append(f"  subsets     {', '.join(card['subsets'])}")
    lines.append(f"  parameters  {card['parameters']:,} with {card['num_subsets']} outputs")
    state = card.get("state", {})
    if "parameters_with_constants" in card:
        lines.append(
            f"{'':14}{card['parameters_with_constants']:,} with the constants of FAIR-Chem's state "
            "dict, as the paper counts"
        )
    if "step" in state:
        lines.append(f"  step        {state['step']:,}, epoch {state.get('epoch', 0):.2f}")
    lines.append(f"  forces      {card['config']['forces']}")
    lines.append("  encoder")
    encoder = card["config"]["encoder"]
    width = max(map(len, encoder))
    lines.extend(f"    {key:<{width}}  {value}" for key, value in encoder.items())
    if "pre_trained" in card:
        lines += ["pre-trained, in the package:"]
        lines += [f"  {line}" for line in _lines(card["pre_trained"])[1:]]
        lines += [f"    card        {Path(card['pre_trained']['weights']).with_name('card.md')}"]
    return lines
