"""Put a pre-trained model into the package: averaged weights of its best step, configuration, card.

python tools/ship_model.py runs/lamm-xs-further lamm-xs
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from lamm import __version__, load
from lamm.config import RunConfig, to_yaml
from lamm.data.joint import JointDataset
from lamm.evaluate.curves import read_metrics
from lamm.files import write_json, write_text
from lamm.schema import load_yaml, parse
from lamm.shipped import FOLDER
from lamm.train.checkpoint import weights_file

COLUMNS = {
    "energy_mae_mev_per_atom": "energy MAE (meV/atom)",
    "forces_mae_mev_per_ang": "forces MAE (meV/Å)",
    "denoising_mae_fair_ang": "noise MAE (Å)",
}


def stages(run: Path) -> list[dict[str, float]]:
    """Steps and seconds of a run, after those of the run that it went on from."""
    config = parse(RunConfig, load_yaml(run / "config.yaml"), str(run))
    last = [line for line in read_metrics(run) if line["kind"] == "validation"][-1]
    before = [] if config.start_from is None else stages(config.start_from)
    return [*before, {"steps": last["step"], "seconds": last["seconds"]}]


def model_card(run: Path, name: str) -> dict[str, Any]:
    """What was trained, on what, how well, and what it isn't for."""
    config = parse(RunConfig, load_yaml(run / "config.yaml"), str(run))
    model, joint = load(run), JointDataset(config.data, config.seed)
    lines = [line for line in read_metrics(run) if line["kind"] == "validation"]
    best = min(lines, key=lambda line: float(line["loss"]))
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    data = []
    for subset in joint.subsets:
        card = subset.store.card
        data.append(
            {
                "subset": subset.name,
                "task": "denoising" if subset.denoising is not None else card.task,
                "functional": card.functional,
                "is_dft": card.is_dft,
                "train": len(subset.rows("train")),
                "validation": len(subset.rows("val")),
                "elements": list(card.elements),
                "licence": card.licence,
            }
        )
    return {
        "name": name,
        "lamm_version": __version__,
        "model": {**model.describe(), "parameters": model.num_parameters},
        "stages": stages(run),
        "best_step": best["step"],
        "threads": environment["cpu_settings"]["threads"],
        "data": data,
        "errors": best["subsets"],
        "licence": "CC0-1.0, as the data that it learnt from",
    }


def card_text(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    encoder = card["model"]["config"]["encoder"]
    elements = {element for one in card["data"] for element in one["elements"]}
    lengths = [
        f"{stage['steps']:,} steps ({stage['seconds'] / 60:.0f} minutes on CPU)"
        for stage in card["stages"]
    ]
    text = [
        f"# Model card: {card['name']}",
        "",
        f"{encoder['name']}, {encoder['num_layers']} layers, {encoder['channels']} channels, "
        f"{card['model']['parameters']:,} parameters, cutoff {encoder['cutoff']:g} Å, forces: "
        f"{card['model']['config']['forces']}. Pre-trained in {' and then '.join(lengths)} on the "
        "subsets below, which the package ships; `config.yaml` beside this card is the whole "
        "configuration of the last part.",
        "",
        "## Data and validation errors",
        "",
        "| subset | task | labels by | trained on | " + " | ".join(COLUMNS.values()) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(COLUMNS),
    ]
    for one in card["data"]:
        errors = card["errors"].get(one["subset"], {})
        cells = [f"{errors[key]:.4g}" if errors.get(key) is not None else "-" for key in COLUMNS]
        text.append(
            f"| {one['subset']} | {one['task']} | {one['functional']} | {one['train']:,} | "
            + " | ".join(cells)
            + " |"
        )
    text += [
        "",
        "## What it is for, and what not",
        "",
        f"- A start for fine-tuning (`lamm finetune --from {card['name']}`): it has seen "
        f"{len(elements)} elements, molecules and crystals.",
        "- Not a universal potential: it is small, most labels aren't DFT but predictions of "
        "CHGNet or GFN2-xTB, and each output speaks the language of its own subset. Fine-tune it "
        "before you believe a number.",
        "- Few validation structures per subset: the errors above are coarse.",
        "",
        "## Licence",
        "",
        card["licence"]
        + "; labels were made with PySCF, tblite and CHGNet (see the stores' cards).",
        "",
    ]
    return "\n".join(text)


def main() -> None:
    """Write the model's folder anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--to", type=Path, default=Path("src/lamm") / FOLDER)
    options = parser.parse_args()
    folder = options.to / options.name
    card = model_card(options.run, options.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copyfile(weights_file(options.run), folder / "model.safetensors")
    config = load_yaml(options.run / "config.yaml") | {"to": f"runs/{options.run.name}"}
    parsed = parse(RunConfig, config, "config.yaml")
    write_text(folder / "config.yaml", to_yaml(parsed))
    write_json(folder / "card.json", card)
    write_text(folder / "card.md", card_text(card))
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
